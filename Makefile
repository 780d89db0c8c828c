# One environment (.venv) for everything: made on first use, refreshed when pyproject.toml or requirements.lock changes.
PY ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
CELL_TIMEOUT ?= 300
# A process per core, each with whole files, which share what they train; tests/conftest.py orders the files.
PARALLEL := -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder

INSTALL := -m pip install --disable-pip-version-check
EXTRAS := '.[test,notebooks,site]'

.DEFAULT_GOAL := help
.PHONY: help demo notebooks site test test-full test-browser lint format bench readme teacher lock clean

# A line "##@ NAME" begins a group of targets, and "##" after a target says what it does.
help:
	@awk -F ':.*## ' '/^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf "\nThe first target that needs Python makes .venv. Commands: .venv/bin/python -m anytext_lcm.sample --help\n"

# The first install shows its progress; a refresh is quiet.
$(STAMP): pyproject.toml requirements.lock
	@test -n "$(PY)" || { echo "No python3 found: install Python 3.11 or newer, or run make PY=/path/to/python." >&2; exit 2; }
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PY) is older than Python 3.11: install 3.11 or newer, or run make PY=/path/to/python." >&2; exit 2; }
	@test -x $(BIN)/python || $(PY) -m venv .venv || { rm -rf .venv; echo \
		"$(PY) cannot create a virtual environment: install its venv module (Debian, Ubuntu: apt-get install python3-venv)." \
		>&2; exit 2; }
	@echo "Installing the package and what it needs into .venv: downloads on first use, a quiet check later."
	$(BIN)/python $(INSTALL) $(if $(wildcard $@),--quiet) -c requirements.lock -e $(EXTRAS)
	@touch $@

##@ Begin

demo: $(STAMP)  ## distil the small teacher in minutes, draw with both: outputs/demo
	$(BIN)/python -m anytext_lcm.demo

notebooks: $(STAMP)  ## run the six notebooks again and store their outputs
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False \
		--ExecutePreprocessor.store_widget_state=False notebooks/[0-9][0-9]_*.ipynb
	$(BIN)/python notebooks/tidy.py notebooks/[0-9][0-9]_*.ipynb

site: $(STAMP)  ## build the documents, notebooks and settings as web pages: build/site
	rm -rf build/site
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env -c docs -d build/doctrees . build/site
	@echo "The site is in build/site; to read it: $(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site"

##@ Check

test: lint  ## lint, unit tests, notebooks against their stored outputs
	$(BIN)/python -m pytest $(PARALLEL) -m "not full and not browser" tests
	$(BIN)/python -m pytest --nbval --nbval-current-env --nbval-cell-timeout $(CELL_TIMEOUT) notebooks

test-full: test  ## the same, then full-size networks and trainings
	OMP_NUM_THREADS=$$($(BIN)/python -c "import os; print(os.cpu_count())") \
		$(BIN)/python -m pytest -m "full and not browser" tests

test-browser: $(STAMP)  ## the notebooks and the site in Chromium (apt-get install chromium)
	$(BIN)/python -m pytest -m browser tests/test_browser.py

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## mend what ruff can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

##@ Measure and make again

bench: $(STAMP)  ## time, memory and FLOPs of training and sampling: outputs/speed
	$(BIN)/python -m anytext_lcm.speed

readme: $(STAMP)  ## put what was measured into the documents: FOLDERS="outputs/evaluation ..."
	$(BIN)/python tests/readme_parts.py $(FOLDERS)

teacher: $(STAMP)  ## train the small teacher again from nothing: outputs/teacher
	$(BIN)/python -m anytext_lcm.build_teacher

lock:  ## write requirements.lock anew; then run the tests
	$(PY) -m venv --clear build/lock
	build/lock/bin/python $(INSTALL) -e $(EXTRAS)
	build/lock/bin/python -m pip freeze --all --exclude pip --exclude-editable > build/frozen
	{ grep '^#' requirements.lock; sed 's/+.*//' build/frozen; } > build/requirements.lock
	mv build/requirements.lock requirements.lock

clean:  ## remove the environment, caches and outputs
	rm -rf .venv outputs build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find anytext_lcm tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
