# make demo | test | test-all | lint | format | clean; everything runs in .venv, made at first use.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint format clean

demo: .venv/installed
	$(BIN)/python -m recipes.digits_int8 $(ARGS)

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-all: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not benchmark" $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else \
		"tfopt needs Python 3.11, 3.12 or 3.13 and found " + sys.version.split()[0] + "; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info runs
