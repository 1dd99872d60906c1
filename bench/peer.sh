#!/usr/bin/env bash
# bench/peer.sh DIR [COMMAND]: `make bench` with another worker's checkout beside ours, in the same environment.
set -euo pipefail
cd "$(dirname "$0")/.."
exec .venv/bin/python bench/worker.py --no-stock --peer "${1:?usage: bench/peer.sh DIR [COMMAND]}" \
    ${2:+--peer-command "$2"}
