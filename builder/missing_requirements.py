"""Lists requirements of a lock file that are not installed, with their hashes, for building on a base image.

python missing_requirements.py LOCK                print the requirements that are missing altogether
python missing_requirements.py LOCK --same NAME    exit 1 unless NAME is installed at the lock's version
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Collection
from pathlib import Path


def entries(lock: str) -> dict[str, str]:
    """Normalised package name -> its lines in the lock, hashes included."""
    found: dict[str, str] = {}
    name = ""
    for line in lock.splitlines():
        if line and not line[0].isspace() and not line.startswith("#"):
            name = normalise(re.split(r"[=\s\[;]", line, maxsplit=1)[0])
            found[name] = line
        elif name and line.strip().startswith("--hash"):
            found[name] += f"\n{line}"
    return found


def version(entry: str) -> str:
    """The pinned version of one entry, without a local part (+cu130)."""
    return entry.split("==", 1)[1].split()[0].split("+")[0]


def normalise(name: str) -> str:
    """PEP 503: names that differ only in case, dots, dashes and underscores are one."""
    return re.sub(r"[-_.]+", "-", name).lower()


def missing(lock: str, installed: Collection[str]) -> str:
    """The entries of `lock` whose package is not among `installed` (normalised names)."""
    return "\n".join(entry for name, entry in entries(lock).items() if name not in installed)


def main(arguments: list[str]) -> int:
    lock = Path(arguments[0]).read_text()
    if arguments[1:2] == ["--same"]:
        name = arguments[2]
        wanted = version(entries(lock)[name])
        has = importlib.metadata.version(name).split("+")[0]
        if has != wanted:
            print(f"{name} {has} is installed, the lock has {wanted}", file=sys.stderr)
        return 0 if has == wanted else 1
    installed = {normalise(found.metadata["Name"]) for found in importlib.metadata.distributions()}
    print(missing(lock, installed))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
