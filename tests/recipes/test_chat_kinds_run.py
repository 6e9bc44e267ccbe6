"""Every kind of public chat format goes through every stage, and the exported model shows others what was trained on.

Tokenizers, templates and models are built in code, each with several traits of the families that have them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from align import load_recipe, run_recipe
from align.export.folder import export_model
from align.export.source import open_source
from align.models.chat_format import load_format
from align.models.folder import ModelFolder
from align.records import Message
from align.testing.project import write_jsonl

pytestmark = pytest.mark.slow

TURNS = [Message(role=role, content=text) for role, text in (("user", "안녕?"), ("assistant", "Yes: 네."), ("user", "So?"))]  # type: ignore[arg-type]
SYSTEM = Message(role="system", content="Be kind.")
ANSWERS = ("Oh no, I am so sorry.", "Try again.", "속상했겠다.\n\nYou can:\n- wait", "  indented = {'a': 1}")
STAGES = """\
name: kinds
seed: 5
inputs:
  base:  {{kind: model, path: base{chat}}}
  rows:  {{kind: instructions, path: rows.jsonl}}
  pairs: {{kind: preferences, path: pairs.jsonl}}
  asked: {{kind: prompts, path: asked.jsonl}}
stages:
  sft:    {{stage: sft, model: base, data: rows, {train}, keep_epochs: none{peft}}}
  reward: {{stage: reward_model, model: {reward_from}, data: pairs, {train}, held_out_share: 0.3}}
  dpo:    {{stage: dpo, model: sft, pairs: pairs, {train}, peft: {{method: lora, rank: 2}}}}
  drawn:  {{stage: generate, model: dpo, prompts: asked, num_candidates: 2, max_completion_tokens: 6, max_prompt_tokens: 128,
           engine: {engine}}}
  scored: {{stage: score, candidates: drawn, scorers: {{rm: reward}}}}
