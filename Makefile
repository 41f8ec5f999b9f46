# Tasks of a checkout; CONTRIBUTING.md has what each is for. More arguments: make bench ARGS=--quick
PYTHON ?= .venv/bin/python
PYTEST := $(PYTHON) -m pytest -q

.PHONY: help test test-all lint docs bench

help:
	@echo "make test      the tests without the slow ones"
	@echo "make test-all  every test that this machine can run"
	@echo "make lint      ruff, its formatter, mypy"
	@echo "make docs      the documents' tables anew, from the rows in benchmarks/results"
	@echo "make bench     python -m benchmarks all"

test:
	$(PYTEST) $(ARGS)

test-all:
	$(PYTEST) --slow $(ARGS)

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

docs:
	$(PYTHON) -m benchmarks report $(ARGS)

bench:
	$(PYTHON) -m benchmarks all $(ARGS)
