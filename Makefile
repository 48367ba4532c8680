# Everything that a developer or CI does with Cartwheel. Needs Python 3.11 or newer, make, and (for the odd package
# without a wheel for your machine) a C compiler. `make` lists the targets.
#
# Tests, simulator and bench run against the wheel, installed as a user would have it; never against src/.

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= auto
ARGS   ?=

BIN     := $(VENV)/bin
LOCKED  := $(VENV)/.locked
INSTALLED := $(VENV)/.installed
UV_VERSION := 0.13.9

# Folders are among the sources so that a removed file counts as a change, too.
SOURCES := pyproject.toml $(wildcard README.md LICENSE) \
	$(shell find src -not -name '__pycache__' -not -path '*/__pycache__/*' -not -name '.*')

# pip takes its time to look for a newer self.
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup dev test check coverage format sim bench chaos soak lock clean
.DELETE_ON_ERROR:

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(INSTALLED) ## Make the virtual environment (.venv): locked dependencies and the built wheel

dev: setup ## Start a local cluster from the working tree [ARGS=...]
	@exec $(BIN)/cartwheel dev $(ARGS)

test: setup ## Run the tests against the wheel [ARGS="-k ring -x"] [JOBS=2; 0 for one process]
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

check: $(LOCKED) ## Check style, types and the floors of the architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

coverage: setup ## Run the tests in one process; core/ must reach full branch coverage
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage report

format: $(LOCKED) ## Format the code, and mend what ruff can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

sim: setup ## Run the simulator: 100 seeds [SEEDS=n: so many] [SEED=n: repeat that run] [ARGS=...]
	$(BIN)/python -m cartwheel.sim $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),100) --jobs 2) $(ARGS)

bench: setup ## Run the standard benchmark [ARGS=...]
	$(BIN)/python -m cartwheel.bench.standard $(ARGS)

chaos: setup ## Break a cluster of real processes under load, and judge it [ARGS=...]
	$(BIN)/cartwheel chaos $(ARGS)

soak: setup ## The same for half an hour, then 200 kills in a row [MINUTES=30] [CYCLES=200] [ARGS=...]
	$(BIN)/cartwheel chaos --minutes $(or $(MINUTES),30) $(ARGS)
	$(BIN)/cartwheel chaos --cycles $(or $(CYCLES),200) $(ARGS)

lock: .tools/uv-$(UV_VERSION) ## Resolve requirements/dev.lock anew [ARGS=--upgrade for newer versions]
	.tools/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock" --group dev $(ARGS) --output-file requirements/dev.lock pyproject.toml

clean: ## Remove what make made (the environments, builds and caches)
	rm -rf $(VENV) .tools build dist htmlcov .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- how ------------------------------------------------------------------------------------------------------------

define CHECK_PYTHON
import sys
if sys.version_info < (3, 11):
    sys.exit("Cartwheel needs Python 3.11 or newer, this is %d.%d: try `make PYTHON=python3.13 ...`" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError:
    sys.exit("This Python has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv)")
endef
export CHECK_PYTHON

$(LOCKED): requirements/dev.lock
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON): install Python 3.11 or newer, or name it: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c "$$CHECK_PYTHON"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/dev.lock
	@touch $@

# The stamp takes the time at which the build started: a file saved meanwhile is newer, and is built the next time.
$(INSTALLED): $(LOCKED) $(SOURCES)
	@rm -rf $(VENV)/wheel && touch $@.new
	$(BIN)/hatchling build -t wheel -d $(VENV)/wheel
	$(BIN)/python -m pip install --quiet --no-index --no-deps --force-reinstall $(VENV)/wheel/*.whl
	@mv $@.new $@

.tools/uv-$(UV_VERSION):
	$(PYTHON) -m venv --clear .tools
	.tools/bin/python -m pip install --quiet uv==$(UV_VERSION)
	@touch $@
