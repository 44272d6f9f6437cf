# `make demo` and `make test` need nothing but Python >= 3.11 and make. PYTHON=python3.12 chooses the interpreter.

PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python,$(if $(shell $(name) -c '$(RECENT)' 2>/dev/null && echo yes),$(name))) python3)
RECENT := import sys; sys.exit(sys.version_info < (3, 11))
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Two pytest processes share the cores; threads within them would only get in each other's way. Workers of Ray are nice
# by default and would wait for the other tests, and some are started ahead that no test uses. Two hundred processes
# import the package, and need not each compile it.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 RAY_worker_niceness=0 \
	RAY_prestart_worker_first_driver=0 PYTHONDONTWRITEBYTECODE=

.DELETE_ON_ERROR:
.PHONY: help venv demo test nightly lint bench bench-engines bench-networks bench-execution clean

help:
	@echo 'make demo    install into $(VENV), draw an 8192 x 8192 slide, predict its nuclei, verify the result'
	@echo 'make test    everything that must pass: lint, types, tests, coverage'
	@echo 'make nightly what takes longer: runs on Ray that are killed at random times, an autoscaled cluster'
	@echo 'make lint    ruff and mypy only'
	@echo 'make venv    only install, for development'
	@echo 'make bench   time and memory of a prediction: benchmarks/infer.md (twenty minutes)'
	@echo 'make bench-engines    what engines cost: benchmarks/engines.md (ten minutes)'
	@echo 'make bench-networks   networks of other libraries, in .bench: benchmarks/networks.md (ten minutes)'
	@echo 'make bench-execution  bands of rows against other ways, in .bench: benchmarks/execution.md (25 minutes)'
	@echo 'make clean   remove what the others made, $(VENV) too'

$(VENV)/python.stamp:
	@$(PYTHON) -c '$(RECENT)' 2>/dev/null || { echo "error: $(PYTHON) is not Python 3.11 or newer; name one that is: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The first import reads the libraries from disk once, which can take minutes on a cold machine: better here than in
# the middle of a run or a test with a time limit.
WARM := $(PY) -c 'import torch, zarr, dask.array, ray, tifffile, imagecodecs'

$(VENV)/package.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	@echo 'Installing into $(VENV) (a few minutes the first time) ...'
	@$(PIP) -e .
	@$(WARM) || $(WARM)
	@touch $@

$(VENV)/dev.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	@echo 'Installing into $(VENV) (a few minutes the first time) ...'
	@$(PIP) -e '.[dev]'
	@$(WARM) || $(WARM)
	@touch $@ $(VENV)/package.stamp

venv: $(VENV)/dev.stamp

big.tif: | $(VENV)/package.stamp
	$(PY) benchmarks/draw.py $@

demo: $(VENV)/package.stamp big.tif
	$(PY) -m pipeline.infer big.tif
	$(PY) -m pipeline.verify big.zarr
	@echo
	@echo 'Look at big.preview.png: the slide, and the nuclei found in it with the tiles that they were found in.'
	@echo 'The mask itself is big.zarr (OME-Zarr, level "0" the finest): 1 is nucleus.'
	@echo 'Next, an image of your own:  $(PY) -m pipeline.infer IMAGE     and all commands:  $(PY) -m pipeline'

lint: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: lint
	@$(WARM) || $(WARM)
	$(TEST_ENVIRONMENT) $(PY) -m pytest -n 2 --dist loadgroup --cov=pipeline --cov-report=term:skip-covered --cov-fail-under=90

# What takes too long for every time: twenty more runs that are killed at random, a cluster that grows and shrinks.
nightly: $(VENV)/dev.stamp
	$(TEST_ENVIRONMENT) $(PY) -m pytest -m nightly

bench: $(VENV)/dev.stamp
	$(PY) benchmarks/infer.py

bench-engines: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.engines

# What the libraries of networks import, beside what the package itself does.
NETWORKS_NEED := huggingface-hub tqdm einops kornia-rs torch-einops-utils colorlog scikit-image natsort

.bench/networks.stamp: pyproject.toml constraints.txt benchmarks/networks.txt
	$(PYTHON) -m venv .bench
	.bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . $(NETWORKS_NEED)
	.bench/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/networks.txt
	@touch $@

bench-networks: .bench/networks.stamp
	OMP_NUM_THREADS=1 .bench/bin/python -m benchmarks.networks

.bench/execution.stamp: pyproject.toml constraints.txt benchmarks/execution.txt
	$(PYTHON) -m venv .bench
	.bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . huggingface-hub tqdm einops
	.bench/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/execution.txt
	@touch $@

bench-execution: .bench/execution.stamp
	.bench/bin/python -m benchmarks.execution

clean:
	rm -rf $(VENV) .bench build dist *.egg-info .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf big.tif big.zarr big.preview.png
	find . -name __pycache__ -prune -exec rm -rf {} +
