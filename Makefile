# make demo   draws 80 pictures with the bundled model
# make test   runs the tests
# make docs   builds the documentation into site/; python3 -m http.server -d site shows it, search included
# All three create .venv and install into it where needed. VENV=... uses another environment as it is.
# make test-lowest   runs quick tests with the lowest versions that pyproject.toml allows, in .venv-lowest

VENV ?= .venv
PYTHON ?= python3
OUT ?= out/demo
ARGS ?=

BIN = $(VENV)/bin
ifeq ($(origin VENV),file)
RUNTIME = $(VENV)/.installed
DEVELOP = $(VENV)/.installed-dev
DOCUMENT = $(VENV)/.installed-docs
else
RUNTIME = $(BIN)/python
DEVELOP = $(BIN)/python
DOCUMENT = $(BIN)/python
endif

# With the lowest versions: what other libraries do for us, or could do otherwise in an older release. 7 minutes of computing,
# about four on two cores: pipelines and schedulers (diffusers), networks and losses (torch), LoRA (peft), torch-fidelity,
# charts (matplotlib).
LOWEST ?= .venv-lowest
LOWEST_TESTS ?= tests/pipelines tests/diffusion tests/networks tests/checkpoints/test_diffusers_models.py \
	tests/checkpoints/test_diffusers_schedulers.py tests/finetuning/test_lora.py \
	tests/eval/test_eval_torch_fidelity_input.py tests/test_charts.py

.PHONY: demo test test-lowest docs lint clean

demo: $(RUNTIME)
	$(BIN)/genlab sample --config demo -o $(OUT)

test: $(DEVELOP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

test-lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 $(LOWEST_TESTS) $(ARGS)

docs: $(DOCUMENT)
	$(BIN)/mkdocs build --strict -q

lint: $(DEVELOP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

clean:
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# uv finds the lowest versions of what pyproject.toml names; pip knows the newest alone.
$(LOWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install -q --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install -q --python $(LOWEST)/bin/python --resolution lowest-direct -e ".[dev]"
	touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[dev]"
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[docs]"
	touch $@ $(VENV)/.installed
