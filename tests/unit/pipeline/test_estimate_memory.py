"""The formulas on numbers small enough to be worked by hand, and their constants against the code they were taken from."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from one_layer import SHAPE

from align.config.peft import Lora, VirtualTokens
from align.models.folder import ModelFolder
from align.models.shape import ModelShape, shape_of
from align.models.sizes import DENSE_MASK_TOKENS
from align.pipeline.estimate.loaded_model import LoadedModel, Peft
from align.pipeline.estimate.memory import peak_bytes
from align.training.needs import Batch, Teacher

LAYERS = {"q": (4, 4), "k": (2, 4), "v": (2, 4), "o": (4, 4), "gate": (6, 4), "up": (6, 4), "down": (4, 6)}


def shape() -> ModelShape:
    config = {
        "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "vocab_size": 10, "hidden_act": "silu",
    }  # fmt: skip
    tensors: dict[str, tuple[int, ...]] = {f"layers.0.{name}_proj.weight": size for name, size in LAYERS.items()}
    tensors |= {"embed_tokens.weight": (10, 4), "norm.weight": (4,), "layers.0.norm1.weight": (4,), "layers.0.norm2.weight": (4,)}
    found = shape_of(config, tensors, context=32, tied=True)
    assert found is not None
    return found


def model(peft: Peft = None, **changes: Any) -> LoadedModel:
    return LoadedModel(replace(shape(), **changes), peft)


def test_the_shape_of_these_tests_is_the_one_that_is_read() -> None:
    assert replace(shape(), linear_layers=()) == SHAPE


@pytest.mark.parametrize(
    ("peft", "expected"),
    [
        (None, 172),
        # rank * (rows + columns): q and o 8, k and v 6, gate, up and down 10
        (Lora(method="lora", rank=2), 2 * (2 * 8 + 2 * 6 + 3 * 10)),
        (Lora(method="qlora", rank=2), 2 * (2 * 8 + 2 * 6 + 3 * 10)),
        (Lora(method="lora", rank=3, target_modules=["q_proj", "v_proj"]), 3 * (8 + 6)),
        (VirtualTokens(method="prompt_tuning", num_virtual_tokens=5), 5 * 4),
        (VirtualTokens(method="prefix_tuning", num_virtual_tokens=5), 5 * 2 * 1 * 2),
    ],
)
def test_trainable_parameters(peft: Any, expected: int) -> None:
    assert model(peft).trainable_parameters == expected
    # A score head learns in any case; it stands in place of the language model's, which here is the embedding.
    assert LoadedModel(shape(), peft, has_score_head=True).trainable_parameters == expected + 4


def test_weights_are_four_bytes_and_quantised_ones_half_a_byte_and_scales() -> None:
    assert model().weight_bytes == 4 * 172
    assert model(Lora(method="lora", rank=2)).weight_bytes == 4 * (172 + 116)
    # 120 of 172 in four bits: 0.5 + 1/64 + 4/16384 bytes each
    assert model(Lora(method="qlora", rank=2)).weight_bytes == round(4 * (52 + 116) + 120 * (0.5 + 1 / 64 + 4 / 16384))
    # bitsandbytes leaves GPT-2's kind of layers as they are
    assert model(Lora(method="qlora", rank=2), quantizable=False).weight_bytes == 4 * (172 + 116)


def test_activations_of_one_layer_and_token() -> None:
    batch = Batch(tokens=1, row_tokens=16, targets=0, is_masked=False, accumulates=False)
    norms, inputs, attention, feed_forward, final = 2 * 2 * 4 * 4, 2 * 4 * 4, 4 * (4 + 4 + 2 + 2), 4 * 4 * 6, 2 * 4 * 4
    plain = norms + inputs + attention + feed_forward + final
    assert model().activation_bytes(batch, "float32") == plain
    assert model().activation_bytes(replace(batch, is_masked=True), "float32") == plain + 4 * 16
    # All layers share a mask, and each keeps the results of sequences on their own.
    assert model(num_layers=2).activation_bytes(replace(batch, is_masked=True), "float32") == 2 * plain - final + 4 * 16
    assert model().activation_bytes(replace(batch, is_split=True), "float32") == plain + 4 * 4
    # Query, key, value and result of a prompt that a side continues, for half of the tokens.
    copied = replace(batch, is_split=True, copied_share=0.5)
    assert model().activation_bytes(copied, "float32") == plain + 4 * 4 + 4 * (4 + 4 + 2 + 2) // 2
    assert model().activation_bytes(replace(batch, tokens=3), "float32") == 3 * plain
    # Rank 2 for each of seven layers; the inputs are kept for the small matrices.
    assert model(Lora(method="lora", rank=2)).activation_bytes(batch, "float32") == plain + 4 * 2 * 7
    # Nothing learns inside: neither the inputs of the layers nor the product before the last of them are kept.
    virtual = VirtualTokens(method="prompt_tuning", num_virtual_tokens=5)
    assert model(virtual).activation_bytes(batch, "float32") == plain - inputs - 4 * 6
    # Half the bytes, but norms stay in float32 and five layers read copies of their own.
    in_bfloat16 = norms + 5 * 2 * 4 + attention // 2 + feed_forward // 2 + final
    assert model().activation_bytes(batch, "bfloat16") == in_bfloat16


def test_what_torch_keeps_for_the_backward_pass_is_what_is_counted(tmp_path: Any) -> None:
    """The formula against torch's own list of saved tensors, on a Llama of some layers, in both precisions.

    Rows are packed or not, short with a mask of pairs of tokens or long without.
    """
    import torch

    from align.models.head import last_hidden_states
    from align.models.load import load_causal_lm
    from align.models.shape import read_shape
    from align.testing import tiny_causal_lm

    size: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "head_dim": 16,
    }
    folder = tiny_causal_lm(tmp_path / "base", **size, num_key_value_heads=2)
    found = read_shape(ModelFolder(folder))
    loaded = load_causal_lm(folder)
    own = {parameter.untyped_storage().data_ptr() for parameter in loaded.parameters()}
    rows = 2
    for packed, row_tokens in ((False, 64), (True, 64), (True, DENSE_MASK_TOKENS["cpu"] + 64)):
        ids = torch.arange(rows * row_tokens).view(rows, row_tokens) % 250
        positions = (torch.arange(row_tokens) % (row_tokens // 2 if packed else row_tokens))[None].expand(rows, -1)
        for precision in ("float32", "bfloat16"):
            kept: dict[int, int] = {}
            alive: list[Any] = []

            def remember(tensor: Any, kept: dict[int, int] = kept, alive: list[Any] = alive) -> Any:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in own:
                    kept[storage.data_ptr()] = storage.nbytes()
                    alive.append(tensor)  # else its address would be used again
                return tensor

            with (
                torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor),
                torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"),
            ):
                last_hidden_states(loaded, input_ids=ids, position_ids=positions)
            assert found is not None
            masked = packed and row_tokens <= DENSE_MASK_TOKENS["cpu"]
            batch = Batch(rows * row_tokens, row_tokens, 0, masked, False, packed and not masked)
            casts = 0 if precision == "float32" else 2 * found.linear_parameters
            counted = LoadedModel(found).activation_bytes(batch, precision) + casts  # type: ignore[arg-type]
            assert counted == pytest.approx(sum(kept.values()), rel=0.03)


def test_what_torch_keeps_of_a_pass_over_pairs_is_what_is_counted(tmp_path: Any) -> None:
    """Rows that are too long for a mask: no padding, and the prompt once more for the rejected side."""
    import torch

    from align.config.sections import PairwiseOptimization
    from align.data.encoding import EncodedPreference
    from align.models.load import load_causal_lm
    from align.models.shape import read_shape
    from align.testing import tiny_causal_lm
    from align.training.needs import RowLength, Setting, pair_passes
    from align.training.pairwise.collator import PairCollator, TrainingPair
    from align.training.pairwise.trainer import layout_of, prepare_model

    size: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 6, "num_attention_heads": 4}
    folder = tiny_causal_lm(tmp_path / "base", **size, head_dim=16, num_key_value_heads=2)
    found = read_shape(ModelFolder(folder))
    assert found is not None
    lengths = [RowLength(120, (100, 180)), RowLength(90, (60, 120))]
    ids = torch.arange(200).tolist()
    pairs = [
        TrainingPair(EncodedPreference(str(row), ids[: row.prompt], *(ids[:count] for count in row.completions)))
        for row in lengths
    ]
    loaded = prepare_model(load_causal_lm(folder))
    layout = layout_of(PairCollator(form="shared_prompt", pad_token_id=0, row_tokens=128)(pairs))
    own = {parameter.untyped_storage().data_ptr() for parameter in loaded.parameters()}
    kept: dict[int, int] = {}
    alive: list[Any] = []  # else an address would be used again

    def remember(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        loaded(layout=layout)
    (batch,) = pair_passes(PairwiseOptimization(batch_size=2), Setting(lengths, 4096, 0, "cpu"))
    model = LoadedModel(found)
    counted = model.activation_bytes(batch, "float32") + model.logits_bytes(batch.targets, "cpu")
    assert counted == pytest.approx(sum(kept.values()), rel=0.05)


def test_logits_are_there_a_chunk_at_a_time_and_not_with_a_score_head() -> None:
    assert model().logits_bytes(100, "cpu") == 4 * 100 * 10
    assert model().logits_bytes(9999, "cpu") == 4 * 4096 * 10
    # Chunks of a large vocabulary have fewer tokens: 2^24 logits at most, 2^27 on a GPU.
    assert model(vocabulary=151_936).logits_bytes(9999, "cpu") == 4 * 110 * 151_936
    assert model(vocabulary=151_936).logits_bytes(9999, "cuda") == 4 * 883 * 151_936
    assert LoadedModel(shape(), has_score_head=True).logits_bytes(100, "cpu") == 0


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_what_a_step_towards_a_teacher_allocates_is_what_is_counted(tmp_path: Any, beta: float) -> None:
    """By torch's own record of what it allocates, for a chunk that is large beside all else."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from align.models.trainable import TrainableModel
    from align.stages.distill import Config
    from align.testing import tiny_causal_lm
    from align.training.online.distill import Distiller
    from align.training.online.layout import Episode
    from align.training.online.learner import Optimizers
    from align.training.online.models import ForwardSettings, load_models
    from align.training.pass_size import PassSize

    tokens, vocabulary = 256, 16_384
    folder = ModelFolder(tiny_causal_lm(tmp_path / "base", vocab_size=vocabulary, hidden_size=4, head_dim=4, intermediate_size=4))
    config = Config.model_validate({"model": "base", "teacher": "big", "prompts": "prompts", "beta": beta})
    settings = ForwardSettings(torch.device("cpu"), "float32", 1.0, PassSize(1024, "tokens"), 0)
    start = TrainableModel(folder, None, tmp_path, "distill")
    models = load_models(start, None, settings, seed=0, with_reference=False, teacher=folder)
    learner = Distiller(Optimizers.of(models, config, num_rollouts=1), settings, config, 0, models.reference)
    passes = settings.passes([Episode([5], [6] * tokens)], range(1))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        learner._accumulate(passes)
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    counted = model(vocabulary=vocabulary).logits_bytes(tokens, "cpu", Teacher("big", beta))
    assert counted == pytest.approx(max(itertools.accumulate(changes)), rel=0.03)
    # Chunks as above, but a quarter of the tokens.
    assert model(vocabulary=vocabulary).logits_bytes(9999, "cpu", Teacher("big", beta)) == counted


