# All targets use .venv/bin/python. `make demo` and `make test` do their own set-up on a fresh machine.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
NATIVE := setup.py $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')

.PHONY: setup build demo test lint bench docs clean

setup: $(VENV)/.installed
build: $(VENV)/.built

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check torch==2.13.0 'setuptools>=77' wheel ninja 'pybind11>=2.13'
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[dev]'
	touch $@

$(VENV)/.built: $(VENV)/.installed $(NATIVE)
	$(PY) setup.py --quiet build_ext --inplace
	touch $@

demo: build
	$(PY) -m gencore demo

test: build lint
	$(PY) -m pytest -n 2

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(filter csrc/%,$(NATIVE))
	$(PY) -m mypy

bench: build
	$(PY) -m benchmarks run

docs: build
	$(PY) -m benchmarks tables

clean:
	rm -rf build dist out *.egg-info gencore/*.so gencore/_build.json $(VENV)/.built