"""
TRAIN = "learning_rate: 1e-3, batch_size: 8, max_tokens: 256, precision: float32"


def byte_level(*control: str, **named: str) -> Any:
    """As GPT-2, Llama 3 and Qwen have it: a token per byte, no space in front of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate([*alphabet, *control])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(control))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def sentencepiece(*control: str, **named: str) -> Any:
    """As Llama 2 and Mistral have it: a space in front of every text, and bytes for what the vocabulary lacks."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *control, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁▁", *map(chr, range(33, 127))]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "▁")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>", *control)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", **named)


def write_base(folder: Path, tokenizer: Any, kind: str = "Llama", **changes: Any) -> None:
    import torch
    import transformers

    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 32,
        "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 512, "initializer_range": 0.1,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**sizes | changes)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Kind:
    """A base model and what becomes of it."""

    make: Callable[[Path], None]
    prompt: str
    """What is read in place of TURNS, behind the beginning-of-sequence token."""
    stops: tuple[str, ...]
    """Tokens that end a completion, that of the template first."""
    pad: str
    chat: str = ""
    engine: str = "transformers"
    peft: bool = False
    """Whether LoRA trains it from the first stage on."""
    refuses: tuple[str, ...] = ()
    """Answers that the template trims."""
    system: str | None = None
    """What a system message becomes; None: rows with one are refused."""


def thinking(folder: Path) -> None:
    """Qwen 3: no beginning-of-sequence token, two stop tokens, an empty thinking block in front of an answer."""
    tokenizer = byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last and '</think>' not in m.content %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    write_base(folder, tokenizer, "Qwen3")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 256]}))


def spaced(folder: Path) -> None:
    """Llama 2 and Mistral: no padding token, a space in front of an answer and of its end, contents trimmed, no system role."""
    tokenizer = sentencepiece()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('roles must alternate') }}"
        "{% elif m.role == 'user' %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    write_base(folder, tokenizer, tie_word_embeddings=False)


def other_end(folder: Path) -> None:
    """Gemma 2: a turn ends with another token than a text, the head is the embedding table, logits are capped."""
    tokenizer = sentencepiece("<pad>", "<start_of_turn>", "<end_of_turn>", pad_token="<pad>")
    tokenizer.chat_template = (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{{ '<start_of_turn>' + m.role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>assistant\n' }}{% endif %}"
    )
    write_base(folder, tokenizer, "Gemma2", query_pre_attn_scalar=32, sliding_window=64)


def no_template(folder: Path) -> None:
    """GPT-2: one control token, no template; more rows than tokens."""
    write_base(folder, byte_level("<|endoftext|>", eos_token="<|endoftext|>"), vocab_size=258, tie_word_embeddings=True)


CHATML = "<|im_start|>user\n안녕?<|im_end|>\n<|im_start|>assistant\nYes: 네.<|im_end|>\n<|im_start|>user\nSo?<|im_end|>\n"
KINDS = {
    "thinking block": Kind(
        thinking,
        CHATML + "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ("<|im_end|>", "<|endoftext|>"),
        "<|endoftext|>",
        system="<|im_start|>system\nBe kind.<|im_end|>\n",
    ),
    "space before the answer": Kind(
        spaced,
        "<s>[INST] 안녕? [/INST] Yes: 네. </s><s>[INST] So? [/INST]",
        ("</s>",),
        "<unk>",
        refuses=ANSWERS[3:],
    ),
    "turn end is not eos": Kind(
        other_end,
        "<s><start_of_turn>user\n안녕?<end_of_turn>\n<start_of_turn>assistant\nYes: 네.<end_of_turn>\n<start_of_turn>user\nSo?"
        "<end_of_turn>\n<start_of_turn>assistant\n",
        ("<end_of_turn>", "</s>"),
        "<pad>",
        chat=", chat: {system: first_user}",
        engine="vllm" if importlib.util.find_spec("vllm") else "transformers",
        refuses=ANSWERS[3:],
        system="Be kind.\n\n",
    ),
    "no template, added tokens": Kind(
        no_template,
        CHATML + "<|im_start|>assistant\n",
        ("<|im_end|>", "<|endoftext|>"),
        "\u0100",  # the byte 0
        chat=", chat: {template: chatml}",
        peft=True,
        system="<|im_start|>system\nBe kind.<|im_end|>\n",
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_stage_and_the_export_agree(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    kind.make(tmp_path / "base")
    answers = [answer for answer in ANSWERS if answer not in kind.refuses]
    prompts = [f"Question {number}?" for number in range(8)]
    choices = [(prompt, answers[n % len(answers)], answers[(n + 1) % len(answers)]) for n, prompt in enumerate(prompts)]
    write_jsonl(tmp_path / "rows.jsonl", ({"prompt": prompt, "completion": answer} for prompt, answer, _ in choices))
    write_jsonl(tmp_path / "pairs.jsonl", ({"prompt": p, "chosen": one, "rejected": other} for p, one, other in choices))
    write_jsonl(tmp_path / "asked.jsonl", ({"prompt": prompt} for prompt in prompts[:3]))
    # A reward model that starts from the input itself follows its settings; new tokens are trained first.
    reward_from = "sft" if "template" in kind.chat else "base"
    peft = ", peft: {method: lora, rank: 2}" if kind.peft else ""
    recipe = STAGES.format(chat=kind.chat, train=TRAIN, engine=kind.engine, reward_from=reward_from, peft=peft)
    (tmp_path / "recipe.yaml").write_text(recipe)
    stages = run_recipe(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "runs", in_process=True).folder / "stages"

    trained = load_format(ModelFolder((stages / "sft").resolve() / "model"))
    prompt = trained.prompt_text(TURNS)
    assert prompt == kind.prompt
    ids = trained.tokenizer.get_vocab()
    assert trained.stop_token_ids == tuple(ids[token] for token in kind.stops)
    assert trained.pad_token_id == ids[kind.pad] != trained.end_token_id
    for answer in answers:
        tokens = trained.encode_completion(TURNS, answer)
        assert trained.sampled_text(tokens) == answer
        # Prompt and completion, tokenized apart, are what one pass over both gives.
        whole = trained.tokenize([prompt + trained.completion_text(TURNS, answer)])[0]
        assert trained.encode_prompt(TURNS) + tokens == whole

    rows = [json.loads(row) for row in (stages / "scored" / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert all(isinstance(row["scores"]["rm"], float) for row in rows)
    assert all(row["finish_reason"] == "length" or row["completion_token_ids"][-1] in trained.stop_token_ids for row in rows)

    export_model(open_source(stages / "dpo"), tmp_path / "exported", check=False)
    export_model(open_source(stages / "reward"), tmp_path / "exported_reward")
    talks = [TURNS, TURNS[:1], *([[SYSTEM, *TURNS]] if kind.system and kind.chat != ", chat: {system: first_user}" else [])]
    for folder in (tmp_path / "exported", tmp_path / "exported_reward", stages / "dpo" / "model"):
        alone = AutoTokenizer.from_pretrained(folder)
        for talk in talks:
            options: dict[str, Any] = {"add_generation_prompt": True, "return_dict": True}
            found = alone.apply_chat_template([message.model_dump() for message in talk], **options)["input_ids"]
            assert found == trained.encode_prompt(talk)
    if kind.system is not None:
        assert kind.system in trained.prompt_text([SYSTEM, *TURNS])
    written = json.loads((tmp_path / "exported" / "generation_config.json").read_text())["eos_token_id"]
    assert written == (list(trained.stop_token_ids) if len(kind.stops) > 1 else trained.end_token_id)