def test_autocast_copies_weights_but_not_quantised_ones() -> None:
    assert model().cast_bytes("float32") == 0
    assert model().cast_bytes("bfloat16") == 2 * 120
    assert model(Lora(method="qlora")).cast_bytes("bfloat16") == 0


def test_layers_that_are_computed_again_leave_their_inputs() -> None:
    batch = Batch(64, 32, 0, True, False)
    kept, again = model(), replace(model(), recomputes=True)
    layer, final = kept._layer_bytes(batch, "float32"), 8 * shape().hidden_size + 4 * 32  # the last norm and the mask
    assert kept.activation_bytes(batch, "float32") == 64 * (shape().num_layers * layer + final)
    assert again.activation_bytes(batch, "float32") == 64 * (shape().num_layers * 4 * shape().hidden_size + layer + final)
    # The sum through the layers has the type of the embeddings, whatever autocast does.
    lora = replace(again, peft=Lora(method="lora", rank=2), frozen="bfloat16")
    assert (again.kept_of_a_layer(batch, "bfloat16"), lora.kept_of_a_layer(batch, "bfloat16")) == (4 * 4, 2 * 4)
    # Weights are cast a layer at a time.
    two = replace(again, shape=replace(shape(), num_layers=2))
    assert two.cast_bytes("bfloat16") == replace(two, recomputes=False).cast_bytes("bfloat16") // 2


