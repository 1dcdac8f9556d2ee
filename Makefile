# Each target does its own set-up. `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo docs test test-avx2 test-cuda test-distributed test-slow check bench clean

demo: $(VENV)/installed  ## random weights -> SFT -> GRPO -> evaluation, on a CPU
	$(BIN)/posttrain pipeline recipes/pipeline/demo.yaml

test: $(VENV)/installed-dev check  ## what must pass before every commit
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
test-avx2: $(VENV)/installed-dev  ## the same tests with the kernels of a processor without AVX-512
	$(AVX2) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

test-cuda: $(VENV)/installed-dev  ## only those on a pretended CUDA device, which `make test` runs too
	PYTHONPATH=tests/helpers OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p pretend_cuda tests/cuda -n 2

test-distributed: $(VENV)/installed-dev  ## ranks and machines that train, fail and come back, on the CPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m distributed

test-slow: $(VENV)/installed-dev  ## SIGKILL at random moments, and the rest that takes minutes
	$(BIN)/python -m pytest -m slow

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/installed-docs  ## the site in build/site, every link checked
	$(BIN)/python scripts/reference.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/installed-bench  ## posttrain and TRL in turn on the same model and rows
	$(BIN)/python benchmarks/sft.py
	$(BIN)/python benchmarks/preferences.py
	$(BIN)/python benchmarks/rl.py
	$(BIN)/python benchmarks/sampler.py

# torch comes first and from the constraints, so that nothing else asks for another build of it
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "posttrain needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/installed-bench: $(VENV)/installed
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info
