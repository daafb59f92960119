# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all lint docs dist peers env clean

demo: $(VENV)/.base
	$(BIN)/keras-efficient demo $(DEMO)

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# The full products of the pairwise tests and the long forms too: hours, not measured yet.
test-all: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m ""

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python docs/generate.py --check
	EAGER_IMPORT=1 TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -c "import keras_efficient"

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

# Build a wheel and a source archive, and try them in an environment of their own.
dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/python .ci/check_dist.py dist

# Training speed against plain Keras and PyTorch. PyTorch goes into .venv-peers.
peers: $(VENV)/.dev
	$(BIN)/python benchmarks/peers.py $(PEERS)

env: $(VENV)/.dev

$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "keras_efficient needs Python 3.11 to 3.13; this is %d.%d. Try: make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-peers build dist site *.egg-info
