# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
RECIPE := recipes/resnet8_fashion_mnist_magnitude_macs50.toml

LEARNED := examples/learned/glyphs.toml
FOUND := runs/demo-learned

.PHONY: demo demo-learned test test-thorough check docs docs-serve clean

demo: .venv/demo.stamp
	$(BIN)/metaprune data get fashion-mnist
	$(BIN)/metaprune prune $(RECIPE)

# A PruningNet is fitted once, searched at two budgets, and its structures trained beside uniform ones.
demo-learned: export PYTHONPATH = examples/learned
demo-learned: .venv/demo.stamp
	$(BIN)/metaprune data get glyphs
	$(BIN)/metaprune fit pruningnet $(LEARNED) --run $(FOUND)/fitted
	$(BIN)/metaprune compare $(LEARNED) --run $(FOUND)/compared --budgets 26%,7.2% --seeds 1 \
		--methods "pruningnet artifact=$(FOUND)/fitted,uniform fill=true,uniform fill=true last_whole=true"

test: .venv/dev.stamp
	$(BIN)/metaprune data get digits
	$(BIN)/python -m pytest -n 2 --dist loadscope

test-thorough: .venv/dev.stamp
	$(BIN)/metaprune data get digits
	$(BIN)/python -m pytest -n 2 --dist loadscope -m ""

check: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

docs: .venv/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: .venv/dev.stamp
	$(BIN)/mkdocs serve

clean:
	rm -rf .venv runs site build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "metaprune needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/demo.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

.venv/dev.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@
