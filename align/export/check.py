"""Load an exported model as any user would, and compare it with its source.

Both sides compute in float32 from the weights as they were written, so that a difference comes from weights, configuration,
tokenizer or template, and not from the rounding of half precision. The remaining rounding matters only where two tokens are
almost equally likely. Such ties are counted and reported.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.data.template import ChatFormat
from align.data.template_problems import TemplateProblem
from align.engines.open import open_engine
from align.engines.protocol import GenerationRequest, SamplingSettings, TextEngine
from align.errors import RecipeError, StageError
from align.export.prompts import NEUTRAL_PROMPTS
from align.models.chat_format import load_format, load_tokens
from align.models.folder import ModelFolder
from align.models.load import load_causal_lm, load_reward_model
from align.records import Message, Prompt
from align.runtime.device import device_name, free_memory
from align.runtime.executor import Processes
from align.store.artifact import read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NUM_PROMPTS = 50
MAX_COMPLETION_TOKENS = 32
TIE_LOGITS = 1e-3
"""Two tokens whose logits differ by less are as likely as each other to rounding."""
SCORE_TOLERANCE = 1e-5
ROWS_PER_BATCH = 25
LOG_TAIL_LINES = 8
_NO_CHECK = "`--no-check` exports without this check, and the card says so."

Note = Callable[[str], None]


@dataclass(frozen=True)
class CheckReport:
    """What one check found; it found no difference, or it would have raised."""

    where: str
    """What loaded the exported folder, with its version."""
    compared: int
    """Prompts, or texts for a reward model."""
    ties: int = 0
    """Prompts on which the tokens differ after a tie of the two best."""
    own_prompts: int = 0
    """Prompts that were the run's own; the others are align's neutral ones."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Answered:
    """Prompts as token ids and their greedy continuations by the source."""

    texts: list[str]
    prompt_token_ids: list[list[int]]
    tokens: list[list[int]]
    stops: tuple[int, ...]

    @property
    def max_model_tokens(self) -> int:
        return max(map(len, self.prompt_token_ids)) + MAX_COMPLETION_TOKENS


def check_language_model(
    source: ModelFolder, exported: ModelFolder, *, dtype: str, prompts: Path | None, note: Note
) -> list[CheckReport]:
    """Compare greedy tokens on 50 prompts: source in align's transformers engine, export in transformers and vLLM.

    Args:
        source: model or adapter folder.
        dtype: of the exported weights; the source's are rounded to it.
        prompts: a file of rows, completed by neutral prompts up to 50; None: neutral prompts alone.
    Raises:
        StageError: at the first prompt whose tokens differ by more than a tie.
    """
    messages = _conversations(prompts)
    own = len(messages)
    messages = [*messages, *([Message(role="user", content=text)] for text in NEUTRAL_PROMPTS)][:NUM_PROMPTS]
    texts = [conversation[-1].content for conversation in messages]
    # A prompt that is too long loses its beginning: the completion continues its end.
    room = source.context_tokens - MAX_COMPLETION_TOKENS
    prompt_token_ids = [ids[-room:] for ids in _encode(source, messages)]
    if prompt_token_ids != [ids[-room:] for ids in _encode(exported, messages)]:
        raise StageError("the exported tokenizer or chat template shows the prompts otherwise than the source's", hint=_NO_CHECK)
    note("checking: the source answers")
    answered = _answer_with_source(source, dtype, texts, prompt_token_ids)
    note("checking: the exported model answers, in transformers")
    found = [("transformers", *_answer_with_transformers(exported, answered))]
    if importlib.util.find_spec("vllm") is not None:
        note("checking: the exported model answers, in vLLM")
        found.append(("vLLM", *_answer_with_vllm(exported, answered)))
    return [
        CheckReport(f"{name} {version}", len(texts), _count_ties(source, dtype, answered, tokens, name), own)
        for name, version, tokens in found
    ]


