# Preceptor. `make` lists the targets; each sets up what it needs in .venv first.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
# PyTorch's CPU builds, for machines whose package index has only the CUDA build under the plain name.
# TORCH_INDEX_URL= (empty) takes whatever the machine's own index offers; another URL takes a GPU build.
TORCH_INDEX_URL ?= https://download.pytorch.org/whl/cpu
STAMP := $(VENV)/.installed
TIER ?= tiny

.PHONY: help install vllm demo up down status test test-long unit check fmt lint types imports migrations migration chaos docs bench-loss bench-update bench-learn bench-sandbox bench-api clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16

install: $(STAMP)  ## make .venv and install everything, pinned (about 3 minutes, 1.4 GB)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV)"
	@$(BIN)/python -c 'import torch, sys; sys.exit(not torch.__version__.startswith("$(TORCH)"))' 2>/dev/null \
		|| $(BIN)/pip install -q "torch==$(TORCH)+cpu" 2>/dev/null \
		|| $(BIN)/pip install -q $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) "torch==$(TORCH)" \
		|| { echo "no torch $(TORCH) found; set TORCH_INDEX_URL to an index that has it (see README)"; exit 1; }
	@$(BIN)/pip install -q -c constraints.txt -e '.[trainer,dev]'
	@# the generator of clients that the tests run; its own bound on typer is older than ours, and its command works with ours
	@$(BIN)/pip install -q -c constraints.txt --no-deps openapi-python-client
	@touch $@

vllm:  ## make .venv-vllm, where a vLLM server can serve the policy (CPU or GPU, 3.4 GB and more; docs/vllm.md)
	@TORCH_INDEX_URL="$(TORCH_INDEX_URL)" $(PYTHON) services/policy/engines/install_vllm.py .venv-vllm $(ARGS)

demo: install  ## the main job: train the starter policy for about 15 minutes and show what it learned
	@$(BIN)/preceptor demo $(ARGS)

up: install  ## start the stack on the data folder and train on incoming tasks until Ctrl-C
	@$(BIN)/preceptor up $(ARGS)

down: install  ## stop the stack of `up` or `demo`
	@$(BIN)/preceptor down

status: install  ## show the state of the loop
	@$(BIN)/preceptor status

test: install  ## run the tests on all processors; ARGS="-n 0 -x tests/store" runs some of them, one at a time
	@$(BIN)/python -m pytest -m "not long" -n auto --dist loadfile $(ARGS)

test-long: install  ## run the long tests, two or three at a time: the whole loop, the demo, disturbances, compose
	@$(BIN)/python -m pytest -m long -n 3 --dist loadfile tests/e2e $(ARGS)

unit: install  ## run the tests that need no server
	@$(BIN)/python -m pytest -m "not integration and not e2e" $(ARGS)

check: install lint types imports migrations  ## run the static checks of CI

fmt: install  ## format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lint: install
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: install
	@$(BIN)/mypy

imports: install
	@$(BIN)/lint-imports

migrations: install
	@$(BIN)/python -c "from alembic.script import ScriptDirectory as S; from services.store.core.migrate import config; \
	heads = S.from_config(config()).get_heads(); assert len(heads) == 1, f'more than one head: {heads}'; print('one head:', heads[0])"

docs: install  ## write the tables of settings and commands in docs/ from the code
	@$(BIN)/python -m tests.documents.settings_page && $(BIN)/python -m tests.documents.commands_page

migration: install  ## a new migration to complete: NAME=purpose, in words with underscores
	@test -n "$(NAME)" || { echo 'name its purpose: make migration NAME=purpose'; exit 1; }
	@$(BIN)/python -c "import sys; from datetime import date; from alembic import command; from services.store.core.migrate import config; \
	command.revision(config(), sys.argv[1], rev_id=f'{date.today():%Y%m%d}_{sys.argv[1]}')" "$(NAME)"

chaos: install  ## 300 tasks while everything is killed, frozen, filled and flooded at random; then invariants in SQL
	@$(BIN)/python -m tests.chaos --tasks 300 $(ARGS)

bench-loss: $(VENV)/.bench  ## time and memory of the losses beside TRL and Liger (long; ARGS="--tokens 256" is short)
	@$(BIN)/python -m benchmarks.loss $(ARGS)

bench-api: install  ## rollouts accepted per second and core, and list and page times at a million rollouts (15 minutes)
	@$(BIN)/python -m benchmarks.api $(ARGS)

bench-learn: install  ## which objective learns best: TIER=tiny, small or gpu take hours, QUICK=1 minutes
	@$(BIN)/python -m benchmarks.learn --tier $(TIER) $(if $(QUICK),--quick) $(ARGS)

bench-update: $(VENV)/.bench  ## one whole update of the starter model, beside TRL's SDPOTrainer on the same batch
	@$(BIN)/python -m benchmarks.update $(ARGS)

bench-sandbox: $(VENV)/.bench  ## cost of a sandboxed run, beside bare Python, bubblewrap and nsjail
	@$(BIN)/python -m benchmarks.sandbox $(ARGS)

$(VENV)/.bench: $(STAMP)
	@echo "installing the libraries that the benchmarks compare with"
	@$(BIN)/pip install -q -c constraints.txt -e '.[trainer,dev,bench]'
	@touch $@

clean:  ## remove the environment and caches; the data folder stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
