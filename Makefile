# Two commands: `make quickstart` runs a search from nothing, `make test` runs the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test peer lint clean

$(VENV)/run.stamp: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it as in make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp requirements-dev.txt
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

$(VENV)/peer.stamp: $(VENV)/test.stamp requirements-benchmarks.txt
	$(BIN)/pip install --quiet -r requirements-benchmarks.txt
	touch $@

quickstart: $(VENV)/run.stamp
	$(BIN)/python -m experiments.search --config configs/quickstart.py --workdir runs/quickstart

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore-glob="tests/test_torch_*.py"

# XLA optimizes here as it does for users; see tests/conftest.py.
peer: $(VENV)/peer.stamp
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -n 2 tests/test_torch_*.py

lint: $(VENV)/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