def check_reward_model(source: ModelFolder, exported: ModelFolder, *, dtype: str, note: Note) -> CheckReport:
    """Compare scores of 50 texts, one by one, with the exported model in plain transformers.

    Raises:
        StageError: at the first score that differs by more than 1e-5 (of scores above 1: of itself).
    """
    import transformers

    note("checking: the exported model scores, in transformers")
    # Each prompt with the next one's text as its completion: any text serves to compare scores.
    pairs = list(zip(NEUTRAL_PROMPTS, NEUTRAL_PROMPTS[1:] + NEUTRAL_PROMPTS[:1], strict=True))[:NUM_PROMPTS]
    expected = _scores(load_reward_model(source, dtype=dtype), _encode_pairs(source, pairs))
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
        str(exported.path), dtype=dtype, **_options(exported)
    )
    found = _scores(loaded, _encode_pairs(exported, pairs))
    for pair, first, second in zip(pairs, expected, found, strict=True):
        # Written so that a NaN fails, too.
        if not abs(first - second) <= SCORE_TOLERANCE * max(1.0, abs(first)):
            raise StageError(
                f"the exported reward model scores otherwise than its source: {first:.7g} there, {second:.7g} here, on\n"
                f"  {pair[0]!r} {pair[1]!r}",
                hint=_NO_CHECK,
            )
    return CheckReport(f"transformers {transformers.__version__}", len(pairs))


def _conversations(prompts: Path | None) -> list[list[Message]]:
    if prompts is None:
        return []
    rows = read_rows(prompts, Prompt)
    return [row.prompt for row, _ in zip(rows, range(NUM_PROMPTS), strict=False)]


def _encode(folder: ModelFolder, messages: Sequence[list[Message]]) -> list[list[int]]:
    """Prompts as token ids, through the chat template; without a usable one, the last message of each alone."""
    tokenizer = folder.tokenizer
    try:
        chat_format = load_format(folder)
        return [chat_format.encode_prompt(conversation) for conversation in messages]
    except (RecipeError, TemplateProblem):
        texts = [conversation[-1].content for conversation in messages]
        return [list(ids) for ids in tokenizer(texts, add_special_tokens=True)["input_ids"]]


def _encode_pairs(folder: ModelFolder, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
    chat_format = load_format(folder)
    encoded = []
    for prompt, completion in pairs:
        messages = [Message(role="user", content=prompt)]
        encoded.append(chat_format.encode_prompt(messages) + chat_format.encode_completion(messages, completion))
    return encoded


def _scores(model: PreTrainedModel, sequences: Sequence[list[int]]) -> list[float]:
    import torch

    model = model.float().eval()
    with torch.inference_mode():
        # One by one: in a padded batch, rounding depends on the other rows.
        return [float(model(input_ids=torch.tensor([ids])).logits[0, 0]) for ids in sequences]


def _answer_with_source(source: ModelFolder, dtype: str, texts: list[str], prompt_token_ids: list[list[int]]) -> _Answered:
    tokens = load_tokens(source)
    own = () if isinstance(tokens, ChatFormat) or tokens.eos_token_id is None else (int(tokens.eos_token_id),)
    stops = tokens.stop_token_ids if isinstance(tokens, ChatFormat) else own
    answered = _Answered(texts, prompt_token_ids, [], stops)
    engine = open_engine("transformers", source, dtype="float32", max_model_tokens=answered.max_model_tokens)
    # The exported weights are rounded to `dtype`. The same rounding here leaves only real differences; both compute in float32.
    if dtype != "float32":
        engine.update_weights(load_causal_lm(source, dtype=dtype).named_parameters(), version=0)
    answered.tokens.extend(_greedy(engine, answered))
    engine.close()
    free_memory()  # vLLM, which is next, takes most of a GPU
    return answered


def _greedy(engine: TextEngine, answered: _Answered) -> list[list[int]]:
    settings = SamplingSettings(
        temperature=0.0,
        top_p=1.0,
        top_k=None,
        max_completion_tokens=MAX_COMPLETION_TOKENS,
        num_candidates=1,
        stop_token_ids=answered.stops,
    )
    requests = [GenerationRequest(prompt_token_ids=ids, seed=0) for ids in answered.prompt_token_ids]
    return [candidates[0].token_ids for candidates in engine.generate(requests, settings)]


def _answer_with_transformers(exported: ModelFolder, answered: _Answered) -> tuple[str, list[list[int]]]:
    """Greedy tokens by transformers alone, as anyone would load the folder."""
    import torch
    import transformers

    device = device_name()
    model = transformers.AutoModelForCausalLM.from_pretrained(str(exported.path), dtype=torch.float32, **_options(exported))
    model.to(device)
    # The folder's own sampling defaults and penalties would change the answers, and the source answers without them.
    model.generation_config = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=MAX_COMPLETION_TOKENS, eos_token_id=list(answered.stops) or None, pad_token_id=0
    )
    tokens: list[list[int]] = []
    for start in range(0, len(answered.prompt_token_ids), ROWS_PER_BATCH):
        rows = answered.prompt_token_ids[start : start + ROWS_PER_BATCH]
        longest = max(map(len, rows))
        # Padded on the left, because generation continues at the right end; the mask hides the padding, so any token id serves.
        input_ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
        output = model.generate(input_ids=input_ids, attention_mask=mask)
        tokens += [_until(row, answered.stops) for row in output[:, longest:].tolist()]
    del model
    free_memory()  # vLLM, which is next, takes most of a GPU
    return str(transformers.__version__), tokens


