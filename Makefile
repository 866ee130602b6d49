# `make demo` and `make test` do everything on a fresh machine: Python 3.11 or newer with venv and pip is all they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What a user needs, and on top of it what tests and checks need.
INSTALLED := $(VENV)/.installed
DEVELOPMENT := $(VENV)/.installed-dev

# SEED, COUNT and COMMANDS of a run, or the folder of a saved input to REPLAY.
FUZZ := $(if $(REPLAY),--replay $(REPLAY),--seed $(or $(SEED),0) --count $(or $(COUNT),10000) --commands $(or $(COMMANDS),200))

.PHONY: demo test slow fuzz faults faults-all lint docs notebooks format dist clean

demo: $(INSTALLED)
	$(BIN)/llmcompress demo

# Two at a time, each file in one process: its fixtures are made once. In order, so that no long file of few tests
# comes last and has one process wait. Threads that wait leave the other its core.
test: $(DEVELOPMENT)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

slow: $(DEVELOPMENT)
	$(BIN)/python -m pytest -m slow

fuzz: $(DEVELOPMENT)
	$(BIN)/python tests/fuzz_run.py $(FUZZ)

# Kills, full disks, a Hub that fails, changed bytes: a sample in about 20 minutes, and all of it, which goes on where
# an earlier call was ended. docs/faults.md
faults: $(DEVELOPMENT)
	PYTHONPATH=tests $(BIN)/python tests/faults/sweep.py --scene push "write a card" --every 3 --limit-s 90
	PYTHONPATH=tests $(BIN)/python tests/faults/sweep.py --scene compress --fault K1 D1-once --every 130 --limit-s 180
	PYTHONPATH=tests $(BIN)/python tests/faults/hub_requests.py --every 5 --limit-s 100
	PYTHONPATH=tests $(BIN)/python tests/faults/flips.py --count 300
	PYTHONPATH=tests $(BIN)/python tests/faults/evidence.py --num-runs 500
	PYTHONPATH=tests $(BIN)/python tests/faults/mutants.py --module artifact/placement.py --limit-s 60
	PYTHONPATH=tests $(BIN)/python tests/faults/memory_limits.py --scene "compress int8" --every 5 --limit-s 120
	PYTHONPATH=tests $(BIN)/python tests/faults/allocations.py --scene compress --every 900 --limit-s 90
	PYTHONPATH=tests $(BIN)/python tests/faults/power.py --scene compress --every 40 --limit-s 90
	PYTHONPATH=tests $(BIN)/python tests/faults/surroundings.py --every 12 --limit-s 60
	PYTHONPATH=tests $(BIN)/python tests/faults/together.py --every 8 --limit-s 60
	PYTHONPATH=tests $(BIN)/python tests/faults/rebuild.py --recipe int4 --limit-s 90

faults-all: $(DEVELOPMENT)
	mkdir -p build
	PYTHONPATH=tests $(BIN)/python tests/faults/sweep.py --limit-s 7200 --state build/faults.jsonl
	PYTHONPATH=tests $(BIN)/python tests/faults/hub_requests.py --state build/hub-faults.jsonl
	PYTHONPATH=tests $(BIN)/python tests/faults/flips.py --state build/flips.jsonl
	$(BIN)/python tests/fuzz_run.py --state build/fuzz.jsonl
	PYTHONPATH=tests $(BIN)/python tests/faults/mutants.py --limit-s 7200 --state build/mutants.jsonl
	PYTHONPATH=tests $(BIN)/python tests/faults/memory_limits.py --limit-s 7200 --state build/memory.jsonl
	PYTHONPATH=tests $(BIN)/python tests/faults/allocations.py --every 20 --limit-s 7200 --state build/allocations.jsonl
	PYTHONPATH=tests $(BIN)/python tests/faults/power.py --limit-s 7200 --state build/power.jsonl
	PYTHONPATH=tests $(BIN)/python tests/faults/surroundings.py --state build/surroundings.jsonl
	PYTHONPATH=tests $(BIN)/python tests/faults/together.py --state build/together.jsonl
	PYTHONPATH=tests $(BIN)/python tests/faults/batch.py --state build/batch.jsonl
	PYTHONPATH=tests $(BIN)/python tests/faults/rebuild.py --limit-s 7200 --state build/rebuild.jsonl
	PYTHONPATH=tests $(BIN)/python tests/faults/evidence.py --json build/evidence.json
	PYTHONPATH=tests $(BIN)/python tests/faults/page.py build/*.jsonl --evidence build/evidence.json

lint: $(DEVELOPMENT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The site, in build/docs; a warning is an error.
docs: $(DEVELOPMENT)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs

# The notebooks of examples/, each from its first cell to its last.
notebooks: $(DEVELOPMENT)
	$(BIN)/python -m pytest -m slow tests/test_notebooks.py

format: $(DEVELOPMENT)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A wheel and a source archive, in dist/.
dist: $(DEVELOPMENT)
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis llmcompress-demo

$(INSTALLED): pyproject.toml scripts/install.sh llmcompress/cli/tested_versions.txt
	PYTHON=$(PYTHON) sh scripts/install.sh -e $(VENV)
	touch $@

$(DEVELOPMENT): pyproject.toml scripts/install.sh llmcompress/cli/tested_versions.txt
	PYTHON=$(PYTHON) sh scripts/install.sh -e $(VENV) dev
	touch $(INSTALLED) $@
