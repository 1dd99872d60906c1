"""Serialisation check: decodes each request as the engine's process will, before it is sent there.

vLLM's engine decodes requests in a thread of its process, and decoding checks the parameters once more. A request that
fails there ends the thread: the process goes on without receiving requests (vllm/v1/engine/core.py,
`process_input_sockets`). Parameters are checked when they are created, so only values changed afterwards, by this
worker or by vLLM, can fail here.
"""

from __future__ import annotations

import copy
from typing import Any

from llmpod.worker.engine import sampling
from llmpod.worker.errors import Code, JobError
from llmpod.worker.jobs import metering


def check(llm: Any) -> None:
    """Decode every request of `llm`, an AsyncLLM, before its engine's process gets it."""
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    refusal = sampling.vllm_exception("VLLMValidationError")
    core = llm.engine_core
    send = core.add_request_async
    encoder, decoder = MsgpackEncoder(), MsgpackDecoder(EngineCoreRequest)

    async def add_request_async(request: Any) -> None:
        read = copy.copy(request)
        read.mm_features = read.prompt_embeds = None  # vLLM's own tensors, which may be large
        try:
            decoder.decode(encoder.encode(read))
            outputs = getattr(read.sampling_params, "structured_outputs", None)
            if outputs is not None and outputs._backend is None:
                raise ValueError("its structured_outputs are not checked")
        except Exception as error:
            await llm.abort(request.request_id, internal=True)
            message = f"The engine cannot take this: {error}"
            metering.refuse(JobError(Code.INVALID_INPUT, message))
            raise refusal(message) from error
        await send(request)

    core.add_request_async = add_request_async
