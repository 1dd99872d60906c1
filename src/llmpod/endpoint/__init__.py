"""A RunPod endpoint on your own machine: queue, autoscaler, real worker processes, the public API.

In a test or a bench, in the running event loop:

    from llmpod.endpoint import LocalEndpoint, Options

    options = Options(port=0, command=[sys.executable, "-u", "handler.py"], cwd=folder, workers_min=1, workers_max=1,
                      ping_interval_ms=1000, take_hold_s=2, stop_hold_s=2, journal="", console=False)
    async with LocalEndpoint(options) as endpoint:       # port 0: a free one; leaving kills every worker process
        await endpoint.ready(workers=1)                  # the ids of workers that have asked for jobs
        endpoint.url                                     # http://127.0.0.1:PORT/v2/local: + "/run", "/runsync" ...
        endpoint.base_url, endpoint.openai_url           # for RunPod's clients, for OpenAI's
        endpoint.set_faults(take_policy="one", post_latency_ms=50)
        endpoint.kill_worker(worker_id)                  # SIGKILL; its jobs are queued again
        endpoint.listen(lambda job, was, reason: ...)    # every job transition
        endpoint.job(job_id).state, endpoint.worker(worker_id).logs

A worker process of your own instead of the fleet's:

    async with LocalEndpoint(Options(port=0, fleet=False, journal="", console=False)) as endpoint:
        process = await asyncio.create_subprocess_exec(..., env=os.environ | endpoint.worker_env("my-worker"))
        await endpoint.ready()
        ...
        endpoint.lose_worker("my-worker")                # optional: otherwise its death shows when its pings stop

RunPod's other endpoint type, whose workers are HTTP servers on the PORT of their environment:

    async with LoadBalancer(Options(kind="load-balancer", port=0, command=[...], workers_min=1)) as endpoint:
        await endpoint.ready()
        endpoint.url                                     # http://127.0.0.1:PORT: every path is the workers'

Time-related options are short in tests for a reason: a held job-take delays a worker's reaction to SIGTERM.
"""

from llmpod.endpoint.balancer.balancer import LoadBalancer
from llmpod.endpoint.cli import serve
from llmpod.endpoint.endpoint import LocalEndpoint
from llmpod.endpoint.errors import StartError
from llmpod.endpoint.faults import Fault, Faults
from llmpod.endpoint.options import Options
from llmpod.endpoint.state.fleet_worker import WorkerState
from llmpod.endpoint.state.job import Job, JobState

__all__ = [
    "Fault",
    "Faults",
    "Job",
    "JobState",
    "LoadBalancer",
    "LocalEndpoint",
    "Options",
    "StartError",
    "WorkerState",
    "serve",
]
