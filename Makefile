# Every target works on a fresh clone: the first one sets up .venv, the next ones find it there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/digits

.PHONY: audit test test-fast bench docs clean

audit: $(VENV)/.installed
	$(BIN)/vestige audit digits --out $(OUT)

test: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2

test-fast: $(VENV)/.installed-dev
	$(BIN)/pytest -n 2 -m "not slow and not browser"

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/precision.py
	$(BIN)/python benchmarks/gradients.py
	$(BIN)/python benchmarks/gradients.py --records 1000000
	$(BIN)/python benchmarks/signals.py
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/encoding.py
	$(BIN)/python benchmarks/audit.py
	$(BIN)/python benchmarks/page.py

docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site runs

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "expected Python 3.11 or newer, got $$($(PYTHON) --version); set PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

# constraints.txt names what resolves together and was run
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo 'installing vestige and what it needs into $(VENV) (a minute or two, once)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(VENV)/.installed $@
