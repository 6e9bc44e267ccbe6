"""vLLM, in this process. The one place that imports it.

In-process (no engine subprocess) starts sooner and leaves nothing behind when the worker is killed.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from align.engines.checksum import WeightChecksums, of_parts
from align.engines.protocol import BrokenLogits, GenerationRequest, SampledCompletion, SamplingSettings
from align.engines.vllm_weights import has_head, sums_in
from align.engines.vllm_worker import EngineWorker
from align.engines.weight_transfer import TransferPlace
from align.models.finite import check_finite_weights
from align.models.folder import ModelFolder
from align.models.stream import stored_weights, with_tied_head, write_parts
from align.runtime.device import device_name, free_memory
from align.runtime.life import still_working
from align.runtime.profile import phase
from align.system_errors import explained

MAX_NUM_SEQS = 256
MAX_BATCHED_TOKENS = 8192
CPU_KV_CACHE_GIB = "1"
GPU_MEMORY_SHARE = 0.85

# Set before vLLM is imported: it reads them at import.
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": CPU_KV_CACHE_GIB,
    "VLLM_HOST_IP": "127.0.0.1",
}
# With every token. `EngineWorker` says what is counted; `_outputs`, and the server's `refuse_broken_answers`, look at the counts.
COUNTS_BROKEN = {"VLLM_COMPUTE_NANS_IN_LOGITS": "1"}
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **COUNTS_BROKEN}
# vLLM compiles a few small functions even so, for every process anew: the count of tokens that are likelier than the drawn one
# takes a C++ compiler several seconds.
ON_CPU = {"TORCHDYNAMO_DISABLE": "1"}


def batched_tokens(max_model_tokens: int) -> int:
    """Most tokens of prompts that an engine reads together: an engine with another number rounds otherwise."""
    return max(MAX_BATCHED_TOKENS, max_model_tokens)


def import_vllm() -> Any:
    """The module, imported with the environment that an engine in this process needs; variables that are set stay."""
    on_cpu = device_name() == "cpu"
    for key, value in (ENVIRONMENT | IN_PROCESS | (ON_CPU if on_cpu else {})).items():
        os.environ.setdefault(key, value)
    import vllm

    return vllm


class VllmEngine:
    """A vLLM engine for one architecture, whose weights can be exchanged."""

    name = "vllm"

    def __init__(
        self,
        model_folder: ModelFolder,
        *,
        dtype: str,
        max_model_tokens: int,
        memory_share: float | None = None,
        num_gpus: int = 1,
    ) -> None:
        """Start vLLM with a model; it keeps the environment variables that are set already.

        Args:
            memory_share: part of a GPU's memory that the engine takes, from which it can sleep; None: most of it, for a GPU
                that nothing else uses. On a CPU it has no effect.
            num_gpus: that divide the model among them (tensor parallelism). vLLM then starts a process for each.
        """
        check_finite_weights(model_folder)
        vllm = import_vllm()
        on_gpu = device_name() == "cuda"
        import torch
        from vllm.platforms import current_platform

        self.version = str(vllm.__version__)
        # vLLM changes torch's number of threads for the whole process.
        self._threads = torch.get_num_threads()
        self._torch = torch
        self._vllm = vllm
        self._is_tied = model_folder.tied
        self._num_gpus = num_gpus
        # Sleep mode needs an allocator of vLLM's own, which only some platforms have.
        self._can_sleep = memory_share is not None and current_platform.is_sleep_mode_available()
        options: dict[str, Any] = {"enforce_eager": True}
        if on_gpu:
            options = {"gpu_memory_utilization": memory_share or GPU_MEMORY_SHARE, "enable_sleep_mode": self._can_sleep}
        self._llm = vllm.LLM(
            str(model_folder.base.path),
            dtype=dtype,
            max_model_len=max_model_tokens,
            max_num_seqs=MAX_NUM_SEQS,
            # A prompt is never split: vLLM 0.32 rewinds the generator of a seeded request after a partial prefill, which CPU
            # generators cannot do ("CPU Generator does not use offset").
            enable_chunked_prefill=False,
            max_num_batched_tokens=batched_tokens(max_model_tokens),
            enable_prefix_caching=True,
            # The recipe alone decides how tokens are drawn, not the model's generation_config.json.
            generation_config="vllm",
            disable_log_stats=True,
            logprobs_mode="processed_logprobs",  # of the distribution that tokens are drawn from, not of the raw logits
            seed=0,
            tensor_parallel_size=num_gpus,
            worker_extension_cls=f"{EngineWorker.__module__}.{EngineWorker.__name__}",
            **options,
        )
        self._llm.collective_rpc("count_broken_logits")
        engine = self._llm.llm_engine
        engine.step = partial(_step, engine.step)
        engine.engine_core.get_output = partial(_outputs, engine.engine_core.get_output)
        self._where = str(model_folder.path)
        # Gemma 2 and Command R have no head there: vLLM's model multiplies by the embedding table.
        self._has_head = any(self._llm.apply_model(has_head))
        self._dtype = dtype
        self._llm.update_weight_version("0")
        if model_folder.is_adapter:
            self.load_weights(model_folder)

    @phase("sample")
    def generate(self, requests: Sequence[GenerationRequest], settings: SamplingSettings) -> list[list[SampledCompletion]]:
        # Entries of an earlier call would change the shapes of this prefill and with them the last bits of its results.
        self._llm.reset_prefix_cache()
        parameters = [
            self._vllm.SamplingParams(
                n=settings.num_candidates,
                temperature=settings.temperature,
                top_p=settings.top_p,
                # vLLM's value for all tokens.
                top_k=settings.top_k or -1,
                max_tokens=settings.max_completion_tokens,
                stop_token_ids=list(settings.stop_token_ids),
                # vLLM gives candidate i the seed + i, as the protocol says.
                seed=request.seed,
                # 0: of the drawn token only.
                logprobs=0 if settings.with_logps else None,
                # Text is decoded from the ids in one place for all engines.
                detokenize=False,
            )
            for request in requests
        ]
        # Ids, not text: vLLM would put a second BOS in front of text.
        prompts = [{"prompt_token_ids": request.prompt_token_ids} for request in requests]
        first = self._llm.request_counter.counter
        try:
            outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        except _BrokenRow as found:
            raise self._broken(found.request_id, first) from None
        return [
            [self._completion(number, output) for output in sorted(result.outputs, key=lambda o: o.index)]
            for number, result in enumerate(outputs)
        ]

    def _broken(self, request_id: str, first: int) -> BrokenLogits:
        """The error for broken logits of a request; the others are given up, and the engine can be used again.

        Args:
            first: vLLM's number of the call's first request.
        """
        engine = self._llm.llm_engine
        states = engine.output_processor.request_states
        state = states[request_id]
        number = int((state.parent_req or state).external_req_id) - first
        tokens = state.detokenizer.num_output_tokens()
        engine.abort_request(list(states), internal=True)
        return BrokenLogits.of(self._where, number, tokens)

    def _completion(self, request: int, output: Any) -> SampledCompletion:
        """A completion of the request with this number."""
        ids = list(output.token_ids)
        logps = None
        if output.logprobs is not None:
            logps = [position[token].logprob for token, position in zip(ids, output.logprobs, strict=True)]
            if (place := next((number for number, logp in enumerate(logps) if not math.isfinite(logp)), None)) is not None:
                raise BrokenLogits.of(self._where, request, place)
        # vLLM keeps the version of every token: weights can be exchanged while it samples, though not here.
        (version,) = {int(span.version) for span in output.weight_versions}
        return SampledCompletion(ids, "length" if output.finish_reason == "length" else "stop", logps, version)

    def load_weights(self, model_folder: ModelFolder) -> None:
        # An adapter comes merged: an engine started with LoRA support could not switch to models without adapters.
        check_finite_weights(model_folder)
        self._where = str(model_folder.path)
        self._is_tied = model_folder.tied
        if self._num_gpus > 1 and not model_folder.is_adapter and not self._is_tied:
            self._reload(0, weights_path=str(model_folder.path))
        else:
            self.update_weights(stored_weights(model_folder), version=0)

    def update_weights(self, weights: Iterable[tuple[str, Any]], *, version: int) -> None:
        # With tied embeddings the file has no head of its own, and the engine's copy would keep its old values.
        given = with_tied_head(weights) if self._is_tied and self._has_head else iter(weights)
        if self._num_gpus == 1:
            self._reload(version, weights_iterator=given)
            return
        # The processes of its GPUs cannot be handed an iterator; each reads what is its own.
        with tempfile.TemporaryDirectory(prefix="align-weights-") as folder:
            with explained(Path(folder)):
                write_parts(given, Path(folder))
            self._reload(version, weights_path=folder)

    def join_training(self, place: TransferPlace) -> None:
        """Be ready for `take_weights`: all processes of the engine join the group of `place`."""
        self._llm.collective_rpc("join_training", args=(place,))

    def take_weights(self, version: int) -> None:
        """What `update_weights` does, with the weights that a training sends next."""
        self._llm.collective_rpc("take_weights", args=(self._is_tied and self._has_head,))
        self._changed(version)

    def _reload(self, version: int, **source: Any) -> None:
        self._llm.collective_rpc("reload_weights", kwargs=source)
        self._changed(version)

    def _changed(self, version: int) -> None:
        self._llm.update_weight_version(str(version))
        self._llm.reset_prefix_cache()

    def weight_checksums(self) -> WeightChecksums:
        parts = of_parts(self._llm.apply_model(partial(sums_in, dtype=self._dtype)))
        return WeightChecksums(parts, self._dtype, has_tied_head=self._is_tied and self._has_head)

    @property
    def can_sleep(self) -> bool:
        """Whether `sleep` gives the memory of a GPU back."""
        return self._can_sleep

    def sleep(self) -> None:
        if self._can_sleep:
            # Level 2 keeps no copy of the weights in the computer's memory: new ones come before the next completion.
            self._llm.sleep(level=2)

    def wake_up(self) -> None:
        if self._can_sleep:
            free_memory()  # what torch keeps for itself after training is vLLM's again
            self._llm.wake_up()

    def close(self) -> None:
        import gc

        # The processes of several GPUs would otherwise live, with their memory, as long as this one.
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()
        self._torch.set_num_threads(self._threads)


class _BrokenRow(Exception):
    def __init__(self, request_id: str) -> None:
        super().__init__(request_id)
        self.request_id = request_id


def _outputs(get_output: Callable[[], Any]) -> Any:
    """What a step of vLLM gave, before its tokens are taken: from broken logits, vLLM draws token 0."""
    outputs = get_output()
    for output in outputs.outputs:
        if output.num_nans_in_logits:
            raise _BrokenRow(output.request_id)
    return outputs


def _step(step: Callable[[], Any]) -> Any:
    """A step of vLLM's engine, in which every open completion gets a token."""
    still_working()
    return step()
