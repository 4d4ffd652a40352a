# qwenbox: `make run` serves a model, `make test` proves it works.
VENV := .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
TOOLS := MAKEFLAGS= PATH=$(CURDIR)/$(VENV)/bin:$$PATH
BESIDE := -n 3 --dist loadfile --no-loadscope-reorder  # on two processors: half of the time tests wait; tests/conftest.py orders them

.PHONY: run test soak lint format bench dist native models clean

run: $(VENV)/base               ## environment, build, then a service that chooses its model; MODEL=... and PORT=... choose for it
	@$(MAKE) --no-print-directory -s -j3 $(VENV)/installed $(VENV)/packages $(VENV)/fetched
	$(VENV)/bin/qwenbox $(if $(MODEL),serve $(MODEL)) $(if $(PORT),--port $(PORT))

test: $(VENV)/test native models  ## everything but the minutes-long checks; LONG=1: these too
	$(PY) -m pytest $(BESIDE) $(if $(LONG),,-m "not long")

soak: $(VENV)/test native models  ## thousands of requests with faults, on a tiny model and on real weights: about half an hour
	$(PY) tests/soak.py --requests 10000
	$(PY) tests/soak.py --requests 500 --model qwen2.5-coder-0.5b

lint: $(VENV)/lint
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror src/qwenbox/kernels/csrc/*.cpp src/qwenbox/kernels/csrc/*.h

format: $(VENV)/lint
	$(VENV)/bin/ruff check --fix . ; $(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i src/qwenbox/kernels/csrc/*.cpp src/qwenbox/kernels/csrc/*.h

bench: $(VENV)/test native models  ## every kernel beside its ceiling, then qwenbox beside llama.cpp and OpenVINO: about two hours
	$(PY) bench/kernels.py --model qwen2.5-coder-1.5b
	$(PY) bench/peers.py --prepare llama.cpp
	$(PY) bench/peers.py --prepare openvino
	$(PY) bench/peers.py

native: $(VENV)/base            ## the C++ library, into the source tree, for tests that run from there
	$(TOOLS) cmake -S . -B build/native -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(VENV)/bin/ninja -DQWENBOX_WERROR=ON > build/native.log 2>&1 || (cat build/native.log; exit 1)
	$(TOOLS) cmake --build build/native --target qwenbox_native
	install build/native/libqwenbox_native.so src/qwenbox/kernels/  # a new file: programs that run go on with the old one

models: $(VENV)/test            ## the real weights that the tests use, verified, in the cache
	PYTHONPATH=src $(PY) -m qwenbox pull qwen2.5-coder-0.5b
	PYTHONPATH=src $(PY) -m qwenbox pull qwen2.5-coder-1.5b

dist: $(VENV)/base              ## a wheel that needs no compiler
	$(TOOLS) $(PY) -m pip wheel --no-deps -w dist .

$(VENV)/base:
	@$(PYTHON) -c 'import sys; sys.exit("qwenbox needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; make PYTHON=python3.12 chooses another" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade pip
	$(PY) -m pip install -q cmake ninja
	mkdir -p build
	touch $@

# Of the three, compiling takes longest; what comes over the network comes meanwhile.
$(VENV)/installed: $(VENV)/base pyproject.toml CMakeLists.txt $(shell find src -type f -not -name '*.pyc' -not -name '*.so' 2>/dev/null)
	@echo "qwenbox is compiled, its packages and a first model are fetched meanwhile: a minute or two."
	$(TOOLS) $(PY) -m pip install -q --no-deps .
	touch $@

$(VENV)/packages: $(VENV)/base pyproject.toml
	$(PY) -c "import tomllib, subprocess, sys; subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', *tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']], check=True)"
	touch $@

$(VENV)/fetched: | $(VENV)/packages  # once: later the service fetches what it lacks
	-PYTHONPATH=src $(PY) -m qwenbox pull $(MODEL)
	touch $@

$(VENV)/test: $(VENV)/base pyproject.toml
	$(PY) -c "import tomllib, subprocess, sys; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', *p['dependencies'], *p['optional-dependencies']['test']], check=True)"
	touch $@

$(VENV)/lint: $(VENV)/test
	$(PY) -c "import tomllib, subprocess, sys; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', *p['optional-dependencies']['lint']], check=True)"
	touch $@

clean:
	rm -rf build dist src/qwenbox/kernels/*.so
