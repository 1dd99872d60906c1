"""The only module of the package that reads the environment: the API key's default, the variables that worker processes
inherit, the SDK's own key, and which names are this machine's."""

from __future__ import annotations

import os
import tomllib
from ipaddress import ip_address
from pathlib import Path

API_KEY_VARIABLE = "LLMPOD_ENDPOINT_API_KEY"


def inherited_environment() -> dict[str, str]:
    """What a worker process inherits: our environment without the endpoint's own key and without RunPod's variables."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != API_KEY_VARIABLE and not name.startswith(("RUNPOD_WEBHOOK_", "RUNPOD_POD_"))
    }


def environment_api_key() -> str | None:
    return os.environ.get(API_KEY_VARIABLE) or None


def sdk_config_key(home: Path | None = None) -> str | None:
    """The key in ~/.runpod/config.toml: the SDK prefers it to RUNPOD_AI_API_KEY (http_client.py)."""
    path = (home or Path.home()) / ".runpod" / "config.toml"
    try:
        profile = tomllib.loads(path.read_text()).get("default", {})
    except (OSError, tomllib.TOMLDecodeError):
        return None
    key = profile.get("api_key")
    return key if isinstance(key, str) else None


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
