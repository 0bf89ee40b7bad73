# Every target sets up its own .venv on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One thread per test process: the suite runs on as many processes as there are cores.
WORKERS ?= auto

.PHONY: help setup demo test test-slow test-gpu test-browser lint format bench bench-all pretrain clean

help:
	@echo "make demo      adapt the built-in model to a new domain, score it before and after"
	@echo "make test      the whole test suite, offline"
	@echo "make test-slow tests that take minutes"
	@echo "make test-gpu  tests of the GPU kernels, compiled, on a machine that has one"
	@echo "make test-browser  click through the pages of demo and explain; needs chromium"
	@echo "make lint      ruff and mypy"
	@echo "make format    let ruff rewrite the files"
	@echo "make bench     measure, on quiet cores; fills docs/performance.md"
	@echo "make pretrain  pre-train the built-in model again (hours; resumes where it stopped)"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[caption,test,lint]"
	touch $@

demo: $(READY)
	$(BIN)/padapter train --config recipes/demo.yaml --overwrite

test: $(READY)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

test-slow: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

test-gpu: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/functional/test_kernel.py tests/functional/test_kernel_operators.py \
		tests/functional/test_kernel_gpu.py

test-browser: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo,browser]"
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow -rs tests/demo tests/explain/test_explain_browser.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.performance

bench-all: $(READY)
	$(BIN)/python -m benchmarks --all
	$(BIN)/python -m benchmarks.performance

pretrain: $(READY)
	$(BIN)/python -m padapter.models --output runs/pretrain

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
