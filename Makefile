# What can a person do with this checkout, given nothing but Python 3.11 or newer and make? `make` lists it.

BIN := .venv/bin
PY := $(BIN)/python
STAMP := .venv/installed-from
INSTALLED_FROM = { pwd; cat pyproject.toml requirements.lock; }
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
UV = $(or $(wildcard $(BIN)/uv),uv)
LOCK = $(UV) pip compile pyproject.toml -q --no-config --universal --generate-hashes --no-header --no-annotate \
	$(if $(UPGRADE),--upgrade)

.DEFAULT_GOAL := help
.PHONY: help install demo dev test check bench outage ledger-speed ledger-truth lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: install ## Show a run that waits for consent and survives kill -9 (YES=1: nobody needs to answer)
	@$(PY) -m starter demo $(if $(filter-out 0,$(YES)),--yes)

dev: install ## Run Temporal, PostgreSQL and a worker on this machine until Ctrl-C
	@$(PY) -m starter dev $(ARGS)

test: install check ## Install, check, and pass every test with 90 % branch coverage (ARGS: for pytest; JOBS: side by side, 2)
	@$(PY) -m pytest -q -n $(or $(JOBS),2) --dist worksteal --cov --cov-report=term:skip-covered --cov-fail-under=90 $(ARGS)

check: install ## Formatting, lint, types, import contracts
	@$(BIN)/ruff format -q --check . || { echo "formatting differs: run $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check -q .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports

bench: install ## Run every benchmark and print its figures (but input_bound.py, which needs tokenizers that are no part of this)
	@set -e; for benchmark in $(filter-out %/input_bound.py,$(wildcard benchmarks/*.py)); do echo "$$benchmark"; $(PY) "$$benchmark"; done

outage: install ## Break a model for a minute under 200 runs and print what it saw (ARGS: --runs, --seconds)
	@$(PY) benchmarks/outage.py $(ARGS)

ledger-speed: install ## Hold money from several processes and print holds per second (ARGS: --processes, --runs)
	@$(PY) benchmarks/ledger_speed.py $(ARGS)

ledger-truth: install ## Make 10,000 calls, a third of which go wrong, and hold the ledger against the bill (ARGS: --calls)
	@$(PY) benchmarks/ledger_truth.py $(ARGS)

# The stamp is what was installed from, word for word: a changed lock, a moved checkout or another project file installs again.
# Only a folder that is a virtual environment is ever cleared, and a linked .venv is made where the link points.
install: ## Install what requirements.lock names into .venv (the others do it when needed)
	@set -e; \
	if ! $(PY) -c '$(NEW_ENOUGH)' 2>/dev/null; then \
		for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 ''; do \
			[ -n "$$python" ] || { \
				echo "error: no Python 3.11 or newer with its venv module found: install one (Debian, Ubuntu: python3-venv)," \
					"or name it: make PYTHON=/path/to/python3" >&2; exit 1; }; \
			! "$$python" -c 'import ensurepip, venv; $(NEW_ENOUGH)' 2>/dev/null || break; \
		done; \
		echo "making .venv with $$("$$python" --version)"; \
		"$$python" -m venv $$([ ! -f .venv/pyvenv.cfg ] || echo --clear) \
			"$$("$$python" -c 'import os; print(os.path.realpath(".venv"))')"; \
	fi; \
	if ! $(INSTALLED_FROM) | cmp -s - $(STAMP); then \
		echo "installing what requirements.lock names into .venv"; \
		$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null; \
		$(PY) -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock; \
		PATH="$$PWD/$(BIN):$$PATH" $(PY) -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .; \
		$(INSTALLED_FROM) > $(STAMP); \
	fi

lock: ## Write requirements.lock and deploy/worker.lock anew, for maintainers; needs uv (UPGRADE=1: newer versions)
	@$(LOCK) --group worker --group starter --group dev -o requirements.lock
	@$(LOCK) --group worker --group cli --constraint requirements.lock -o deploy/worker.lock

clean: ## Remove .venv, caches and reports; what dev and demo keep in .durable-agents stays
	@[ -L .venv ] || rm -rf .venv
	@rm -rf .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.* dist *.egg-info
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
