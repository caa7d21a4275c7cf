# Two commands matter: `make demo` shows what EchoLM does, `make test` runs every test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
# Written with a second copy, echolm_stream's.
FRONT_DOOR := model_repository/core/echolm/libtriton_echolm.so

.PHONY: help install demo serve test unit check format clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed $(FRONT_DOOR)  ## Make .venv with the locked dependencies and this package

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else f"EchoLM needs Python 3.10, 3.11 or 3.12, got {v[0]}.{v[1]}; choose one with make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@# --no-deps: the lock is complete, and one package asks for a torch that nothing uses.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(FRONT_DOOR): $(VENV)/.installed $(wildcard python_backends/echolm/front_door/*.*)
	$(BIN)/python -m echolm.front_door.build

# LLMs and requests of your own: make demo MODELS="SMALL LARGE" REQUESTS=FILE OPTIONS="--seed 2".
MODELS_OPTIONS = $(if $(MODELS),--small $(word 1,$(MODELS)) --large $(word 2,$(MODELS)))
demo: install  ## Serve, send live requests, compare EchoLM with the alternatives
	$(BIN)/python scripts/demo.py $(MODELS_OPTIONS) $(if $(REQUESTS),--requests $(REQUESTS)) $(OPTIONS)

serve: install  ## Serve on this machine until Ctrl-C
	$(BIN)/echolm serve

test: check  ## Lint, type check, and all tests with a real Triton and Milvus
	$(BIN)/python -m pytest

unit: install  ## The tests that start no server
	$(BIN)/python -m pytest tests/unit tests/contract

check: install  ## Lint and type check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## Format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:  ## Remove what was built
	rm -rf build $(VENV) model_repository/core/*/libtriton_echolm.so
