# gymrl: the two commands are `make quickstart` and `make test`; `make help` lists the rest.

# Override on the command line, e.g. make quickstart PYTHON=python3.12 TORCH="torch==2.13.0 --index-url ..."
PYTHON ?= python3
TORCH ?= torch==2.13.0
ARGS ?=
export PYTHON TORCH

.DEFAULT_GOAL := help
.PHONY: help quickstart test setup setup-test lint typecheck pytest clean

help:
	@echo "make quickstart   install into .venv, then train, evaluate and report with the quickstart recipe"
	@echo "make test         install what the tests need into .venv, then lint, typecheck and pytest"
	@echo "make lint         ruff"
	@echo "make typecheck    mypy, strict, over all packages"
	@echo "make pytest       the tests alone; ARGS=\"-k sandbox -x\" goes to pytest"
	@echo "make clean        remove build products and caches; .venv, runs/ and results/ stay"
	@echo "PYTHON=... picks the Python (3.11 or newer), TORCH=... what pip installs as torch"

quickstart: setup
	@echo "Training the quickstart recipe: two CPU cores take up to ten minutes."
	@.venv/bin/gymrl train $(ARGS)

test: setup-test lint typecheck pytest

setup:
	@tools/setup.sh quickstart

setup-test:
	@tools/setup.sh test

lint:
	@echo "ruff: a second"
	@.venv/bin/ruff check . || { echo "ruff found the above: mend it, or try '.venv/bin/ruff check --fix .'"; exit 1; }

typecheck:
	@echo "mypy: a minute the first time, seconds after that"
	@tools/typecheck.sh || { echo "mypy found the above: mend the types it names."; exit 1; }

pytest:
	@echo "pytest: some minutes on two CPU cores"
	@OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist loadfile $(ARGS) || { echo "Tests failed: 'make pytest ARGS=\"--lf -x\"' runs the failed ones again."; exit 1; }

clean:
	rm -rf build dist gymrl.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
