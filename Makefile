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

.PHONY: fig4 theorems neural-pde table2 reproduce report certify test test-slow faults test-cuda test-newest test-wheel dist lock \
	lint format bench docs html clean

fig4: $(VENV)/.figures  ## Figure 4: solve, check against Feynman-Kac paths, draw
	$(BIN)/python studies/fig4_diffusion.py $(ARGS)

theorems: $(VENV)/.figures  ## Theorems 1 and 2: where each bound holds, and where it does not
	$(BIN)/python studies/theorems.py $(ARGS)

neural-pde: $(VENV)/.studies  ## a trained network against its own equation, point by point
	$(BIN)/python studies/neural_pde.py $(ARGS)

table2: $(VENV)/.studies  ## Table 2: train, attack, print beside the paper's numbers
	$(BIN)/python studies/table2.py $(ARGS)

reproduce: $(VENV)/.studies  ## the queue of trainings and attacks on CIFAR, most valuable first
	$(BIN)/python studies/reproduce.py $(ARGS)

report: $(VENV)/.studies  ## all stored results on one page, out/report.html, and the block in README.md
	$(BIN)/python studies/report.py $(ARGS)

certify: $(VENV)/.studies  ## promises of the project beside measurements, on one page, out/certify/certify.html
	$(BIN)/python studies/certify.py $(ARGS)

test: $(VENV)/.tests  ## all tests but the slow ones
	$(PYTEST) $(WORKERS) -m "not slow" $(ARGS)

test-slow: $(VENV)/.tests  ## the slow ones
	$(PYTEST) $(WORKERS) -m slow $(ARGS)

faults: $(VENV)/.tests  ## work broken at random moments and continued; prints the table of docs/faults.md
	$(BIN)/python tests/faults.py $(ARGS)

test-cuda: $(VENV)/.tests  ## those that need a GPU
	$(PYTEST) -m cuda $(ARGS)

test-newest:  ## all tests but the slow ones with the newest releases that setup.cfg allows, in .venv-newest
	rm -f .venv-newest/.tests
	$(MAKE) test VENV=.venv-newest PINS="--upgrade --upgrade-strategy eager"

# torch's threads wait for each other at every layer of a small network, several times longer where cores are shared.
test-wheel html: export OMP_NUM_THREADS ?= 1

# The tutorial, and the tests of README and of the command, are copied to where nothing else is, so that they see the wheel alone.
test-wheel: dist  ## the wheel in .venv-wheel, and README, tutorial and command from an empty folder there
	$(PYTHON) -m venv --clear .venv-wheel
	.venv-wheel/bin/python -m pip install -qq --disable-pip-version-check $(PINS) pytest "$$(ls dist/*.whl)[studies]"
	rm -rf build/empty && mkdir -p build/empty/tests
	cp README.md build/empty
	cp tests/test_readme.py tests/test_command.py build/empty/tests
	cp docs/tutorial_source/*.py build/empty
	cd build/empty && ../../.venv-wheel/bin/itoflow --version \
		&& MPLBACKEND=agg PYTHONPATH= timeout 600 ../../.venv-wheel/bin/python -X faulthandler ten_minutes.py \
		&& PYTHONPATH= ../../.venv-wheel/bin/python -P -m pytest -c /dev/null --rootdir . -o markers=slow -p no:cacheprovider -q tests $(ARGS)

dist: $(VENV)/.setuptools  ## the sdist and the wheel, the same bytes from the same commit
	rm -rf dist
	$(BIN)/python .ci/dist.py dist

lock: | $(BIN)/python  ## renew constraints.txt: the newest releases that setup.cfg allows, the same for each Python
	$(PIP) --upgrade uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --fork-strategy fewest --no-annotate \
		--extra tests --custom-compile-command "make lock" --output-file $(LOCK) setup.cfg $(ARGS)
	cp $(LOCK) docs/$(LOCK)  # the same versions wherever they fit
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --no-annotate \
		--extra docs --custom-compile-command "make lock" --output-file docs/$(LOCK) setup.cfg $(ARGS)

lint: $(VENV)/.tests  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.tests
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.tests  ## benchmarks; nothing in the tests depends on speed
	$(BIN)/python -m pytest -s --override-ini="addopts=" tests/benchmarks $(ARGS)

# An environment of its own: Sphinx wants a newer requests than torchattacks, of the tests, allows.
docs:  ## the documentation, out/docs/index.html; runs its tutorial and gallery
	$(MAKE) html VENV=.venv-docs LOCK=docs/constraints.txt

html: $(VENV)/.docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky docs out/docs $(ARGS)
	$(BIN)/python docs/check.py out/docs

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The build backend is installed beside the rest, as pip would fetch one of any version to build with.
$(VENV)/.setuptools: setup.cfg $(LOCK) | $(BIN)/python
	$(PIP) $(PINS) setuptools
	@touch $@

$(VENV)/.figures: $(VENV)/.setuptools
	$(INSTALL) ".[figures]"
	@touch $@

$(VENV)/.studies: $(VENV)/.setuptools
	$(INSTALL) ".[studies]"
	@touch $@

$(VENV)/.tests: $(VENV)/.setuptools
	$(INSTALL) ".[tests]"
	@touch $@ $(VENV)/.figures $(VENV)/.studies

$(VENV)/.docs: $(VENV)/.setuptools
	$(INSTALL) ".[docs]"
	@touch $@

clean:
	rm -rf $(VENV) .venv-newest .venv-wheel .venv-docs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
