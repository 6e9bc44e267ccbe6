"""Shipped recipes at reduced size: copied as a newcomer copies them, with fewer rows and, if wanted, a small random model."""

from __future__ import annotations

from pathlib import Path

from align.cli.main import main


def reduced(name: str, folder: Path, **sizes: int) -> Path:
    """A copy of a recipe with the first rows of each file: how many, by the file's name."""
    if main(["recipes", "copy", name, str(folder)]):
        raise RuntimeError(f"the recipe {name} was not copied to {folder}")
    for kind, size in sizes.items():
        (path,) = folder.glob(f"**/{kind}.jsonl")
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:size]))
    for retention in folder.glob("**/retention.txt"):
        retention.write_text("".join(retention.read_text().splitlines(keepends=True)[:20]))
    return folder


def overrides(*settings: str) -> list[str]:
    """Options that set fields of a recipe, such as `stages.sft.num_epochs=1`."""
    return [part for setting in settings for part in ("--set", setting)]


def shrink(base: Path) -> None:
    """Put a small random model in the base model's place, for tests that do not look at what it says. The tokenizer stays."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base)
    config.update({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 32})
    config.update({"num_attention_heads": 1, "num_key_value_heads": 1, "initializer_range": 0.1})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(base)


def small_quickstart(folder: Path) -> tuple[Path, list[str]]:
    """The quickstart with a few rows and a small random model, without vLLM: all of its stages in half a minute.

    Returns:
        The recipe's folder, and the options to run it with.
    """
    recipe = reduced("quickstart", folder, instructions=32, preferences=40, prompts=8, validation=4, held_out=6)
    (base,) = recipe.glob("**/base_model")
    shrink(base)
    samplers = ("sft_best", "candidates", "dpo.generate", "ppo", "compare")
    return recipe, overrides(
        *(f"stages.{stage}.{setting}" for stage in samplers for setting in ("engine=transformers", "max_completion_tokens=16")),
        # Such a model ends no answer.
        *(f"stages.{stage}.keep_truncated=true" for stage in ("best_of_n", "pairs", "dpo.pairs")),
        *(f"stages.{stage}.min_margin=0.0" for stage in ("pairs", "dpo.pairs")),
        *("stages.sft.num_epochs=2", "stages.sft.checkpoint_steps=2", "stages.compare.bootstrap_resamples=1000"),
        *("stages.ppo.num_episodes=16", "stages.ppo.rollout_batch_size=8", "stages.ppo.mini_batch_size=4"),
    )
