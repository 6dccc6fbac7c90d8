# Everything a developer runs. A machine needs git, make and Python 3.11 or newer; `make venv` brings the rest into .venv.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.synced
RUNTIME := $(VENV)/.synced-runtime
PYTHON ?= python3
UV_VERSION := 0.13.9

# The environment is .venv even when another one is active, and no interpreter is ever downloaded.
export UV_PROJECT_ENVIRONMENT := $(VENV)
export UV_PYTHON_DOWNLOADS := never
unexport VIRTUAL_ENV

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(STAMP) ## Build or update .venv from uv.lock

# $(call sync,OPTIONS): bring .venv to what uv.lock names.
define sync
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=/path/to/python3.12" >&2; exit 1; }
@if command -v uv >/dev/null 2>&1; then \
  uv sync --frozen --python "$(PYTHON)" $(1); \
else \
  [ -x $(BIN)/uv ] || { $(PYTHON) -m venv --clear $(VENV) && $(BIN)/python -m pip install --quiet 'uv==$(UV_VERSION)'; }; \
  $(BIN)/uv sync --frozen $(1); \
fi
endef

$(STAMP): pyproject.toml uv.lock
	$(call sync,)
	@touch $@ $(RUNTIME)

# Only what runs, beside what is there: nothing for the tests is installed for it, and nothing of theirs removed.
$(RUNTIME): pyproject.toml uv.lock
	$(call sync,--no-dev --inexact)
	@touch $@

.PHONY: demo
demo: $(RUNTIME) ## Two sagas, a killed worker, and how both end
	$(BIN)/ewe demo

# One number seeds every random program of a run; a failure is replayed with `make test SEED=…`.
SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
SEED := $(SEED)
JOBS ?= 2
ARGS ?=
PYTEST = EWE_TEST_SEED=$(SEED) $(BIN)/python -m pytest --hypothesis-seed=$(SEED) -n $(JOBS)

.PHONY: test
test: $(STAMP) ## Run the tests (SEED=, JOBS=, ARGS="-k name")
	@echo "seed: $(SEED)"
	$(PYTEST) $(ARGS)

.PHONY: test-long
test-long: $(STAMP) ## Run the tests with those that take minutes
	@echo "seed: $(SEED)"
	$(PYTEST) -m 'long or not long' $(ARGS)

# Tests that did not run keep what the page had of them: ARGS="-m proves" runs those that take minutes, too, ARGS=tests/crash some.
.PHONY: guarantees
guarantees: $(STAMP) ## Run the tests that prove something and write the page of guarantees (ARGS=)
	$(PYTEST) -m 'proves and not long' --guarantees=docs/explanation/guarantees.md $(ARGS)

SEEDS ?= 1000
FIRST ?= $(SEED)
.PHONY: simulate
simulate: $(STAMP) ## Run whole clusters with faults in simulated time (SEEDS=20000, FIRST=, JOBS=)
	$(BIN)/python -m event_workflow_engine.testing.simulation --seeds $(SEEDS) --first $(FIRST) --jobs $(JOBS)

.PHONY: fmt
fmt: $(STAMP) ## Format the code and apply the safe fixes
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

.PHONY: lint
lint: $(STAMP) ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(STAMP) ## Check the types with mypy --strict
	$(BIN)/mypy --strict src

.PHONY: imports
imports: $(STAMP) ## Check the layers
	$(BIN)/lint-imports

.PHONY: docs
docs: $(STAMP) ## Build the documentation into site/, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.PHONY: gates
gates: lint types imports docs ## Everything that CI asks beside the tests

.PHONY: check
check: test gates ## Everything that CI asks

.PHONY: bench
bench: $(STAMP) ## Measure speed beside its peers and raw limits
	$(BIN)/python -m benchmarks $(ARGS)

.PHONY: mutants
mutants: $(STAMP) ## Put small faults into the deciding modules, see the tests fail
	nice $(BIN)/python -m mutants $(ARGS)

.PHONY: lock
lock: $(STAMP) ## Resolve the dependencies anew into uv.lock, from the default index only
	env -u UV_INDEX -u UV_INDEX_URL -u UV_DEFAULT_INDEX -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS \
	  $$(command -v uv || echo $(BIN)/uv) lock --no-config

.PHONY: clean
clean: ## Remove everything that make made
	rm -rf $(VENV) site dist build .cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
