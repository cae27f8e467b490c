# One environment of the exact versions in constraints.txt, filled only as far as a target needs it.
PYTHON  ?= python3
VENV    ?= .venv
BIN     := $(VENV)/bin
LOCK    := constraints.txt
PINS    ?= --constraint $(LOCK)
PIP     := $(BIN)/python -m pip install -qq --disable-pip-version-check
INSTALL := $(PIP) $(PINS) --no-build-isolation --editable
PYTEST  := $(BIN)/python -m pytest
# A process a core, a file in one process: what a module's fixtures make, they make once.
WORKERS ?= -n logical --maxprocesses 8 --dist loadfile
ARGS    ?=

.PHONY: fig4 theorems neural-pde table2 reproduce report certify test test-slow test-cuda test-newest lock lint format bench clean

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

certify: $(VENV)/.netkit  ## promises of the project beside measurements, on one page, out/certify/certify.html
	$(BIN)/python studies/certify.py $(ARGS)

test: $(VENV)/.tests  ## all tests but the slow ones
	$(PYTEST) $(WORKERS) -m "not slow" $(ARGS)

test-slow: $(VENV)/.tests  ## the slow ones
	$(PYTEST) $(WORKERS) -m slow $(ARGS)

test-cuda: $(VENV)/.tests  ## those that need a GPU
	$(PYTEST) -m cuda $(ARGS)

test-newest:  ## all tests but the slow ones with the newest releases that setup.cfg allows, in .venv-newest
	rm -f .venv-newest/.tests
	$(MAKE) test VENV=.venv-newest PINS="--upgrade --upgrade-strategy eager"

lock: | $(BIN)/python  ## renew constraints.txt: the newest releases that setup.cfg allows, the same for each Python
	$(PIP) --upgrade uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --fork-strategy fewest --no-annotate \
		--extra tests --custom-compile-command "make lock" --output-file $(LOCK) setup.cfg $(ARGS)

lint: $(VENV)/.tests  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.tests
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.tests  ## benchmarks; nothing in the tests depends on speed
	$(BIN)/python -m pytest -s --override-ini="addopts=" tests/benchmarks $(ARGS)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The build backend is installed beside the rest, as pip would fetch one of any version to build with.
$(VENV)/.setuptools: setup.cfg $(LOCK) | $(BIN)/python
	$(PIP) $(PINS) setuptools
	@touch $@

$(VENV)/.studies: $(VENV)/.setuptools
	$(INSTALL) ".[studies]"
	@touch $@

$(VENV)/.netkit: $(VENV)/.setuptools
	$(INSTALL) ".[studies,netkit]"
	@touch $@

$(VENV)/.tests: $(VENV)/.setuptools
	$(INSTALL) ".[tests]"
	@touch $@ $(VENV)/.studies $(VENV)/.netkit

clean:
	rm -rf $(VENV) .venv-newest build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
