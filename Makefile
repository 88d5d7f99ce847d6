# Every target sets up what it needs. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The stages run as `python -m stages.NAME`: the python of the environment must come first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# DVC makes commits for experiments; a machine without a Git identity can run them too.
export GIT_AUTHOR_NAME ?= $(or $(shell git config user.name),dvc)
export GIT_AUTHOR_EMAIL ?= $(or $(shell git config user.email),dvc@localhost)
export GIT_COMMITTER_NAME ?= $(GIT_AUTHOR_NAME)
export GIT_COMMITTER_EMAIL ?= $(GIT_AUTHOR_EMAIL)
RUNS := http://localhost:5000/\#/experiments/1?workflowType=machine_learning
OLD := This project needs Python 3.11 or newer; set one with: make PYTHON=python3.12

.PHONY: repro help preset ui plots check test test-slow bench lock vulnerabilities clean
.DEFAULT_GOAL := repro

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("$(OLD)" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

repro: $(VENV)/installed  ## run the whole pipeline on the embedded sample
	dvc repro

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\): .*## /\1	/p' $(MAKEFILE_LIST) | expand -t 18

preset: $(VENV)/installed  ## write a preset into params.yaml: make preset NAME=fast
	python -m stages.chores.preset $(NAME)

ui: $(VENV)/installed  ## browse the runs
	@echo 'Runs: $(RUNS)'
	uri="$$(python -m stages.chores.store)" && mlflow ui --backend-store-uri "$$uri"

plots: $(VENV)/installed  ## draw the curves, as an HTML page in dvc_plots/
	python -m stages.chores.plots

check: $(VENV)/installed  ## check style and types
	ruff check .
	ruff format --check .
	pyrefly check

test: check  ## check, then run the quick tests, in two processes
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/installed  ## run the tests that take minutes
	python -m pytest -m slow

bench: $(VENV)/installed  ## compare the notebooks' loop with this one; results in .bench
	python -m tests.benchmarks

lock: | $(BIN)/python  ## renew requirements.txt from the pins in pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	uv pip compile pyproject.toml --group dev --universal --upgrade --no-annotate \
	  --custom-compile-command 'make lock' --output-file requirements.txt

vulnerabilities: | $(BIN)/python  ## look the locked versions up among the known vulnerabilities
	$(BIN)/python -m venv $(VENV)/vulnerabilities  # what it needs stays out of ours
	$(VENV)/vulnerabilities/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	$(VENV)/vulnerabilities/bin/pip-audit --strict --no-deps --disable-pip --requirement requirements.txt

clean:  ## remove the environment
	rm -rf $(VENV)
