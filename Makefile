# One environment (.venv) for everything: made on first use, refreshed when pyproject.toml or requirements.lock changes.
PY ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
CELL_TIMEOUT ?= 300
# A process per core, each with whole files, which share what they train; tests/conftest.py orders the files.
PARALLEL := -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder

INSTALL := -m pip install --disable-pip-version-check
EXTRAS := '.[test,notebooks]'

.DEFAULT_GOAL := help
.PHONY: help demo bench test test-full test-browser teacher lint format notebooks readme lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The first install shows its progress; a refresh is quiet.
$(STAMP): pyproject.toml requirements.lock
	@test -n "$(PY)" || { echo "No python3 found: install Python 3.11 or newer, or run make PY=/path/to/python." >&2; exit 2; }
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PY) is older than Python 3.11: install 3.11 or newer, or run make PY=/path/to/python." >&2; exit 2; }
	@test -x $(BIN)/python || $(PY) -m venv .venv || { rm -rf .venv; echo \
		"$(PY) cannot create a virtual environment: install its venv module (Debian, Ubuntu: apt-get install python3-venv)." \
		>&2; exit 2; }
	$(BIN)/python $(INSTALL) $(if $(wildcard $@),--quiet) -c requirements.lock -e $(EXTRAS)
	@touch $@

demo: $(STAMP)  ## distil the embedded teacher, draw with both, read and compare: outputs/demo
	$(BIN)/python -m anytext_lcm.demo

bench: $(STAMP)  ## time, memory and FLOPs of training step and samplers against the reference: outputs/speed
	$(BIN)/python -m anytext_lcm.speed

test: lint  ## lint, unit tests, notebooks against their stored outputs
	$(BIN)/python -m pytest $(PARALLEL) -m "not full and not browser" tests
	$(BIN)/python -m pytest --nbval --nbval-current-env --nbval-cell-timeout $(CELL_TIMEOUT) notebooks

test-full: test  ## as test, then the full-size networks and the trainings
	OMP_NUM_THREADS=$$($(BIN)/python -c "import os; print(os.cpu_count())") \
		$(BIN)/python -m pytest -m "full and not browser" tests

test-browser: $(STAMP)  ## every notebook in JupyterLab and Chromium (apt-get install chromium): run all, move sliders
	$(BIN)/python -m pytest -m browser tests/test_browser.py

teacher: $(STAMP)  ## train the embedded teacher again from its recipe
	$(BIN)/python -m anytext_lcm.build_teacher

lint: $(STAMP)  ## ruff over package, tests and notebooks: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## mend what ruff can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(STAMP)  ## run the notebooks again and store their outputs
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False \
		--ExecutePreprocessor.store_widget_state=False notebooks/[0-9][0-9]_*.ipynb
	$(BIN)/python notebooks/tidy.py notebooks/[0-9][0-9]_*.ipynb

readme: $(STAMP)  ## what was measured (FOLDERS="outputs/evaluation outputs/speed") and the settings into both READMEs
	$(BIN)/python tests/readme_parts.py $(FOLDERS)

lock:  ## write requirements.lock anew from what pyproject.toml allows today; then run the tests
	$(PY) -m venv --clear build/lock
	build/lock/bin/python $(INSTALL) -e $(EXTRAS)
	build/lock/bin/python -m pip freeze --all --exclude pip --exclude-editable > build/frozen
	{ grep '^#' requirements.lock; sed 's/+.*//' build/frozen; } > build/requirements.lock
	mv build/requirements.lock requirements.lock

clean:  ## remove the environment, caches and outputs
	rm -rf .venv outputs build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find anytext_lcm tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
