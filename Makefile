# Two commands do all the set-up: make demo, make test. Each makes .venv first, if it is not there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Of torture's exploration, in each mode; make torture SEEDS=0-499 takes a minute of it.
SEEDS := 10000

.PHONY: demo lab voila test torture check strip bench peers fixtures histories results pictures clean

demo: $(VENV)/.runs  ## the crash-recovery walkthrough
	$(BIN)/rqlab demo

lab: $(VENV)/.lab  ## the notebooks, in JupyterLab
	$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir=notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

IP ?= 127.0.0.1
voila: $(VENV)/.lab  ## the lab as a page, without code; make voila IP=0.0.0.0 for a classroom, each with a lab of its own
	$(BIN)/rqlab lab --ip $(IP)

test: check  ## everything that CI runs
	$(BIN)/pytest -n 3 --dist worksteal  # on two cores, too: a third of the time they wait for processes and pages
	$(BIN)/pytest -n 2 --dist worksteal --nbmake --nbmake-timeout=60 --nbmake-kernel=python3 notebooks

torture: $(VENV)/.tests  ## the power cut 120 000 times and more; each operation refused; interrupts at every instruction; a million finished jobs; ten thousand seeds a mode
	RQLAB_CUT_SEEDS=20 RQLAB_FAULT_STRIDE=1 $(BIN)/pytest -n 2 --dist worksteal --timeout 900 \
		tests/test_power_durable.py tests/test_power_later.py tests/test_disk_faults.py
	RQLAB_INTERRUPT_STRIDE=1 RQLAB_FINISHED=1000000 RQLAB_EXAMPLES=500 RQLAB_HISTORIES=100 RQLAB_KILLS=100 \
		$(BIN)/pytest -n 2 --dist worksteal --timeout 900 tests/test_buffered.py tests/test_hybrid.py tests/test_modes.py
	$(BIN)/rqlab explore $(SEEDS) --durability all --faults 9 --jobs 30 --bugs fixtures/bugs
	$(BIN)/rqlab explore $(SEEDS) --store memory --faults 9 --jobs 30 --bugs fixtures/bugs

check: $(VENV)/.tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

strip: $(VENV)/.tests  ## outputs, counts and widgets out of the notebooks, before a commit
	$(BIN)/nbstripout --extra-keys metadata.language_info notebooks/*.ipynb

bench: $(VENV)/.tests  ## ratios within one run, medians and spread
	$(BIN)/python -m benchmarks

peers: $(VENV)/.tests  ## other queues beside ours, and what each loses: rewrites the results in benchmarks/README.md
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[peers]'
	$(BIN)/python -m benchmarks.peers --write

fixtures: $(VENV)/.tests  ## a new fixtures/queues/vN, when the format number has risen
	$(BIN)/python -m fixtures

histories: $(VENV)/.tests  ## the kept histories anew: make histories WHY="in a sentence"
	$(BIN)/python -m fixtures histories "$(WHY)"

results: $(VENV)/.tests  ## the reference measurement, some minutes on a quiet machine
	$(BIN)/python -m fixtures results

pictures: $(VENV)/.tests  ## the README's pictures, when their look has changed; the panel's needs chromium
	$(BIN)/python -m fixtures pictures
	$(BIN)/python -m tests.test_docs

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "rqlab needs Python 3.11 or later; found: $$($(PYTHON) --version 2>&1). Call: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "no venv module for $(PYTHON): on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }

$(VENV)/.runs: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.lab: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[lab]'
	@touch $@ $(VENV)/.runs

$(VENV)/.tests: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.runs
