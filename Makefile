# Every target prepares its own environment: `.venv`, with the project installed in place and the versions of
# constraints.txt. A second call starts at once; only a change of that file or of pyproject.toml installs again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LATEST := .venv-latest
LOCK := .venv-lock
PIP_INSTALL := python -m pip install --quiet

.PHONY: help demo test test-slow test-soak test-latest lock lint format bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# $(call environment,FOLDER): a virtual environment with the newest pip
define environment
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit(f"Python must be 3.11 or newer, but $(PYTHON) is {v[0]}.{v[1]}: name one with make PYTHON=python3.12")'
	@echo "preparing $(1): a minute or two"
	@$(PYTHON) -m venv $(1)
	@$(1)/bin/$(PIP_INSTALL) --upgrade pip
endef

# The versions are constraints, no requirements: which build of torch is installed, with or without CUDA, stays the
# choice of the machine's pip, and a build brings only what it needs itself. Packages that come as source are built
# with locked tools, too.
$(READY): pyproject.toml constraints.txt
	$(call environment,$(VENV))
	@$(BIN)/$(PIP_INSTALL) --constraint constraints.txt --build-constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## the whole product on real data: train, sweep, evaluate, predict, serve
	$(BIN)/dynamic-rnn demo $(ARGS)

test: $(READY) ## every test that is not marked slow or soak
	$(BIN)/python -m pytest -m "not slow and not soak" $(ARGS)

test-slow: $(READY) ## tests that kill processes, train through the command line, or use an object store
	$(BIN)/python -m pytest -m slow $(ARGS)

test-soak: $(READY) ## minutes each: clusters that lose nodes, more kills, memory over ten times the data
	$(BIN)/python -m pytest -m soak $(ARGS)

test-latest: ## the same tests as test, with the newest versions that pyproject.toml allows
	$(call environment,$(LATEST))
	@$(LATEST)/bin/$(PIP_INSTALL) --upgrade --upgrade-strategy eager --editable '.[dev]'
	$(LATEST)/bin/python -m pytest -m "not slow and not soak" $(ARGS)

# What builds of torch for CUDA bring differs by the build, so it is left out: a lock of one would refuse the others.
lock: ## write constraints.txt anew: keeps what still fits (ARGS=--upgrade: the newest of all)
	$(call environment,$(LOCK))
	@$(LOCK)/bin/$(PIP_INSTALL) --upgrade 'uv>=0.13,<1'
	@$(LOCK)/bin/uv pip compile --quiet --universal --python-version 3.11 --python $(LOCK) --no-python-downloads \
		--all-extras --annotation-style line --custom-compile-command 'make lock' $(ARGS) \
		--output-file constraints.txt pyproject.toml
	@sed -i -E '/^(cuda|nvidia)-|^triton==/d' constraints.txt

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
	rm -rf $(VENV) $(LATEST) $(LOCK) .pytest_cache .mypy_cache .ruff_cache
