# Everything runs in .venv, made on first use; nothing outside this folder is touched but the model cache.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e
DEMO ?= assets/lamp.png
# A process a core, of one thread each; files stay whole, since their tests share what they make, and in order.
TEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast lint docs clean

demo: $(VENV)/.demo  ## one picture -> out/: splat files, turntable, viewer page
	@$(BIN)/python -m dd3g.models fetch u2netp || echo "going on without it: the demo picture has alpha"
	$(BIN)/python -m dd3g.infer $(DEMO) -o out --format ply,glb --turntable --viewer

test: $(VENV)/.dev  ## the test suite
	@$(BIN)/python -m dd3g.models fetch u2netp pose_detection pose_landmark_full || echo "going on without it: tests that need it are skipped"
	$(TEST)

test-fast: $(VENV)/.dev  ## the tests that take no more than two seconds each
	$(TEST) -m "not slow"

lint: $(VENV)/.dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev  ## the documentation as a site, with an object to turn -> site/
	$(BIN)/python -m dd3g.infer $(DEMO) -o docs/live --format ply --viewer
	$(BIN)/python -m mkdocs build --strict

clean:  ## remove the environment and the results of `make demo`
	rm -rf $(VENV) out site docs/live

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[video]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[dev]'
	@touch $@ $(VENV)/.demo

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed, found $$(python3 --version 2>&1);" \
		"install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: $(PYTHON) cannot make an environment;" \
		"install its venv package (on Debian and Ubuntu: python3-venv)" >&2; exit 1; }
