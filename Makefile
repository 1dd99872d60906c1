# Two commands are enough to start: `make run` and `make test`. Each sets up .venv from nothing when it has to.
PY := .venv/bin/python

.PHONY: help setup run serve test bench-endpoint bench-loadtest lint format lock

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

setup: ## .venv from the locks (seconds when nothing changed)
	@builder/setup.sh

run: setup ## answer test_input.json with the demo model
	@$(PY) handler.py

serve: setup ## a RunPod endpoint on http://127.0.0.1:8000/v2/local with real worker processes
	@$(PY) -m llmpod.endpoint --workers-min 1 --workers-max 1 $(ARGS)

test: setup ## every test
	@builder/test_tools.sh
	$(PY) -m pytest

bench-loadtest: setup ## what the load tester adds to a latency, its memory, its report
	@$(PY) bench/loadtest.py

lint: setup ## ruff and mypy
bench-endpoint: setup ## latency, throughput and memory of the local endpoint, as a table
	@$(PY) bench/endpoint.py

lint: setup ## ruff, mypy, generated docs up to date
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) builder/endpoint_docs.py --check

format: setup ## let ruff mend what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

lock: setup ## recompile the locks from builder/*.in
	builder/lock.sh
