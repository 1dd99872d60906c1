"""HTTP worker: a worker process with ports, the requests it holds and its health checks."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from llmpod.endpoint.balancer.routing import Health
from llmpod.endpoint.state.fleet_worker import FleetWorker


@dataclass(slots=True, eq=False)
class HttpWorker(FleetWorker):
    """One worker of a load balancer. Clock readings are monotonic seconds."""

    port: int = 0
    health_port: int = 0
    in_flight: int = 0
    turn: int = 0
    health: Health = Health.UNREACHABLE
    health_status: int | None = None
    """HTTP code of the latest health check; None: no answer."""
    health_ms: float | None = None
    failures: int = 0
    """Health checks in a row that were not healthy."""
    initializing_s: float | None = None
    """When a health check first said 204."""
    healthy_s: float | None = None
    """When one first said 200."""
    last_healthy_s: float | None = None

    @property
    def load(self) -> int:
        return self.in_flight

    @property
    def counted(self) -> bool:
        """An unhealthy one too: its process runs, and there are never more than workersMax."""
        return self.dead is None and not self.draining

    @property
    def routable(self) -> bool:
        return self.started and self.takes_work

    @property
    def cold_start_ms(self) -> int | None:
        """As RunPod measures it: from the first 204 to the first 200. None where there was no 204."""
        if self.healthy_s is None or self.initializing_s is None:
            return None
        return round(1000 * (self.healthy_s - self.initializing_s))


def free_ports(host: str, count: int) -> list[int]:
    """Different ports that nobody listens on now. Another process can still take one: that worker then crashes."""
    with_family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sockets = [socket.socket(with_family) for _ in range(count)]
    try:
        for one in sockets:
            one.bind((host, 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
