#!/usr/bin/env bash
# Recompiles every lock from its hand-written .in file: builder/lock.sh [--upgrade]
# Existing pins are kept unless --upgrade is given. No index address is written into a lock.
set -euo pipefail
cd "$(dirname "$0")"
UV=${UV:-../.uv/bin/uv}

find_links=()
for place in ${PIP_FIND_LINKS:-}; do find_links+=(--find-links "$place"); done
if [ ${#find_links[@]} -eq 0 ]; then torch_source=(--torch-backend cpu); else torch_source=("${find_links[@]}"); fi

compile() { # compile OUTPUT INPUT [uv options]
    local output=$1 input=$2
    shift 2
    "$UV" pip compile --quiet --no-header --generate-hashes --no-emit-index-url --no-emit-find-links \
        --output-file "$output" "$@" "$input"
}

compile uv.txt uv.in --universal "$@"
compile requirements-cpu.txt requirements-cpu.in --override overrides-cpu.txt --universal --python-version 3.11 \
    --no-emit-package torch "${torch_source[@]}" "$@"
compile requirements-dev.txt requirements-dev.in --override overrides-cpu.txt --universal --python-version 3.11 \
    --no-emit-package torch "${torch_source[@]}" "$@"
# The GPU image is vLLM's own: Python 3.12 on x86_64 Linux.
compile ../requirements.txt requirements-gpu.in --override overrides.txt \
    --python-version 3.12 --python-platform x86_64-manylinux_2_35 "$@"
