"""What vLLM's server does with an answer whose logits are NaN or infinite: an error in place of one token without end."""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any

from align.engines.vllm_worker import EngineWorker


def refuse_broken_answers() -> None:
    """End every such request with status 500 at its first token of that kind, and say so once for each in the output.

    To be called in the server's process, before it starts. vLLM counts NaN in the process of its engine if
    VLLM_COMPUTE_NANS_IN_LOGITS says so, and hands the count over with each token; `EngineWorker`, which must be in that process,
    lets it count infinities too.
    """
    from vllm.v1.engine import FinishReason
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import OutputProcessor

    add, counting = AsyncLLM.add_request, set[int]()

    @wraps(add)
    async def add_counted(self: Any, *arguments: Any, **named: Any) -> Any:
        if id(self) not in counting:  # there is no place for it between the engine's start and the first request
            await self.collective_rpc(EngineWorker.count_broken_logits.__name__)
            counting.add(id(self))
        return await add(self, *arguments, **named)

    AsyncLLM.add_request = add_counted

    process = OutputProcessor.process_outputs

    @wraps(process)
    def checked(self: Any, outputs: list[Any], *rest: Any, **named: Any) -> Any:
        broken = [output for output in outputs if output.num_nans_in_logits and output.request_id in self.request_states]
        going_on = [output.request_id for output in broken if output.finish_reason is None]
        for output in broken:
            output.finish_reason = FinishReason.ERROR
            print("The model's logits are NaN or infinite: the answer is given up, with status 500.", file=sys.stderr, flush=True)
        result = process(self, outputs, *rest, **named)
        result.reqs_to_abort.extend(going_on)  # else the engine would go on with them
        return result

    OutputProcessor.process_outputs = checked
