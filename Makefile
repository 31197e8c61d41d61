# Two commands do all of their own set-up in .venv: `make demo` and `make test`.
# PYTHON chooses the interpreter; PIP_ARGS is passed to pip, for example an index of CPU builds of torch.

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
NEWEST := .venv-newest-sevenn

.PHONY: demo test test-all lint types pytest test-newest-sevenn bench clean

demo: $(VENV)/ready
	$(BIN)/python examples/demo.py

test: lint types pytest

test-all: lint types
	$(BIN)/python -m pytest -m "" $(PYTEST_ARGS)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/mypy

pytest: $(VENV)/ready
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

# The newest sevenn needs e3nn >= 0.5, which mace-torch does not allow: an environment of its own, without mace.
test-newest-sevenn: $(NEWEST)/ready
	$(NEWEST)/bin/python -m pytest -m "not slow and not mace" tests/potentials tests/test_calculator.py $(PYTEST_ARGS)

bench: $(VENV)/ready
	$(BIN)/python benchmarks/calculator.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/bptt.py
	$(if $(ASE_FINETUNE_DATA),$(BIN)/python benchmarks/relaxation.py --data "$(ASE_FINETUNE_DATA)")

# Installed anew whenever the metadata or the tested versions change.
$(VENV)/ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[all,dev]"
	touch $@

$(NEWEST)/ready: setup.cfg pyproject.toml constraints-newest-sevenn.txt
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade pip
	$(NEWEST)/bin/python -m pip install --quiet $(PIP_ARGS) -c constraints-newest-sevenn.txt -e ".[sevenn,dev]"
	touch $@

clean:
	rm -rf $(VENV) $(NEWEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
