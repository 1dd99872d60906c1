# Two commands are enough to start: `make run` and `make test`. Each sets up .venv from nothing when it has to.
PY := .venv/bin/python

.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*/\1/p' $(MAKEFILE_LIST)) # no target is a file

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

setup: ## .venv from the locks (seconds when nothing changed)
	@builder/setup.sh

run: setup ## answer test_input.json with the demo model
	@$(PY) handler.py

serve: setup ## a RunPod endpoint on http://127.0.0.1:8000/v2/local with real worker processes
	@MODEL_NAME=$${MODEL_NAME:-llmpod-demo} $(PY) -m llmpod.endpoint --workers-min 1 --workers-max 1 $(ARGS)

test: setup ## every test: first what needs no engine, then the engine's, then what needs the machine for itself
	@builder/test_tools.sh
	$(PY) -m pytest -n 3 --dist worksteal -m "not engine and not alone"
	$(PY) -m pytest -n 2 --dist loadfile -m "engine and not alone"
	$(PY) -m pytest -m alone

test-fast: setup ## what needs no engine, no worker process and no browser: under a minute
	$(PY) -m pytest -q -n 2 --dist worksteal -m "not engine and not process and not browser"

lint: setup ## ruff, mypy, generated docs up to date
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m builder.generate --check
	$(PY) builder/endpoint_docs.py --check

format: setup ## let ruff mend what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: setup ## write what is generated from the settings
	$(PY) -m builder.generate
	$(PY) builder/endpoint_docs.py

lock: setup ## recompile the locks from builder/*.in
	builder/lock.sh

model: setup ## train the demo model anew (minutes, deterministic) into src/llmpod/worker/demo_model
	$(PY) -m builder.demo_model.train

compat: setup ## the tests that touch vLLM, against an older release (VERSION=0.28.0)
	builder/compat.sh $(VERSION)

chaos: setup ## minutes of mixed jobs, a failing network and killed workers (CHAOS_SECONDS=300)
	CHAOS_SECONDS=$(or $(CHAOS_SECONDS),300) $(PY) -m pytest tests/worker/test_chaos.py

fuzz: setup ## minutes of hostile jobs through the worker and a real engine (FUZZ_SECONDS=300 FUZZ_SEED=1)
	FUZZ_SECONDS=$(or $(FUZZ_SECONDS),300) $(PY) -m pytest -s tests/worker/test_fuzz.py

bench: setup ## all of the following: every figure of bench/README.md
	@$(MAKE) --keep-going --no-print-directory bench-worker bench-routes bench-http bench-loop bench-endpoint bench-policy bench-constraints bench-loadtest bench-evidence

bench-worker: setup ## the worker against the bare engine and the SDK's own loop, through RunPod's protocol (ARGS=--cpu: processor time)
	@$(PY) bench/worker.py $(ARGS)

bench-routes: setup ## vLLM's routes inside the worker against the bare engine
	@$(PY) bench/routes.py $(ARGS)

bench-http: setup ## the worker's HTTP server beside vLLM's own, with the same engine (ARGS=--quick)
	@$(PY) bench/http_server.py $(ARGS)

bench-start: setup ## what a start costs, phase by phase, and what compiled code that is kept saves of it
	@$(PY) bench/start.py $(ARGS)

bench-loop: setup ## the job loop alone, around an engine of a known pace
	@$(PY) bench/loop.py

bench-endpoint: setup ## latency, throughput and memory of the local endpoint
	@$(PY) bench/endpoint.py

bench-constraints: setup ## what structured outputs cost to compile, by the size of the vocabulary
	@$(PY) bench/constraints.py

bench-policy: setup ## how many questions a profile's policy lets through or blocks wrongly, with and without the judge
	@$(PY) bench/policy.py $(ARGS)

bench-loadtest: setup ## what the load tester adds to a latency, its memory, its report
	@$(PY) bench/loadtest.py

bench-evidence: setup ## how often the load tester's sentences are wrong and its intervals hold (minutes)
	@$(PY) bench/evidence.py $(ARGS)
