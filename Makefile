# Two commands matter: `make demo` and `make test`. Both set up .venv first, once.
.PHONY: help demo test lint format lock oracle fuzz clean
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

# For each door ten million executions; what they reach stays in runs/fuzz and is gone on from.
FUZZ_RUNS := 10000000
FUZZ_VENV := .venv-fuzz
FUZZ_READY := $(FUZZ_VENV)/.ready

$(FUZZ_READY): setup/fuzz.txt $(READY)
	$(BIN)/python -m venv --clear $(FUZZ_VENV)
	$(FUZZ_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement setup/fuzz.txt
	packages='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	$(BIN)/python -c "$$packages" > $$($(FUZZ_VENV)/bin/python -c "$$packages")/tests.pth
	@touch $@

fuzz: $(FUZZ_READY)  ## hostile inputs to each door, guided by coverage, FUZZ_RUNS= for each
	@mkdir -p runs/fuzz
	@for door in apr hf_folder gguf tokenizer corpus; do \
		$(FUZZ_VENV)/bin/python -m tests.fuzz.run $$door runs/fuzz/$$door -runs=$(FUZZ_RUNS) || exit 1; \
	done

clean:  ## remove the environments and every run
	rm -rf $(VENV) .venv-oracle $(FUZZ_VENV) runs
