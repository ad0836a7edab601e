# `make demo` and `make test` set a fresh machine up by themselves; both use the pinned set in constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SITE := $(BIN)/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going --doctree-dir build/doctrees docs build/site

.PHONY: demo test check docs bench clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

demo: $(INSTALLED)   ## train a small network on digits, quantize it, prove it, write a report
	$(BIN)/lowbit demo

test: $(INSTALLED)   ## the test suite, without the minutes-long checks on real networks
	$(BIN)/pytest -n 2 -m 'not slow and not gpu'

check: $(INSTALLED)  ## everything that has to be green: lint, types, tests, docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 -m 'not slow and not gpu'
	$(SITE)

docs: $(INSTALLED)   ## the command reference, from the commands themselves, and the site of docs/, in build/site
	$(BIN)/python -m typer lowbit.cli utils docs --name lowbit --output docs/cli.md
	$(SITE)

bench: $(INSTALLED)  ## every benchmark, quickly; the figures of record are in benchmarks/RESULTS.md
	for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script --quick || exit 1; done

clean:
	rm -rf $(VENV) build runs .pytest_cache .mypy_cache .ruff_cache
