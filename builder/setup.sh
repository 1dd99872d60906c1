#!/usr/bin/env bash
# Makes .venv from the locks, from nothing: builder/setup.sh
# Safe to call every time: it does nothing when .venv already matches the locks.
set -euo pipefail
cd "$(dirname "$0")/.."

locks=(builder/uv.txt builder/torch-cpu.txt builder/requirements-cpu.txt builder/requirements-dev.txt)
wanted=$(cat "${locks[@]}" builder/setup.sh | sha256sum | cut -d' ' -f1)
if [ -x .venv/bin/python ] && [ "$(cat .venv/.llmpod-locks 2>/dev/null)" = "$wanted" ]; then exit 0; fi

python=""
for candidate in python3.11 python3.12 python3.13 python3.14 python3; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "setup: no Python 3.11 to 3.14 found; install one (Debian: apt-get install python3 python3-venv) and run this again" >&2
    exit 1
fi

uv=$(command -v uv || true)
if [ -z "$uv" ]; then
    if [ ! -x .uv/bin/uv ]; then
        echo "setup: installing uv into .uv" >&2
        "$python" -m venv .uv || {
            echo "setup: '$python -m venv' failed; install it (Debian: apt-get install python3-venv) or put uv on PATH" >&2
            exit 1
        }
        .uv/bin/python -m pip install --quiet --require-hashes -r builder/uv.txt
    fi
    uv=$PWD/.uv/bin/uv
fi

torch_source=()
for place in ${PIP_FIND_LINKS:-}; do torch_source+=(--find-links "$place"); done
if [ ${#torch_source[@]} -eq 0 ]; then torch_source=(--torch-backend cpu); fi

echo "setup: building .venv with $("$python" --version)" >&2
rm -rf .venv
"$uv" venv --quiet --python "$("$python" -c 'import sys; print(sys.executable)')" .venv
# Compiled now: otherwise each of vLLM's processes compiles it anew where Python may not write (PYTHONDONTWRITEBYTECODE).
VIRTUAL_ENV=$PWD/.venv "$uv" pip install --quiet --compile-bytecode --no-deps --require-hashes "${torch_source[@]}" \
    -r builder/torch-cpu.txt -r builder/requirements-cpu.txt -r builder/requirements-dev.txt
# The package itself, editable: the checkout is what runs, and the `llmpod` command is there.
VIRTUAL_ENV=$PWD/.venv "$uv" pip install --quiet --no-deps --no-build-isolation --editable .
echo "$wanted" > .venv/.llmpod-locks