def test_weights_that_do_not_learn_may_be_in_bfloat16() -> None:
    lora = LoadedModel(shape(), Lora(method="lora", rank=2), frozen="bfloat16")
    assert lora.weight_bytes == 2 * lora.parameters + 4 * lora.added_parameters
    assert lora.cast_bytes("bfloat16") == 2 * lora.added_parameters
    # A frozen head gets no gradient, and its float32 logits need no float32 copy of it.
    batch = Batch(64, 32, 8, True, False)
    in_float32 = replace(lora, frozen="float32")
    assert lora.backward_bytes(batch, "cuda", "float32") == in_float32.backward_bytes(batch, "cuda", "float32")
    assert LoadedModel(shape(), frozen="bfloat16").weight_bytes == 4 * lora.parameters
    assert LoadedModel(shape(), learns=False, frozen="bfloat16").weight_bytes == 2 * lora.parameters
    prompt = LoadedModel(shape(), VirtualTokens(method="prompt_tuning", num_virtual_tokens=3), frozen="bfloat16")
    assert prompt.weight_bytes == 4 * (prompt.parameters + prompt.added_parameters)


def test_adamw_goes_tensor_by_tensor_on_a_cpu_only() -> None:
    assert model().step_bytes("cpu") == 2 * 4 * 40
    assert model(Lora(method="lora", rank=2)).step_bytes("cpu") == 0
    assert model().step_bytes("cuda") == 0  # AdamW is fused there
    assert model().step_bytes("cuda", "adamw_8bit") == 0
    assert model().step_bytes("cuda", "adafactor") == 2 * 4 * 40
    assert model(Lora(method="lora", rank=2)).step_bytes("cuda") == 0


