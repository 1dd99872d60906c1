"""Target of a command: the endpoint's URL from options and environment, and the facts about a run against it."""

import platform
from typing import Any

import aiohttp

from llmpod.loadtest.environ import Environment
from llmpod.loadtest.errors import UsageError
from llmpod.loadtest.options import QualityOptions, RunOptions, SmokeOptions, WatchOptions
from llmpod.loadtest.run.client import RUNPOD_BASE
from llmpod.loadtest.units import utc_now


def resolve(options: RunOptions | QualityOptions | WatchOptions | SmokeOptions, environment: Environment) -> str:
    """The endpoint's URL. Raises UsageError when there is none, or no key for RunPod's own."""
    paths = (options.openai_path, options.http_path) if isinstance(options, RunOptions) else ()
    for flag, path in zip(("--openai-path", "--http-path"), paths, strict=False):
        if not path.startswith("/"):  # it is put behind the host: "@elsewhere/" would be another host, with the key
            raise UsageError(f"{flag} '{path}' must start with /")
    if options.base_url:
        if not options.base_url.startswith(("http://", "https://")):
            raise UsageError(f"--base-url '{options.base_url}' must start with http:// or https://")
        if "@" in options.base_url.split("//", 1)[1].split("/", 1)[0]:
            raise UsageError("--base-url must not carry a user name or password; the key goes into RUNPOD_API_KEY")
        return str(options.base_url).rstrip("/")
    endpoint_id = options.endpoint_id or environment.endpoint_id
    if not endpoint_id:
        raise UsageError("which endpoint? Pass --endpoint-id, set RUNPOD_ENDPOINT_ID, or pass --base-url")
    if not all(char.isalnum() or char in "-_" for char in endpoint_id):
        raise UsageError(f"'{endpoint_id}' is no endpoint id: it has letters, digits and dashes only")
    if not environment.api_key:
        raise UsageError("RunPod wants a key: set RUNPOD_API_KEY in the environment")
    # RunPod serves the paths of a load-balancing endpoint elsewhere (docs: serverless/load-balancing/overview).
    by_http = isinstance(options, RunOptions) and options.mode == "http"
    return f"https://{endpoint_id}.api.runpod.ai" if by_http else f"{RUNPOD_BASE}/{endpoint_id}"


def made_by(options: RunOptions | QualityOptions, base_url: str) -> dict[str, Any]:
    """Facts about a run for its files: endpoint, time, versions, and --metadata."""
    extra = {}
    for text in options.metadata:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--metadata '{text}': write NAME=VALUE")
        extra[name] = value
    return {
        "endpoint": base_url,
        "started_at": utc_now(),
        "python": platform.python_version(),
        "aiohttp": aiohttp.__version__,
        "limits": options.limits,
        **extra,
    }
