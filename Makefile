# Every target builds its own .venv first, from pyproject.toml and constraints.txt, and only when these change.
# Needed beforehand: Python 3.11 or newer with its venv module, make, git.

PYTHON ?= python3
PIP_FLAGS ?=
PYTEST_FLAGS ?=
WORKERS ?= 2

BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test newest results bench docs format clean help
.DEFAULT_GOAL := help

demo: $(READY) ## train one small network per encoding on Bach chorales; writes runs/<name>/report.html
	$(BIN)/relpos compare chorales --encodings nope,sinusoidal,rope,alibi,t5,shaw

# One thread a worker: more of them only wait for each other.
test: export OMP_NUM_THREADS := 1
test: $(READY) ## lint, format, types, import floors, all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n $(WORKERS) $(PYTEST_FLAGS)

newest: export OMP_NUM_THREADS := 1
newest: ## all tests with the newest release of everything, timm and torchvision among it (.venv-newest, 7 GB)
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -e '.[all,vision]'
	.venv-newest/bin/pytest -n $(WORKERS) $(PYTEST_FLAGS)

results: $(READY) ## the longer comparison behind docs/results/chorales.md
	$(BIN)/relpos compare chorales --preset results --markdown docs/results/chorales.md

bench: $(READY) ## time and memory of attention with every kind of encoding
	$(BIN)/relpos bench attention

docs: export NO_MKDOCS_2_WARNING := 1
docs: $(READY) ## build the documentation into site/, with strict links; open site/index.html
	$(BIN)/mkdocs build --strict --quiet

format: $(READY) ## put the code into the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and all caches; runs/ stays
	rm -rf .venv .venv-newest build dist site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "relpos needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo not found)." >&2; \
	  echo "Name another one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Building .venv: about 1.3 GB, a few minutes, once."
	@$(PYTHON) -m venv --clear .venv || { rm -rf .venv; \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[all]'
	@touch $@
