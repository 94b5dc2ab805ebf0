# `make` lists the targets. Each of them first makes the virtual environment it needs.

PYTHON ?= python3
VENV ?= .venv
# Test processes at a time. The tests start servers; a few at a time is what a laptop can take.
WORKERS ?= 2
# How long `make soak` runs.
SECONDS ?= 600

BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
FOLDERS := monailabel_xnat tests examples benchmarks docs/site .ci

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo demo-check test check coverage matrix lint format docs dist sandbox clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PYTHON=python3.11 chooses the Python (3.10 to 3.12), VENV=path another virtual environment."

venv: $(INSTALLED) ## make the virtual environment .venv

$(INSTALLED): setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 10) <= v < (3, 13) else \
	"Python 3.10 to 3.12 is needed and $(PYTHON) is %d.%d: use make PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.3'
	$(BIN)/python -m pip install --constraint constraints.txt --build-constraint constraints.txt \
		--editable '.[test,demo,dev,docs]'
	@touch $@

demo: $(INSTALLED) ## the whole loop on this computer: archive, annotate, train; stays up to play with
	@$(BIN)/monailabel-xnat demo

demo-check: $(INSTALLED) ## the same without staying up; fails if anything does not work
	@$(BIN)/monailabel-xnat demo --check

test: $(INSTALLED) ## all tests
	$(BIN)/python -m pytest --numprocesses $(WORKERS)

check: $(INSTALLED) lint ## before each commit: the quick tests, ruff, mypy
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --quick

coverage: $(INSTALLED) ## all tests, measured: which lines and branches of the package none of them reaches
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses $(WORKERS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

soak: $(INSTALLED) ## a bad day in minutes: failures, restarts and kills; SECONDS=600 and SEED=1 can be chosen
	$(BIN)/python tests/soak/soak.py --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

matrix: ## the tests on other Pythons, and on the lowest versions that setup.cfg allows; see .ci/matrix
	.ci/matrix

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check $(FOLDERS)
	$(BIN)/ruff format --check $(FOLDERS)
	$(BIN)/mypy

format: $(INSTALLED) ## let ruff format the code and mend what it can
	$(BIN)/ruff check --fix $(FOLDERS)
	$(BIN)/ruff format $(FOLDERS)

docs: $(INSTALLED) ## the documentation as a web site, in build/site; warnings are errors
	$(BIN)/python docs/site/generate.py
	$(BIN)/python -m mkdocs build --strict --quiet --config-file docs/site/mkdocs.yml

dist: $(INSTALLED) ## wheel and source distribution, in dist
	rm -rf build/lib build/bdist.* dist
	$(BIN)/python -c 'from setuptools import build_meta as build; build.build_sdist("dist"); build.build_wheel("dist")'

sandbox: $(INSTALLED) ## an XNAT-compatible server with demo data
	$(BIN)/monailabel-xnat sandbox --demo

clean: ## remove what make made, the virtual environment included
	rm -rf $(VENV) .venv-3.10 .venv-3.12 .venv-lowest .coverage* demo-output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(FOLDERS) -name __pycache__ -type d -prune -exec rm -rf {} +
