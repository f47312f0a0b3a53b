# `make demo` and `make test` set up everything they need in .venv, once; see `make help`.
# Another Python:        make test PYTHON=python3.12
# Other versions:        make test TRANSFORMERS=5.4.0 ACCELERATE=1.11.0 VENV=.venv-oldest
# A part of the tests:   make test ARGS="tests/test_import_hook.py -k thread"
# More runs at a time:   make evidence JOBS=8

PYTHON ?= python3
VENV ?= .venv
TRANSFORMERS ?=
ACCELERATE ?=
WORKERS ?= 2
JOBS ?= 2
ARGS ?=

BIN := $(VENV)/bin
ASKED := $(addprefix transformers==,$(TRANSFORMERS)) $(addprefix accelerate==,$(ACCELERATE))
STAMP := $(VENV)/.installed$(addprefix -,$(TRANSFORMERS))$(addprefix -accelerate-,$(ACCELERATE))
PINS := $(VENV)/constraints.txt
# Twice quiet: errors only.
PIP := $(BIN)/python -m pip -q -q --disable-pip-version-check --no-input
# transformers caps two more: another transformers needs others of them as well.
UNPIN := $(if $(TRANSFORMERS),-e '/^(transformers|huggingface_hub|tokenizers)==/d') \
	$(if $(ACCELERATE),-e '/^accelerate==/d') -e ''
# An environment of another Python than is asked for is made anew: a mixture does not work.
WHICH := import sys; print(sys.version, sys.base_prefix)
SOURCES := hf_relopt tests recipes benchmarks docs/site
# An environment of its own: the site needs neither PyTorch nor anything of ours installed.
DOCS := .venv-docs
SAY := @printf '==> %s\n'

# Nothing of ours may reach for the network in a test or a demo; tokenizers warn when forked.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# Each question that `accelerate launch` would else answer by itself, with a warning.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
# `accelerate launch`, which ends with the recipe's own exit code.
LAUNCH := $(BIN)/python -m hf_relopt.cli.launch --num_processes 1 --num_machines 1 --mixed_precision no \
	--dynamo_backend no --num_cpu_threads_per_process $(CORES)

# What of these was given on the command line, for the demo's hints.
COMMA := ,
GIVEN = $(foreach name,PYTHON VENV TRANSFORMERS,$(if \
	$(filter command,$(origin $(name))),$(COMMA) "$(name)=$($(name))"))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test check style bench evidence evidence-quick docs clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP)  ## train a small GPT-2 with fromage_spectral on the text of Python's standard library (3 to 10 minutes)
	$(SAY) "Training; everything goes to runs/demo. Interrupted, the same command resumes."
	@exec env $(OFFLINE) HF_RELOPT_DOOR='[["make", "demo"$(GIVEN)], []]' \
		$(LAUNCH) recipes/pretrain_clm.py --run_name demo $(ARGS)

test: $(STAMP)  ## run the tests (5 to 15 minutes on 2 cores)
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
		command -v google-chrome >/dev/null || \
		echo "No chromium here: the tests of pages in a browser are skipped (Debian: apt-get install chromium)."
	$(SAY) "Running the tests in $(WORKERS) processes"
	@$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: $(STAMP)  ## ruff, mypy and the tests
	$(SAY) "ruff"
	@$(BIN)/ruff check $(wildcard $(SOURCES))
	@$(BIN)/ruff format --check --quiet $(wildcard $(SOURCES)) || \
		{ echo "Some files are not formatted: run 'make style'."; exit 1; }
	$(SAY) "mypy"
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory test

style: $(STAMP)  ## format the code and mend what ruff can mend
	@$(BIN)/ruff check --fix $(wildcard $(SOURCES))
	@$(BIN)/ruff format $(wildcard $(SOURCES))

