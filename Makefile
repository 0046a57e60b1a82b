# make alone lists the targets. Everything happens in .venv; PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
# Set, so that make always goes through a shell and finds .venv/bin on the PATH below (older makes do not).
SHELL := /bin/bash
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help install repro test lint docs bench ablate speed serve torture sweep gpu clean newest oldest

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(BIN)/.installed ## create .venv and install the project with pinned versions

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dask,dev]'
	@touch $@

repro: install ## run the whole pipeline (dvc repro), print the result table and where the report is
	@python -m flows.mend
	@dvc repro
	@clpdd results

# Two processes: many tests wait for servers, browsers and killed stages. A file's tests share one process.
test: install lint ## lint, type check, tests
	python -m pytest --numprocesses 2 --dist loadfile

lint: install ## ruff and mypy
	ruff check .
	ruff format --check .
	mypy

docs: $(BIN)/.docs ## the documentation as a site that opens from disk: site/index.html
	python -m mkdocs build --strict --quiet

$(BIN)/.docs: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

bench: install ## methods against each other by the clock (settings: benchmark); prints where the page is
	@dvc repro cache kernels
	@clpdd benchmark

ablate: install ## CLP-DD's choices varied one at a time, on validation data; onto the same page
	@dvc repro cache kernels
	@clpdd ablate

speed: install ## speed and memory of the parts, measured side by side
	python -m speed

serve: install ## a Prefect server, worker and the deployments on 127.0.0.1 until Ctrl-C
	python -m flows.serve

torture: install ## kill the pipeline again and again and compare every artifact with an untouched run
	python -m tests.torture

sweep: install ## load the smallest model of every timm module with its own weights; rewrites docs/reference/encoders.md
	python -m tests.sweep

gpu: ## every stage on this machine's CUDA device, with the python on the PATH: a table
	PYTHONPATH=$(CURDIR):$$PYTHONPATH $(PYTHON) -m tests.gpu

# Environments of their own, made afresh from the ranges in pyproject.toml and not from constraints.txt. TESTS names
# some of the tests: make newest TESTS="tests/flows tests/test_encoders.py".
TESTS ?=

define try_versions
	rm -rf .venv-$(1)
	$(PYTHON) -m venv .venv-$(1)
	.venv-$(1)/bin/python -m pip install --quiet 'uv>=0.8'
	.venv-$(1)/bin/uv pip install --quiet --python .venv-$(1)/bin/python --resolution $(2) --editable '.[dask,dev]'
	.venv-$(1)/bin/uv pip freeze --python .venv-$(1)/bin/python | grep -E '^(torch|timm|zarr|prefect|dvc|numpy)=='
	.venv-$(1)/bin/python -m pytest $(TESTS)
endef

newest: ## the tests with the newest versions that pyproject.toml allows, in .venv-newest (not in CI)
	$(call try_versions,newest,highest)

oldest: ## the tests with the oldest versions that pyproject.toml allows, in .venv-oldest (not in CI)
	$(call try_versions,oldest,lowest-direct)

clean: ## remove everything that the pipeline made (the DVC cache stays)
	rm -rf data/inputs data/index data/features data/kernels data/distilled data/results data/work data/clocks data/live
