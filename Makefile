# Two commands are enough to start: `make run` and `make test`. Each sets up .venv from nothing when it has to.
PY := .venv/bin/python

.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*/\1/p' $(MAKEFILE_LIST)) # no target is a file

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: ## .venv from the locks (seconds when nothing changed)
	@builder/setup.sh

run: setup ## answer test_input.json with the demo model
	@$(PY) handler.py

serve: setup ## a RunPod endpoint on http://127.0.0.1:8000/v2/local with real worker processes
	@$(PY) -m llmpod.endpoint --workers-min 1 --workers-max 1 $(ARGS)

test: setup ## every test
	$(PY) -m pytest

bench-endpoint: setup ## latency, throughput and memory of the local endpoint, as a table
	@$(PY) bench/endpoint.py

lint: setup ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m builder.generate --check

format: setup ## let ruff mend what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: setup ## write what is generated from the settings
	$(PY) -m builder.generate

lock: setup ## recompile the locks from builder/*.in
	builder/lock.sh

model: setup ## train the demo model anew (minutes, deterministic) into models/demo
	$(PY) -m builder.demo_model.train

compat: setup ## the tests that touch vLLM, against an older release (VERSION=0.28.0)
	builder/compat.sh $(VERSION)