bench: $(STAMP)  ## time a step of each optimizer (prints a table of ratios)
	$(SAY) "Timing optimizer steps; leave the machine alone meanwhile"
	@$(OFFLINE) $(BIN)/python benchmarks/step_time.py $(ARGS)

evidence-quick: $(STAMP)  ## a first look at the papers' experiments beside AdamW and SGD (20 minutes on 2 cores)
	$(SAY) "Results go to runs/evidence. Interrupted, the same command goes on."
	@TOKENIZERS_PARALLELISM=false $(BIN)/python benchmarks/evidence.py --size quick --jobs $(JOBS) --out runs/evidence $(ARGS)

evidence: $(STAMP)  ## the same with more optimizers, learning rates and sizes (hours)
	$(SAY) "Results go to runs/evidence. Interrupted, the same command goes on."
	@TOKENIZERS_PARALLELISM=false $(BIN)/python benchmarks/evidence.py --jobs $(JOBS) --out runs/evidence $(ARGS)

docs: $(DOCS)/.installed  ## build the site from docs/ and the docstrings, strictly, into site/
	@# Not --quiet: it would hide warnings from --strict, too.
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict $(ARGS)
	$(SAY) "Built. To look at it: $(DOCS)/bin/mkdocs serve"

setup: $(STAMP)  ## only build the environment

define CHECK_PYTHON
	@command -v $(PYTHON) >/dev/null 2>&1 || \
		{ echo "$(PYTHON) not found. Install Python 3.10 or newer, or say which: make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "hf_relopt needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
		       "Say which to use: make PYTHON=python3.12"; exit 1; }
endef

# The extra `docs` of pyproject.toml alone: with the package itself would come PyTorch.
$(DOCS)/.installed: pyproject.toml constraints.txt
	$(CHECK_PYTHON)
	$(SAY) "Making $(DOCS)"
	@[ ! -e $(DOCS) ] || [ -f $(DOCS)/pyvenv.cfg ] || \
		{ echo "$(DOCS) is there and is no environment: make docs DOCS=ANOTHER"; exit 1; }
	@$(PYTHON) -m venv --clear $(DOCS) || \
		{ echo "Could not make $(DOCS). On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(DOCS)/bin/python -m pip -q -q --disable-pip-version-check --no-input install -c constraints.txt \
		$$(sed -n '/^docs = \[/,/^\]/ s/^ *\("[^"]*"\).*/\1/p' pyproject.toml | tr -d '"')
	@touch $@

$(STAMP): pyproject.toml constraints.txt
	$(CHECK_PYTHON)
	$(SAY) "Making $(VENV) with $$($(PYTHON) -V 2>&1)"
	@old=$$($(BIN)/python -c 'import pip; $(WHICH)' 2>/dev/null); new=$$($(PYTHON) -c '$(WHICH)'); clear=; \
	if [ "$$old" != "$$new" ] && [ -f $(VENV)/pyvenv.cfg ]; then clear=--clear; fi; \
	[ "$$old" = "$$new" ] || $(PYTHON) -m venv $$clear $(VENV) || \
		{ echo "Could not make $(VENV). On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@sed -E $(UNPIN) constraints.txt > $(PINS)
	@printf '%s\n' $(ASKED) >> $(PINS)
	$(SAY) "Installing PyTorch (large: this can take some minutes)"
	@$(PIP) install -c $(PINS) "$$(grep '^torch==' $(PINS))"
	$(SAY) "Installing hf_relopt and what it needs"
	@$(PIP) install -c $(PINS) -e '.[dev]'
	@rm -f $(VENV)/.installed*
	@touch $@
	$(SAY) "$(VENV) is ready"

clean:  ## remove the environment, caches and builds (runs/ stays)
	for venv in $(VENV) $(DOCS); do [ ! -e $$venv ] || [ -f $$venv/pyvenv.cfg ] || exit 1; done
	rm -rf $(VENV) $(DOCS) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(wildcard $(SOURCES)) -name __pycache__ -type d -prune -exec rm -rf {} +
