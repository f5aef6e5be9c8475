# Two commands do everything on a machine with Python 3.10 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INTEROP := .venv-interop
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint format bench interop clean

$(INSTALLED): pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py --out demo-out

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -q

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.bench_engine
	$(BIN)/python -m benchmarks.bench_ops_cpu
	$(BIN)/python -m benchmarks.ablations

# What of llama.cpp is not needed is not built; OpenMP would bring threads of its own beside those of torch.
LLAMA_CMAKE := -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
	-DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DGGML_OPENMP=OFF

$(INTEROP)/.installed: pyproject.toml setup.py constraints.txt constraints-interop.txt $(wildcard csrc/*)
	test -x $(INTEROP)/bin/python || $(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/pip install --quiet --constraint constraints-interop.txt torch
	CMAKE_ARGS="$(LLAMA_CMAKE)" $(INTEROP)/bin/pip install --quiet --constraint constraints-interop.txt \
		--editable . 'lm-eval[hf]' mergekit gguf llama-cpp-python peft
	touch $@

interop: $(INTEROP)/.installed
	$(INTEROP)/bin/python -m benchmarks.interop

clean:
	rm -rf $(VENV) $(INTEROP) demo-out build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
