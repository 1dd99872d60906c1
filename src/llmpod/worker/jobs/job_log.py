"""Log lines of a job: exactly one `start` and one `end` event."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal

from llmpod.worker.errors import Code, JobError, RouteError
from llmpod.worker.event_log import Emit
from llmpod.worker.jobs.bounds import Size
from llmpod.worker.jobs.engine_output import Step, Timings
from llmpod.worker.jobs.inputs import NativeRequest
from llmpod.worker.jobs.limits import MaxTokens, constrained
from llmpod.worker.jobs.metering import JobMeter
from llmpod.worker.jobs.native_reply import Answer, Reply
from llmpod.worker.tracing import JobSpan, open_tracer

Outcome = Literal["ok", "blocked", "rejected", "error", "cancelled", "timeout"]


class JobRecord:
    """Collects the fields of a job's two events. The first call of `end` decides the outcome; later ones do nothing."""

    def __init__(self, job_id: str, emit: Emit, *, log_prompts: bool, traced: str | None = None) -> None:
        """`traced`: the served model, if there is to be a span, which becomes the parent of vLLM's."""
        self.id = job_id
        self.stream = False
        self.intent: str | None = None
        self.policy: Mapping[str, str] | None = None  # of a blocked job: which one, and by which of its rules
        self.task: str | None = None  # the profile's task that the job names
        self.max_tokens: MaxTokens | None = None
        self.route = "native"
        self.model: str | None = None  # the model's name in a route job's request, else its served name
        self.streaming = False  # part of a route's stream has been sent
        self.content_type: str | None = None  # of a route's answer, with its parameters
        self.constrained = False  # whether the answer has a structured output
        self.generated = False  # the engine has finished; what is left to send need not wait for more
        self.adapted: Mapping[str, Any] = {}  # fields taken under another name, and ignored ones
        self.interruption: JobError | None = None  # why the job is interrupted, if it was not cancelled
        self.size = Size()  # of its input
        self.meter = JobMeter()  # the engine's work for the job
        self.span = None if traced is None else JobSpan(open_tracer(), job_id, traced)
        self.meter.trace_headers = self.span.headers if self.span is not None else None
        self.delivers = False  # whether its result is sent after its end, which is part of its span
        self._emit = emit
        self._log_prompts = log_prompts
        self._received = time.monotonic()
        self._finished: float | None = None
        self._result: dict[str, Any] = {}
        self._started = False
        self._ended = False

    def arrived(self) -> None:
        """Times are counted from now on, and not from the arrival of a request's first byte."""
        self._received = time.monotonic()

    def start(self, request: NativeRequest, max_tokens: MaxTokens, *, validation_enabled: bool) -> None:
        """Record the parsed input of a native job."""
        self.stream = request.stream
        self.constrained = constrained(request.sampling) or request.task is not None
        self.max_tokens = max_tokens
        self.task = request.task
        self.adapted = request.adapted
        self._start(
            prompt_len=request.chars,
            max_tokens=max_tokens.effective,
            stream=request.stream,
            validation_enabled=validation_enabled,
            prompt=list(request.texts) if self._log_prompts else None,
        )

    def start_route(
        self,
        *,
        stream: bool,
        model: str | None,
        prompt_len: int,
        max_tokens: MaxTokens | None = None,
        client: Mapping[str, str] | None = None,
        texts: tuple[str, ...] = (),
    ) -> None:
        """Record the body of a route job. `client`: the ids by which the client knows the request."""
        self.stream = stream
        self.model = model
        self.max_tokens = max_tokens
        self._start(
            model=model,
            prompt_len=prompt_len,
            max_tokens=max_tokens.effective if max_tokens else None,
            stream=stream,
            validation_enabled=False,
            client=dict(client) if client else None,
            prompt=list(texts) if self._log_prompts else None,
        )

    def finish_route(self) -> None:
        """Record that vLLM's application has completed the answer.

        Pooling requests and requests that were cut off have no timings: vLLM gives none.
        """
        self._finished = time.monotonic()
        self._result = {"model": self.model}
        if self.meter.requests:
            self._result |= self._counts() | {
                "finish_reason": self.meter.finish_reason,
                "complete": self._complete(cut=self.meter.cut),
                "engine_requests": self.meter.requests if self.meter.requests > 1 else None,
            }
        if self.meter.timings is not None:
            self._result |= self._times(self.meter.timings)

    def finish(self, step: Step, answer: Answer, validation: Reply | None) -> None:
        """Record the engine's last step. With several answers, `finish_reason` is the first one's.

        Execution time ends here; the line is written when the last reply has been sent.
        """
        self._finished = time.monotonic()
        self.generated = True
        self._result = {
            "prompt_tokens": step.usage.prompt_tokens,
            "cached_tokens": self.meter.cached_tokens,
            "tokens_generated": step.usage.completion_tokens,
            "finish_reason": answer.finish_reasons.get(0),
            "complete": self._complete(cut="length" in answer.finish_reasons.values()),
            "valid": validation.get("valid") if validation else None,
            "sanitized": validation.get("sanitized") or None if validation else None,
            "answer": [text for _, text in sorted(answer.texts.items())] if self._log_prompts else None,
        }
        if step.timings is not None:
            self._result |= self._times(step.timings)

    def _complete(self, *, cut: bool) -> bool | None:
        return not cut if self.constrained else None

    @property
    def _wait_ms(self) -> float | None:
        """From the job's arrival until its first engine request got a slot; None: it never did."""
        submitted = self.meter.submitted
        return None if submitted is None else round((submitted - self._received) * 1000, 1)

    def _counts(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.meter.prompt_tokens,
            "cached_tokens": self.meter.cached_tokens,
            "tokens_generated": self.meter.completion_tokens,
        }

    def _times(self, timings: Timings) -> dict[str, float]:
        return {
            "ttft_ms": round((self._wait_ms or 0.0) + timings.queue_ms + timings.prefill_ms, 1),
            "queue_ms": timings.queue_ms,
            "prefill_ms": timings.prefill_ms,
            "decode_ms": timings.decode_ms,
        }

    def fail(self, error: JobError) -> None:
        """End the job as failed: `blocked` by policy, `rejected` for invalid input, otherwise `timeout` or `error`.

        A job that had been stopped before it began is `cancelled`, as one that is stopped later.
        """
        if error.code is Code.CANCELLED:
            self.end("cancelled", error=error.failure.code)
            return
        if error.failure.status < 500:
            # No message: it may quote what the client sent.
            blocked = error.code is Code.BLOCKED
            self.end("blocked" if blocked else "rejected", error=error.failure.code, field=error.field)
            return
        outcome: Outcome = "timeout" if error.code is Code.TIMEOUT else "error"
        quoted = isinstance(error, RouteError) and error.quotes_client
        self.end(outcome, error=error.failure.code, message=None if quoted else error.message)

    def cut_short(self) -> None:
        """End a job that was interrupted: failed if there is an `interruption`, otherwise cancelled."""
        if self.interruption is not None:
            self.fail(self.interruption)
        else:
            self.end("cancelled")

    def end(self, outcome: Outcome, **fields: Any) -> None:
        """Write the end event, preceded by a start event if the job's input was never parsed."""
        if self._ended:
            return
        self._ended = True
        if not self._started:
            self._start()
        line = dict(
            route=self.route,
            ok=outcome == "ok",
            outcome=outcome,
            exec_ms=round(((self._finished or time.monotonic()) - self._received) * 1000, 1),
            wait_ms=self._wait_ms,
            intent=self.intent,
            policy=self.policy,
            task=self.task,
            max_tokens=self.max_tokens.as_dict() if self.max_tokens else None,
            **self.adapted,
            **(self._counts() if self.meter.generated else {}) | self._result,
            **fields,
        )
        self._emit("end", request_id=self.id, **line)
        if self.span is not None:
            self.span.describe(line)
        if not self.delivers:
            self.close()

    def close(self) -> None:
        """End the job's span: its result has been delivered, or will be by somebody else."""
        if self.span is not None:
            self.span.close(delivered=self.delivers)

    def _start(self, **fields: Any) -> None:
        if self._started:  # the job ended while a thread was still reading it
            return
        self._started = True
        self._emit("start", request_id=self.id, route=self.route, **fields)
