# `make quickstart` and `make test` are all a newcomer needs; both set everything up first, and a second call installs nothing.
PYTHON ?= python3.11
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-fast check docs format gpu-check clean

help:
	@echo "make quickstart  set everything up, run recipes/quickstart end to end, print the table"
	@echo "make test        set everything up, run the tests"
	@echo "make test-fast   the tests that are not marked slow"
	@echo "make check       lint, format, types, layers, drift of schemas and docs; pre-commit runs the same"
	@echo "make docs        the documentation as a site, in build/docs; open build/docs/index.html"
	@echo "make format      fix what ruff can fix, then format"
	@echo "make gpu-check   check everything that only a GPU can show; see docs/gpu.md"
	@echo "make setup       make .venv and install align with vLLM"
	@echo "make clean       remove runs/ and build/"

$(BIN)/python:
	$(PYTHON) -m venv .venv

setup: $(BIN)/python
	@$(BIN)/python scripts/setup_environment.py

quickstart: setup
	$(BIN)/align run recipes/quickstart

# Three processes with one thread each, for two cores, as tests wait a third of their time: for processes to start and to end. The
# tests of a file stay together, as they share what they made.
# xdist would start with the files that have the most tests; tests/conftest.py knows which are slow. Bytecode is kept even where
# the variable forbids it: tests start many processes, and each would compile align again.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST)

test-fast: setup
	$(PYTEST) -m "not slow"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/build_schemas.py --check
	$(BIN)/python scripts/build_docs.py --check
	$(BIN)/python scripts/build_trust.py --check

# A warning is an error. tests/contract/test_docs_site.py runs the same.
docs: setup
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . build/docs

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# ARGS="--only parity" runs a part, ARGS="--device cpu" all of it on a tiny model.
gpu-check: setup
	PYTHONPATH=scripts $(BIN)/python -m gpu_check $(ARGS)

clean:
	rm -rf runs build
