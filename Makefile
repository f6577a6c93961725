# make try | test | check | bench | docs | clean
#
# Every target does its own set-up: it makes a virtual environment in .venv and
# installs into it what it needs. A second run finds the stamps and is quick.
# Needs Python 3.11 or newer with its venv module, gcc and make.
#
#   PYTHON=/path/to/python3.12   which Python to use
#   VENV=.venv  BUILD=build      where things go

VENV ?= .venv
BUILD ?= build

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

override VENV := $(abspath $(VENV))
override BUILD := $(abspath $(BUILD))
export VENV BUILD
export PATH := $(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# What an editable install is made from: C is compiled, and each package folder is looked up once.
SOURCES := pyproject.toml LICENSE \
	$(wildcard csrc/*.c csrc/*.h csrc/*.txt csrc/*/CMakeLists.txt vq/balloonvq/*/*.c) \
	$(shell find cli vq -name __init__.py)

.PHONY: help try test check bench docs generate clean

help: ## what can be made
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile

try: $(VENV)/.stamp-run ## set up what is needed to run, and show a tour
	@echo "Set up. The tour (the same as: $(notdir $(VENV))/bin/balloonctl run scripts/tour.balloon)"
	export BALLOONCTL_RUNTIME_DIR=$$(mktemp -d)
	trap 'rm -rf "$$BALLOONCTL_RUNTIME_DIR"' EXIT
	balloonctl run scripts/tour.balloon

test: $(VENV)/.stamp-dev ## set up and run all tests and lints
	@python scripts/checks.py all

check: $(VENV)/.stamp-dev ## lints only: format, ruff, mypy, clang-format
	@python scripts/checks.py lint

bench: $(VENV)/.stamp-run ## measure everything, in sizes that suit a laptop
	@mkdir -p "$(BUILD)"
	balloonctl bench all --size 128M --json "$(BUILD)/bench.json" --html "$(BUILD)/bench.html"
	echo "$(BUILD)/bench.html"

docs: $(VENV)/.stamp-dev ## build the documentation into build/docs
	@python scripts/checks.py docs
	echo "$(BUILD)/docs/index.html"

generate: $(VENV)/.stamp-dev ## write the generated reference pages and the recording anew
	@python scripts/generate_reference.py
	python scripts/record_tour.py

clean: ## remove everything that was made
	@rm -rf "$(VENV)" "$(BUILD)" .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache docs/_build
	find . -name __pycache__ -prune -exec rm -rf {} +

# The first Python that is new enough makes the environment.
$(VENV)/.stamp-venv:
	@found=
	for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
	        found=$$python
	        break
	    fi
	done
	if [ -z "$$found" ]; then
	    echo "error: balloonctl needs Python 3.11 or newer" >&2
	    echo "why: found $$(python3 --version 2>&1 || echo none)" >&2
	    echo "hint: make PYTHON=/path/to/python3.11 $(or $(MAKECMDGOALS),try)" >&2
	    exit 1
	fi
	for tool in gcc:gcc make:make; do
	    if ! command -v "$${tool%%:*}" >/dev/null; then
	        echo "error: $${tool%%:*} is missing" >&2
	        echo "hint: apt install $${tool##*:}" >&2
	        exit 1
	    fi
	done
	if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null; then
	    echo "error: $$found has no venv module" >&2
	    echo "hint: apt install python3-venv" >&2
	    exit 1
	fi
	if ! "$$found" -c 'import pathlib, sys, sysconfig; sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists())'; then
	    echo "error: the C headers of $$found are missing (Python.h)" >&2
	    echo "hint: apt install python3-dev" >&2
	    exit 1
	fi
	echo "Making $(notdir $(VENV)) with $$("$$found" --version)"
	"$$found" -m venv "$(VENV)"
	"$(VENV)/bin/python" -m pip install --quiet --upgrade 'pip>=25.1'
	touch "$@"

# The build tools stay in the environment (no isolated build), so that paths which CMake remembers
# stay true. cmake comes from PyPI when the machine has none that is new enough.
$(VENV)/.stamp-build: $(VENV)/.stamp-venv
	@tools="scikit-build-core>=1.0 cffi>=2.1"
	have=$$(cmake --version 2>/dev/null | sed -n 's/^cmake version //p' || true)
	if [ "$$(printf '%s\n' 3.22 "$${have:-0}" | sort -V | head -1)" != 3.22 ]; then
	    tools="$$tools cmake>=3.22"
	fi
	echo "Installing the build tools"
	python -m pip install --quiet $$tools
	touch "$@"

$(VENV)/.stamp-run: $(VENV)/.stamp-build $(SOURCES)
	@echo "Building and installing balloonctl"
	python -m pip install --quiet --no-build-isolation \
	    --config-settings=build-dir="$(BUILD)/{wheel_tag}" --editable .
	touch "$@"

$(VENV)/.stamp-dev: $(VENV)/.stamp-run pyproject.toml
	@echo "Installing the tools for tests, lints and docs"
	python -m pip install --quiet --group dev
	touch "$@"
