# What contributors and CI call; `make` alone lists it. Options: EXTRAS=dev,gpu for setup, ARGS='-k name -x' for pytest.
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-cluster lint format docs clean

EXTRAS ?= dev
ARGS ?=
# Read when used, after `setup` has made an environment where none was active.
PYTHON = $(shell ./setup.sh --print-python)
BIN = $(dir $(PYTHON))
PYTEST = $(PYTHON) -m pytest $(ARGS)
# Three test processes on two cores: many tests wait for processes that they started. Empty: one.
PARALLEL ?= -n 3
SHELL_SCRIPTS = setup.sh .ci/run $(shell find launch slurm docker tests -name '*.sh' -o -name '*.sbatch')

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup:  ## install everything (idempotent)
	@EXTRAS=$(EXTRAS) ./setup.sh

demo: setup  ## install, then the whole pipeline on the embedded instruction set (minutes on 2 cores)
	@$(BIN)sft-dist run experiment=demo

test: setup  ## install, then lint and the default test suite
	@$(MAKE) --no-print-directory lint; lint=$$?; $(PYTEST) $(PARALLEL) -m 'not slow and not cluster'; exit $$(($$? || lint))

test-slow: setup  ## tests that take minutes
	@$(PYTEST) $(PARALLEL) -m slow

test-cluster: setup  ## tests on a real Slurm that they start (root; Debian or Ubuntu)
	@$(PYTEST) -m cluster tests/slurm

lint:  ## every static check, one line each
	@failed=0; \
	check() { \
	  local name=$$1 output; shift; \
	  if output=$$("$$@" 2>&1); then printf 'lint: %-14s ok\n' "$$name"; \
	  else printf 'lint: %-14s FAILED\n%s\n' "$$name" "$$output"; failed=1; fi; \
	}; \
	check 'ruff check' $(BIN)ruff check --output-format concise .; \
	check 'ruff format' $(BIN)ruff format --check --output-format concise .; \
	check mypy $(PYTHON) -m mypy; \
	check import-linter $(BIN)lint-imports; \
	check shellcheck $(BIN)shellcheck $(SHELL_SCRIPTS); \
	check hadolint $(BIN)hadolint docker/Dockerfile docker/Dockerfile.cpu; \
	exit $$failed

format:  ## rewrite the code in the one format, with the safe fixes
	@$(BIN)ruff check --fix .; $(BIN)ruff format .

docs:  ## docs/config.md, sizes in docs/map.md, figures of recipes: from the code
	@$(PYTHON) -m sft_dist.config.reference > docs/config.md.new && mv docs/config.md.new docs/config.md || { rm -f docs/config.md.new; exit 1; }
	@$(PYTHON) bench/sizes.py; $(PYTHON) -m sft_dist.pipelines.cluster.recipes

clean:  ## caches and build outputs; never runs/ or data/
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
