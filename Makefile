# `make demo` and `make test` do everything on a fresh machine: Python 3.11 or newer with venv and pip is all they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test slow lint format clean

demo: $(INSTALLED)
	$(BIN)/llmcompress demo

# Two at a time, each file in one process: its fixtures are made once.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis llmcompress-demo

$(INSTALLED): pyproject.toml llmcompress/cli/tested_versions.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint llmcompress/cli/tested_versions.txt --editable '.[dev]'
	touch $@
