# make demo   the main job on a real document          make test   lint, types, imports, the whole suite
# make bench  speed against transformers' own generate  make clean  remove what make made
# make peers  the same methods in kvpress: entries, bytes and time, into results/peers.json and docs/kvpress.md
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := demo
.PHONY: demo install readme test lint test-suite test-t52 browser bench peers clean

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
PEERS := .peers/bin/python -m pip --disable-pip-version-check --no-input
WORKERS ?= 2
# PyTorch's builds without CUDA: a tenth of the size, taken on Linux where there is no NVIDIA GPU. Empty: pip's default.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

demo: .venv/.run
	$(BIN)/kvfoot demo

install: .venv/.dev

test: lint test-suite test-t52

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-suite: .venv/.dev browser
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Chromium for the tests of the report's page, where apt can install it; without one they are skipped and say so.
browser:
	@for name in chromium chromium-browser google-chrome-stable google-chrome; do \
	  if $$name --version >/dev/null 2>&1; then exit 0; fi; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  export DEBIAN_FRONTEND=noninteractive; \
	  { timeout 120 apt-get update -q && timeout 600 apt-get install -q -y --no-install-recommends \
	    -o DPkg::Lock::Timeout=120 chromium fonts-dejavu-core; } >/dev/null 2>&1 && exit 0; \
	fi; \
	echo "no Chromium here and none could be installed: its tests are skipped"

# The oldest transformers that is supported, in a folder of its own before the installed one.
test-t52: .venv/.dev .t52/.done
	PYTHONPATH=.t52 $(BIN)/python -c 'import transformers; assert transformers.__version__ == "5.2.0", transformers'
	PYTHONPATH=.t52 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -k "equal or load or tokenizer or layout or alias" tests/engine tests/models

readme: .venv/.dev
	$(BIN)/kvfoot methods --into README.md
	$(BIN)/kvfoot demo --line-up passkey --svg docs/demo.svg

bench: .venv/.dev
	$(BIN)/python benchmarks/cpu.py

# kvpress needs transformers below 5.3: an environment of its own. About seven minutes once that is there.
peers: .peers/.done
	OMP_NUM_THREADS=1 .peers/bin/python benchmarks/peers/same_entries.py --out results/peers.json
	OMP_NUM_THREADS=1 .peers/bin/python benchmarks/peers/cost.py --out results/peers.json
	OMP_NUM_THREADS=1 .peers/bin/python benchmarks/peers/cost.py --model random --context 8192 --methods snapkv,adakv --out results/peers.json
	.peers/bin/python benchmarks/peers/tables.py results/peers.json --into docs/kvpress.md

clean:
	rm -rf .venv .t52 .peers out

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "kvfoot needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/.torch: constraints.txt | .venv/bin/python
	if [ "$$(uname)" = Linux ] && [ -n "$(TORCH_CPU_INDEX)" ] && ! nvidia-smi -L >/dev/null 2>&1; then \
	  $(PIP) install --no-deps --retries 1 --index-url $(TORCH_CPU_INDEX) "$$(grep '^torch==' constraints.txt)" \
	  || echo "no torch from $(TORCH_CPU_INDEX): taking pip's default build"; \
	fi
	touch $@

.venv/.run: pyproject.toml constraints.txt .venv/.torch
	$(PIP) install -e . -c constraints.txt
	touch $@

.venv/.dev: .venv/.run
	$(PIP) install -e '.[dev]' -c constraints.txt
	touch $@

.t52/.done: Makefile .venv/.run
	rm -rf .t52
	$(PIP) install --target .t52 --no-deps transformers==5.2.0 tokenizers==0.22.2
	touch $@

# Always a build without CUDA, whatever the machine has: on Linux pip's default is none, so there is no falling back.
.peers/.done: pyproject.toml benchmarks/peers/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "kvfoot needs Python 3.11 or newer: make PYTHON=python3.12 peers")'
	$(PYTHON) -m venv .peers
	if [ "$$(uname)" = Linux ]; then \
	  $(PEERS) install --no-deps --index-url $(or $(TORCH_CPU_INDEX),https://download.pytorch.org/whl/cpu) "$$(grep '^torch==' benchmarks/peers/constraints.txt)"; \
	fi
	$(PEERS) install -e . kvpress transformers torch -c benchmarks/peers/constraints.txt
	touch $@
