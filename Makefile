# All targets use .venv/bin/python. `make demo` and `make test` do their own set-up on a fresh machine.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
NATIVE := setup.py $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')

.PHONY: setup build demo test lint bench docs sanitize clean

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
	TORCH_CPP_LOG_LEVEL=ERROR $(PY) -m gencore demo

test: build lint
	$(PY) -m pytest -n 2 --dist worksteal

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(filter csrc/%,$(NATIVE))
	$(PY) -m mypy

bench: build
	$(PY) -m benchmarks run

docs: build
	$(PY) -m benchmarks tables

# The CPU kernels once more, with every out-of-bounds access and undefined operation ending the tests.
sanitize: $(VENV)/.installed
	GENCORE_SANITIZE=address,undefined $(PY) setup.py --quiet build --build-lib build/sanitized
	cp -r tests pyproject.toml build/sanitized
	cd build/sanitized && LD_PRELOAD=$$(g++ -print-file-name=libasan.so):$$(g++ -print-file-name=libubsan.so) \
	ASAN_OPTIONS=detect_leaks=0 $(abspath $(PY)) -m pytest -q --only-impl cpu -k "not opcheck and not compile" \
	tests/test_parity.py tests/test_determinism.py tests/test_poison.py tests/test_conv.py tests/test_conv_winograd.py \
	tests/test_conv_line.py tests/test_conv_norm_act.py tests/test_conv_rescaled.py tests/test_freezing.py tests/test_stylegan_layers.py \
	tests/test_progan_ops.py tests/test_spectral_norm_layers.py tests/test_autograd.py tests/test_norm_double_backward.py

clean:
	rm -rf build dist out *.egg-info gencore/*.so gencore/_build.json $(VENV)/.built
