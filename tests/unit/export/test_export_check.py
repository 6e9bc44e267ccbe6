"""When two answers count as the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from align.errors import StageError
from align.export.check import NUM_PROMPTS, _answer_with_vllm, _Answered, _count_ties, check_language_model
from align.export.prompts import NEUTRAL_PROMPTS
from align.models.folder import ModelFolder
from align.testing import tiny_causal_lm

TWINS = (10, 11)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of its tokens are always exactly as likely as each other, and likelier than any other."""
    folder = tiny_causal_lm(tmp_path_factory.mktemp("twins") / "m", seed=4, tie_word_embeddings=False)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        states = loaded.model(input_ids=torch.tensor([[20, 21]])).last_hidden_state[0, -1]
        loaded.lm_head.weight[list(TWINS)] = states * 10
    loaded.save_pretrained(folder)
    return folder


def test_there_are_fifty_neutral_prompts_in_two_languages() -> None:
    assert len(set(NEUTRAL_PROMPTS)) == NUM_PROMPTS
    assert sum(any("가" <= letter <= "힣" for letter in prompt) for prompt in NEUTRAL_PROMPTS) == NUM_PROMPTS // 2


def test_a_tie_is_counted_and_another_difference_refused(model: Path) -> None:
    answered = _Answered(["prompt"], [[20, 21]], [[TWINS[0], 5]], stops=())
    assert _count_ties(ModelFolder(model), "float32", answered, [[TWINS[0], 5]], "vLLM") == 0
    assert _count_ties(ModelFolder(model), "float32", answered, [[TWINS[1], 6]], "vLLM") == 1
    with pytest.raises(StageError, match="at token 0, the logits of the two tokens being"):
        _count_ties(ModelFolder(model), "float32", answered, [[30, 5]], "vLLM")
    with pytest.raises(StageError, match="inf apart"):
        _count_ties(ModelFolder(model), "float32", answered, [[TWINS[0]]], "vLLM")


@pytest.mark.usefixtures("without_vllm")
def test_a_changed_template_is_found(tmp_path: Path) -> None:
    source, exported = tiny_causal_lm(tmp_path / "a", seed=1), tiny_causal_lm(tmp_path / "b", seed=1)
    tokenizer = ModelFolder(exported).tokenizer
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<|im_start|>assistant\n", "<|im_start|>assistant \n")
    tokenizer.save_pretrained(exported)
    with pytest.raises(StageError, match="tokenizer or chat template"):
        check_language_model(ModelFolder(source), ModelFolder(exported), dtype="float32", prompts=None, note=lambda text: None)


def test_what_vllm_says_of_a_folder_it_cannot_load_is_passed_on(tmp_path: Path) -> None:
    config = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StageError, match="vLLM cannot load the exported model: engine: vllm does not serve") as caught:
        _answer_with_vllm(ModelFolder(tmp_path), _Answered(["prompt"], [[20, 21]], [], stops=()))
    assert "It said last:\n" in caught.value.message
    assert "--no-check" in str(caught.value.hint)


@pytest.mark.usefixtures("without_vllm")
def test_a_model_without_chat_template_is_checked_on_plain_text(tmp_path: Path) -> None:
    source, exported = tiny_causal_lm(tmp_path / "a", seed=1), tiny_causal_lm(tmp_path / "b", seed=1)
    for folder in (source, exported):
        (folder / "chat_template.jinja").unlink()
    (report,) = check_language_model(
        ModelFolder(source), ModelFolder(exported), dtype="float32", prompts=None, note=lambda text: None
    )
    assert (report.compared, report.own_prompts) == (50, 0)
