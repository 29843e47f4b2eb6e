# Two commands for a new machine: `make demo` and `make test`. Both set up what they need.
PYTHON ?= python3
VENV ?= .venv
# A CPU build where the registry serves one under this version; set TORCH= to keep a torch that is already there.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
RUN ?= runs/quickstart
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-fast test-compat test-all fix check golden golden-check clean

demo: $(VENV)/.demo
	$(BIN)/taskdistill train recipes/quickstart.yaml --out $(RUN)

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-fast: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not whole"

# With every package of others that the program is held against; what is missing is skipped with its name.
test-compat: $(VENV)/.compat
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" -rs

test-all: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

fix: $(VENV)/.dev
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/python tests/helpers/architecture.py

check: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest -p no:cacheprovider tests/test_layers.py

# What the program gives, recorded from seeds and tiny models; PARTS="losses vectors" chooses some (tests/golden/CHANGES.md).
golden: $(VENV)/.test
	$(BIN)/python tests/golden/record.py $(PARTS)

golden-check: $(VENV)/.test
	$(BIN)/python tests/golden/record.py --check $(PARTS)

clean:
	rm -rf $(VENV) runs

$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(PIP) $(TORCH),)
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/.demo

$(VENV)/.compat: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[compat]'
	touch $@ $(VENV)/.demo $(VENV)/.test

$(VENV)/.dev: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.demo $(VENV)/.test
