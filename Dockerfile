# syntax=docker/dockerfile:1.7
# The GPU worker: vLLM's own image, and from requirements.txt what it lacks.
#
#   docker build -t you/llmpod .                                            the model comes from a volume or the hub
#   docker build -t you/llmpod --build-arg MODEL_NAME=Qwen/Qwen2.5-7B-Instruct .         the model is baked in
#   docker build … --secret id=HF_TOKEN,env=HF_TOKEN .                      a gated one, too
ARG VLLM_VERSION=v0.32.0
FROM vllm/vllm-openai:${VLLM_VERSION}

WORKDIR /app
COPY requirements.txt builder/download_model.py builder/missing_requirements.py builder/

# The base image is one set of versions that vLLM built and tested together, so only what it lacks is added, from the
# lock; the last line fails the build if the image's vLLM is not the lock's.
RUN python3 builder/missing_requirements.py builder/requirements.txt > /tmp/missing.txt \
    && uv pip install --system --no-cache --no-deps --require-hashes -r /tmp/missing.txt \
    && rm /tmp/missing.txt \
    && python3 builder/missing_requirements.py builder/requirements.txt --same vllm

# The worker's user may not write bytecode beside the packages: without this, every process of every cold start compiles
# vLLM and torch for itself, which doubles the time of their import. (Some packages hold templates that are no Python.)
RUN python3 -c 'import importlib.util as u, pathlib as p; print(p.Path(u.find_spec("vllm").origin).parents[1])' \
    | xargs python3 -m compileall -q -j 0 > /dev/null || true

# A model baked in: /models/OWNER/NAME, where the worker looks before it asks the hub. The token is never in a layer.
ARG MODEL_NAME=""
ARG MODEL_REVISION=""
RUN --mount=type=secret,id=HF_TOKEN,required=false \
    python3 builder/download_model.py --name "${MODEL_NAME}" --revision "${MODEL_REVISION}" \
    --token-file /run/secrets/HF_TOKEN --to /models

# The package is put on the path and not installed: a build backend would be the one thing here without a hash.
COPY src src
COPY handler.py test_input.json ./
RUN python3 -m compileall -q src

# What the worker's first log line says it was built from: --build-arg LLMPOD_COMMIT=$(git rev-parse HEAD)
ARG LLMPOD_COMMIT=""
LABEL org.opencontainers.image.revision=${LLMPOD_COMMIT}

# RunPod mounts network volumes and cached models at /runpod-volume.
ENV MODEL_NAME=${MODEL_NAME} \
    MODEL_REVISION=${MODEL_REVISION} \
    LLMPOD_COMMIT=${LLMPOD_COMMIT} \
    HF_HOME=/runpod-volume/huggingface-cache \
    PYTHONPATH=/app/src \
    PYTHONUNBUFFERED=1

# An ordinary user. Where a network volume is writable by root alone, build with --build-arg RUN_AS=root.
ARG RUN_AS=worker
RUN useradd --create-home --uid 10001 worker
USER ${RUN_AS}

# Of the HTTP server, on a load-balancing endpoint; a queue needs none.
EXPOSE 80

# PID 1: RunPod's SIGTERM reaches the worker itself, and nothing outlives it.
ENTRYPOINT ["python3", "-u", "/app/handler.py"]
