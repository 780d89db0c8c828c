# One environment (.venv) for everything: made on first use, refreshed when pyproject.toml or requirements.lock changes.
PY ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
CELL_TIMEOUT ?= 300
# A process per core, each with whole files, which share what they train; tests/conftest.py orders the files.
PARALLEL := -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder

comma := ,
INSTALL := -m pip install --disable-pip-version-check
EXTRAS := '.[test,notebooks,site]'
# Files at the package's root, and folders that run.
COMMANDS := $(sort $(patsubst anytext_lcm/%/,%,$(dir $(wildcard anytext_lcm/*/__main__.py))) \
	$(filter-out __init__ command files,$(basename $(notdir $(wildcard anytext_lcm/*.py)))))

.DEFAULT_GOAL := help
.PHONY: help demo notebooks site test test-full test-browser lint format bench readme teacher lock clean

# A line "##@ NAME" begins a group of targets, and "##" after a target says what it does.
help:  ## list the targets and the commands
	@printf "AnyText2 distilled into few steps. New here: make demo, then read README.md.\n"
	@awk -F ':.*## ' '/^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf "\nSettings, as in make demo PY=python3.12\n"
	@printf "  %-17s %s\n" "PY=$(notdir $(PY))" "the Python that makes .venv, 3.11 or newer" \
		"CELL_TIMEOUT=$(CELL_TIMEOUT)" "seconds that a cell of a notebook may take in make test" \
		'FOLDERS="..."' "what was measured, for make readme"
	@printf "\nCommands, .venv/bin/python -m anytext_lcm.NAME --help, once a target that needs Python has made .venv:\n"
	@echo "$(COMMANDS)" | fold -s -w 100 | sed 's/^/  /'

# The first install shows its progress; a refresh is quiet.
$(STAMP): pyproject.toml requirements.lock
	@test -n "$(PY)" || { echo "No python3 found: install Python 3.11 or newer, or run make PY=/path/to/python." >&2; exit 2; }
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PY) is older than Python 3.11: install 3.11 or newer, or run make PY=/path/to/python." >&2; exit 2; }
	@test -x $(BIN)/python || { echo "Making .venv with $(PY)."; $(PY) -m venv .venv; } || { rm -rf .venv; echo \
		"$(PY) cannot create a virtual environment: install its venv module (Debian, Ubuntu: apt-get install python3-venv)." \
		>&2; exit 2; }
	@echo "$(if $(wildcard $@),Checking,Installing) the $$(grep -c == requirements.lock) packages of requirements.lock$(if \
		$(wildcard $@),$(comma) quietly.,: pip names each as it comes.)"
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
