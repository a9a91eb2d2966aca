# Two commands matter: `make demo` and `make test`. Both set up .venv first, once.
.PHONY: help demo test lint format lock oracle clean
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.12 --generate-hashes --no-emit-index-url \
	--no-header --no-annotate --constraint setup/constraints.txt pyproject.toml

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(READY): setup/dev.lock pyproject.toml
	@python=$$(setup/find-python) || exit 1; \
	echo "setting up $(VENV) with $$python"; \
	"$$python" -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement setup/dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)  ## the whole main job on a CPU, in minutes
	$(BIN)/python -m experiments.quickstart --out=runs/quickstart

test: $(READY)  ## every test that needs no GPU
	$(BIN)/python -m pytest -n 2

lint: $(READY)  ## formatting, lint and types, as CI runs them
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)  ## rewrite the files as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(READY)  ## resolve setup/*.lock anew from pyproject.toml
	$(UV_COMPILE) --upgrade --extra dev --output-file setup/dev.lock
	$(UV_COMPILE) --upgrade --extra cuda13 --output-file setup/cuda13.lock

oracle: $(READY)  ## record HuggingFace's logits anew, in an environment with torch of its own
	setup/make-oracle

clean:  ## remove the environments and every run
	rm -rf $(VENV) .venv-oracle runs