def test_the_peak_is_the_largest_phase() -> None:
    def peak(**changes: Any) -> int:
        numbers: dict[str, Any] = {
            "weights": 100, "gradients": 100, "optimizer": 200, "activations": 70, "step": 20, "other_models": 5, "process": 1000,
            "accumulates": False,
        }  # fmt: skip
        return peak_bytes(**{**numbers, **changes})

    assert peak() == 1000 + 5 + 100 + 200 + 100 + 20  # the optimizer's step
    assert peak(activations=170) == 1000 + 5 + 100 + 200 + 170  # the backward pass, whose gradients come as it goes
    assert peak(accumulates=True) == 1000 + 5 + 100 + 200 + 100 + 70  # gradients of the pass before are there
    # Before the first step there are no moments, but the step itself brings them.
    assert peak(activations=900, has_moments=False) == 1000 + 5 + 100 + 900
    assert peak(has_moments=False) == peak()
    assert peak(other_phases=[2000]) == 1000 + 2000


def test_more_tokens_and_larger_ranks_never_take_less() -> None:
    sizes = [
        model().activation_bytes(Batch(tokens, 16, tokens, True, False), "float32") + model().logits_bytes(tokens, "cpu")
        for tokens in (1, 2, 8, 4096, 5000)
    ]
    assert sizes == sorted(sizes)
    ranks = [model(Lora(method="lora", rank=rank)).trainable_parameters for rank in (1, 2, 4)]
    assert ranks == sorted(set(ranks))


@pytest.mark.parametrize("method", ["full", "lora", "prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_trainable_parameters_are_those_that_peft_counts(tmp_path: Any, architecture: str, method: str) -> None:
    peft = pytest.importorskip("peft")
    import transformers

    from align.models.shape import read_shape

    if architecture == "llama":
        config: Any = transformers.LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=50
        )
    else:
        config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=64)
    built = transformers.AutoModelForCausalLM.from_config(config)
    built.save_pretrained(tmp_path)
    found = read_shape(ModelFolder(tmp_path))
    assert found is not None
    settings: dict[str, Any] = {
        "lora": (Lora(method="lora", rank=3), lambda: peft.LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM")),
        "prompt_tuning": (
            VirtualTokens(method="prompt_tuning", num_virtual_tokens=7),
            lambda: peft.PromptTuningConfig(num_virtual_tokens=7, task_type="CAUSAL_LM"),
        ),
        "prefix_tuning": (
            VirtualTokens(method="prefix_tuning", num_virtual_tokens=7),
            lambda: peft.PrefixTuningConfig(num_virtual_tokens=7, task_type="CAUSAL_LM"),
        ),
    }
    ours, theirs = settings.get(method, (None, None))
    if theirs is not None:
        built = peft.get_peft_model(built, theirs())
    counted = sum(parameter.numel() for parameter in built.parameters() if parameter.requires_grad)
    assert LoadedModel(found, ours).trainable_parameters == counted
