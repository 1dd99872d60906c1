"""HTTP mode: requests straight to a load-balancing endpoint, or to any server with such a route.

There is no queue and no job: the reply is the answer, TTFT and totals are what the client saw, and delay and execution
time are unknown.
"""

from typing import Any

from llmpod.loadtest.model.failures import error_text, submit_class
from llmpod.loadtest.model.job_record import Job
from llmpod.loadtest.run.client import Reply
from llmpod.loadtest.run.context import RunContext
from llmpod.loadtest.run.stream_modes import Route, one_request

NO_WORKER = ("no workers available", "timed out waiting for worker")
"""Texts with which RunPod's load balancer gives a request up after two minutes; the HTTP code is 400."""


def base_url(endpoint_id: str) -> str:
    """Where RunPod serves the paths of a load-balancing endpoint (docs: serverless/load-balancing/overview)."""
    return f"https://{endpoint_id}.api.runpod.ai"


def refusal_class(reply: Reply) -> str:
    """The error class of a reply that is no answer: as for a submit, but for RunPod's 400 that blames no request."""
    said = error_text(reply.body.get("error")) if isinstance(reply.body, dict) else None
    return "no_worker" if said in NO_WORKER else submit_class(reply.status)


async def http(context: RunContext, job: Job, body: dict[str, Any]) -> None:
    """POST --http-path: server-sent events where the server streams, else one JSON value of any shape."""
    await one_request(
        context, job, body, Route("http", context.options.http_path, any_json=True, refusal_class=refusal_class)
    )
