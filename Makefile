# Every target does all its own set-up: a bare machine with Python 3.11 and pip is enough.
# A different interpreter: make test PYTHON=python3.12

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
# TensorFlow is loaded once in each process that tests share
WORKERS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_BIN := $(VENV)-docs/bin
DOCS_READY := $(VENV)-docs/.ready
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help setup demo test check format docs package bench e2e smoke matrix clean

help:  ## list the targets
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 10

setup: $(READY)  ## make .venv with everything the other targets need

# The stamp is written last: an interrupted set-up starts again. Dependency groups need pip 25.1.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt pip
	@# an environment of before the distribution got its name
	@if [ -d $(VENV)/lib ] && ls -d $(VENV)/lib/python*/site-packages/gradwatch-*.dist-info >/dev/null 2>&1; then \
		$(BIN)/python -m pip uninstall --quiet --yes gradwatch; fi
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[demo,grafana,live,mlflow,notify,record,wandb]' --group dev
	@# ours is compared with it in tests/benchmarks; the torch that it asks for is not needed there
	$(BIN)/python $(PIP_INSTALL) --no-deps zclip==1.0.0
	@touch $@

# The site needs neither TensorFlow nor the package itself: the reference is read from the source.
$(DOCS_READY): pyproject.toml constraints-docs.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(DOCS_BIN)/python $(PIP_INSTALL) -c constraints-docs.txt pip
	$(DOCS_BIN)/python $(PIP_INSTALL) -c constraints-docs.txt --group docs
	@touch $@

# $(call must,command,what mends it)
must = @echo '$(1)'; $(BIN)/$(1) || { printf '\nmake check stopped. To mend it: %s\n' '$(2)'; exit 1; }

demo: $(READY)  ## train unprotected, then protected, on real text; about two minutes
	$(BIN)/gradwatch demo $(ARGS)

test: $(READY)  ## all tests but the end-to-end ones, in four parts, about 12 minutes on 2 cores
	$(BIN)/python tests/in_parts.py -n $(WORKERS) $(ARGS)

check: $(READY)  ## format, lint, spelling, types; says how to mend what it finds
	$(call must,ruff format --check .,make format)
	$(call must,ruff check .,make format mends most of it; ruff rule NAME explains a rule)
	$(call must,codespell,correct the word; a word that is right goes into [tool.codespell] of pyproject.toml)
	$(call must,mypy,correct the types; a function that others call needs them all)
	$(call must,python tests/typing/completeness.py,give the public names it lists their types)

format: $(READY)  ## put the code into the form that check wants
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DOCS_READY)  ## build the documentation into site/; a warning is an error
	$(DOCS_BIN)/zensical build --clean --strict
	@$(DOCS_BIN)/python tests/docs/site.py

package: $(READY)  ## build what a release uploads into dist/, and check it
	rm -rf dist
	$(BIN)/hatchling build
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

e2e: $(READY)  ## end to end: real Prometheus, Alertmanager, Pushgateway, Chromium
	$(BIN)/python -m pytest -m e2e $(ARGS)

bench: $(READY)  ## cost, detection, efficacy: hours, or 7 minutes with ARGS=--quick; prints tables, writes JSON, adds a line to the trend
	for part in overhead detection efficacy; do $(BIN)/python benchmarks/$$part.py $(ARGS) || exit 1; done
	$(BIN)/python benchmarks/trend.py $(ARGS)

smoke:  ## a part of the tests on the oldest TensorFlow and Keras that we support
	PYTHON_VERSION=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])') sh tests/matrix.sh smoke

matrix:  ## core and tf tests on the oldest and newest Python and TensorFlow, as far as they are installed
	sh tests/matrix.sh

clean:  ## remove what the targets made
	rm -rf $(VENV) .venv-* build dist site .cache demo-output .pytest_cache .mypy_cache .ruff_cache
