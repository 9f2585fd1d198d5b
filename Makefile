# Every target prepares its own environment: `.venv`, with the project installed in place.
# A second call starts at once; only a change of pyproject.toml installs again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-slow test-soak lint format bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit(f"Python must be 3.11 or newer, but $(PYTHON) is {v[0]}.{v[1]}: name one with make PYTHON=python3.12")'
	@echo "preparing $(VENV): a minute or two, this once"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(READY) ## the whole product on real data: train, sweep, evaluate, predict, serve
	$(BIN)/dynamic-rnn demo $(ARGS)

test: $(READY) ## every test that is not marked slow or soak
	$(BIN)/python -m pytest -m "not slow and not soak" $(ARGS)

test-slow: $(READY) ## tests that kill processes, train through the command line, or use an object store
	$(BIN)/python -m pytest -m slow $(ARGS)

test-soak: $(READY) ## minutes each: clusters that lose nodes, more kills, memory over ten times the data
	$(BIN)/python -m pytest -m soak $(ARGS)

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## apply ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## every benchmark, as a table (ARGS=--quick for a minute each)
	@for f in benchmarks/[a-z]*.py; do $(BIN)/python $$f $(ARGS) || exit 1; done

bench-%: $(READY) ## one benchmark: make bench-train
	$(BIN)/python benchmarks/$*.py $(ARGS)

clean: ## remove what the targets made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