def _until(tokens: list[int], stops: tuple[int, ...]) -> list[int]:
    # Rows that end early are padded until the longest of their batch ends.
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[: end + 1]


def _options(exported: ModelFolder) -> dict[str, Any]:
    """How anyone would load the folder, as the card says."""
    attention = {"attn_implementation": "eager"} if exported.caps_scores else {}
    return {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True, **attention}


def _answer_with_vllm(exported: ModelFolder, answered: _Answered) -> tuple[str, list[list[int]]]:
    """Greedy tokens by vLLM in a process of its own: it keeps memory and threads until its process ends."""
    replies: list[tuple[str, list[list[int]]]] = []
    with tempfile.NamedTemporaryFile(prefix="align-export-vllm-") as log:
        process = Processes(1, log=Path(log.name))
        try:
            process.map(_greedy_with_vllm, [(exported, answered)], on_done=lambda _, reply: replies.append(reply))
        except Exception as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            said = [line[:200] for line in log.read().decode(errors="replace").splitlines() if line.strip()][-LOG_TAIL_LINES:]
            tail = "".join(f"\n  {line}" for line in said)
            raise StageError(f"vLLM cannot load the exported model: {reason}. It said last:{tail}", hint=_NO_CHECK) from None
    return replies[0]


def _greedy_with_vllm(item: tuple[ModelFolder, _Answered]) -> tuple[str, list[list[int]]]:
    exported, answered = item
    engine = open_engine("vllm", exported, dtype="float32", max_model_tokens=answered.max_model_tokens)
    return engine.version, _greedy(engine, answered)


def _count_ties(source: ModelFolder, dtype: str, answered: _Answered, tokens: list[list[int]], where: str) -> int:
    """Prompts whose tokens differ at a tie.

    Raises:
        StageError: if tokens differ otherwise.
    """
    differing = [index for index, row in enumerate(tokens) if row != answered.tokens[index]]
    if not differing:
        return 0
    # Loaded only now: without a difference, nothing needs the source's logits.
    model = load_causal_lm(source, dtype=dtype).float()
    for index in differing:
        expected, found = answered.tokens[index], tokens[index]
        # Only the first difference counts: after it, the two continue different texts.
        place = _first_difference(expected, found)
        pair = (expected[place : place + 1], found[place : place + 1])
        # Where one completion ends and the other continues, there is no second token to compare: no tie.
        gap = _gap(model, answered.prompt_token_ids[index] + expected[:place], pair[0][0], pair[1][0]) if all(pair) else math.inf
        if gap > TIE_LOGITS:
            raise StageError(
                f"the exported model does not answer as its source: {len(differing)} of {len(tokens)} prompts differ in {where}\n"
                f"  first: {answered.texts[index]!r}, at token {place}, the logits of the two tokens being {gap:.3g} apart\n"
                f"  source:   {expected}\n  exported: {found}",
                hint=_NO_CHECK,
            )
    return len(differing)


def _first_difference(first: list[int], second: list[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


def _gap(model: PreTrainedModel, ids: list[int], first: int, second: int) -> float:
    """How far the source's logits of two next tokens are apart."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
    return abs(float(logits[first] - logits[second]))
