# Every target does all its own set-up: a bare machine with Python 3.11 and pip is enough.
# A different interpreter: make test PYTHON=python3.12

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
# TensorFlow is loaded once in each process that tests share
WORKERS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help setup demo test check bench e2e smoke matrix clean

help:  ## list the targets
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 10

setup: $(READY)  ## make .venv with everything the other targets need

# The stamp is written last: an interrupted set-up starts again.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# ours is compared with it in tests/benchmarks; the torch that it asks for is not needed there
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps zclip==1.0.0
	@touch $@

demo: $(READY)  ## train unprotected, then protected, on real text; about two minutes
	$(BIN)/gradwatch demo $(ARGS)

test: $(READY)  ## all tests but the end-to-end ones, under 10 minutes on 2 cores
	$(BIN)/python -m pytest -m "not e2e" -n $(WORKERS) --dist loadfile $(ARGS)

check: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tests/typing/completeness.py

e2e: $(READY)  ## end to end: real Prometheus, Alertmanager, Pushgateway, Chromium
	$(BIN)/python -m pytest -m e2e $(ARGS)

bench: $(READY)  ## cost, detection, efficacy: hours, or 7 minutes with ARGS=--quick; prints tables, writes JSON
	for part in overhead detection efficacy; do $(BIN)/python benchmarks/$$part.py $(ARGS) || exit 1; done

smoke:  ## a part of the tests on the oldest TensorFlow and Keras that we support
	PYTHON_VERSION=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])') sh tests/matrix.sh smoke

matrix:  ## core and tf tests on the oldest and newest Python and TensorFlow, as far as they are installed
	sh tests/matrix.sh

clean:  ## remove what the targets made
	rm -rf $(VENV) .venv-* build dist demo-output .pytest_cache .mypy_cache .ruff_cache
