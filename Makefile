# Two commands do all of their own set-up in .venv: `make demo` and `make test`.
# PYTHON chooses the interpreter; PIP_ARGS is passed to pip, for example an index of CPU builds of torch.

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
NEWEST := .venv-newest-sevenn

.PHONY: demo test test-all lint types pytest docs docs-links browser coverage test-newest-sevenn bench bench-peers soak clean

demo: $(VENV)/ready
	$(BIN)/python examples/demo.py

test: lint types docs pytest

test-all: lint types docs
	$(BIN)/python -m pytest -m "" $(PYTEST_ARGS)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/mypy

pytest: $(VENV)/ready
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

docs: $(VENV)/docs
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

# The links to other sites; needs the network.
docs-links: $(VENV)/docs
	$(BIN)/python -m sphinx -q -b linkcheck docs docs/_build/links

# The report is looked at in a real browser; without one these tests are skipped. Needs the rights to install packages.
browser:
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium)

coverage: $(VENV)/ready
	$(BIN)/python -m pytest -m "not slow" --cov=ase_finetune --cov-report=term $(PYTEST_ARGS)

# The newest sevenn needs e3nn >= 0.5, which mace-torch does not allow: an environment of its own, without mace.
test-newest-sevenn: $(NEWEST)/ready
	$(NEWEST)/bin/python -m pytest -m "not slow and not mace" tests/potentials tests/test_calculator.py $(PYTEST_ARGS)

# BENCH holds names and options: make bench BENCH="md relaxation --device cpu". ASE_FINETUNE_DATA names the research data.
# Rows against sevenn's reEWC trainer and torch-sim need `make bench-peers` before, without which they are told as missing.
bench: $(VENV)/ready
	$(BIN)/python -m benchmarks $(BENCH)

# The figures of docs/reliability.md, in two hours: make soak SOAK="kill fuzz --quick". ASE_FINETUNE_DATA names the research data.
soak: $(VENV)/ready
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[soak]"
	$(BIN)/python -m benchmarks.reliability $(SOAK)

# torch-sim runs sevenn's newest models on Python >= 3.12 only.
bench-peers: $(NEWEST)/ready
	$(NEWEST)/bin/python -m pip install --quiet $(PIP_ARGS) -c constraints-newest-sevenn.txt torch-sim-atomistic

# Installed anew whenever the metadata or the tested versions change.
$(VENV)/ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[all,dev]"
	touch $@

$(VENV)/docs: $(VENV)/ready
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[docs]"
	touch $@

$(NEWEST)/ready: setup.cfg pyproject.toml constraints-newest-sevenn.txt
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade pip
	$(NEWEST)/bin/python -m pip install --quiet $(PIP_ARGS) -c constraints-newest-sevenn.txt -e ".[sevenn,dev]"
	touch $@

clean:
	rm -rf $(VENV) $(NEWEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis build docs/_build *.egg-info
