# make demo   draws 80 pictures with the bundled model
# make test   runs the tests
# Both create .venv and install into it where needed. VENV=... uses another environment as it is.

VENV ?= .venv
PYTHON ?= python3
OUT ?= out/demo
ARGS ?=

BIN = $(VENV)/bin
ifeq ($(origin VENV),file)
RUNTIME = $(VENV)/.installed
DEVELOP = $(VENV)/.installed-dev
else
RUNTIME = $(BIN)/python
DEVELOP = $(BIN)/python
endif

.PHONY: demo test lint clean

demo: $(RUNTIME)
	$(BIN)/genlab sample --config demo -o $(OUT)

test: $(DEVELOP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(DEVELOP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[dev]"
	touch $@ $(VENV)/.installed
