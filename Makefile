# One environment, filled only as far as a target needs it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check
ARGS   ?=

.PHONY: fig4 theorems neural-pde table2 reproduce report test lint format bench clean

fig4: $(VENV)/.studies  ## Figure 4: solve, check against Feynman-Kac paths, draw
	$(BIN)/python studies/fig4_diffusion.py $(ARGS)

theorems: $(VENV)/.studies  ## Theorems 1 and 2: where each bound holds, and where it does not
	$(BIN)/python studies/theorems.py $(ARGS)

neural-pde: $(VENV)/.netkit  ## a trained network against its own equation, point by point
	$(BIN)/python studies/neural_pde.py $(ARGS)

table2: $(VENV)/.netkit  ## Table 2: train, attack, print beside the paper's numbers
	$(BIN)/python studies/table2.py $(ARGS)

reproduce: $(VENV)/.netkit  ## the queue of trainings and attacks on CIFAR, most valuable first
	$(BIN)/python studies/reproduce.py $(ARGS)

report: $(VENV)/.netkit  ## all stored results on one page, out/report.html, and the block in README.md
	$(BIN)/python studies/report.py $(ARGS)

test: $(VENV)/.tests  ## all tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.tests  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.tests
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.tests  ## benchmarks; nothing in the tests depends on speed
	$(BIN)/python -m pytest -s --override-ini="addopts=" tests/benchmarks $(ARGS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.studies: setup.cfg | $(VENV)/bin/python
	$(PIP) --editable ".[studies]"
	@touch $@

$(VENV)/.netkit: setup.cfg | $(VENV)/bin/python
	$(PIP) --editable ".[studies,netkit]"
	@touch $@

$(VENV)/.tests: setup.cfg | $(VENV)/bin/python
	$(PIP) --editable ".[tests]"
	@touch $@ $(VENV)/.studies $(VENV)/.netkit

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
