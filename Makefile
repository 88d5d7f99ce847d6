# `make repro` and `make test` need Python 3.10 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The stages run as `python -m stages.NAME`: the environment's python must come first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# DVC makes commits of its own for experiments; a machine without a Git identity can run them too.
export GIT_AUTHOR_NAME ?= $(or $(shell git config user.name),dvc)
export GIT_AUTHOR_EMAIL ?= $(or $(shell git config user.email),dvc@localhost)
export GIT_COMMITTER_NAME ?= $(GIT_AUTHOR_NAME)
export GIT_COMMITTER_EMAIL ?= $(GIT_AUTHOR_EMAIL)

.PHONY: repro test test-slow bench ui clean
.DEFAULT_GOAL := repro

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

repro: $(VENV)/installed  ## the whole pipeline on the embedded sample
	dvc repro

test: $(VENV)/installed  ## style, then the quick tests
	ruff check .
	ruff format --check .
	python -m pytest

test-slow: $(VENV)/installed  ## the tests that take minutes
	python -m pytest -m slow

bench: $(VENV)/installed  ## the notebooks' loop and ours side by side, in .bench
	python -m tests.benchmarks

ui: $(VENV)/installed  ## browse the runs
	@echo 'Runs: http://localhost:5000/#/experiments/1?workflowType=machine_learning'
	mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}"

clean:  ## remove the environment
	rm -rf $(VENV)
