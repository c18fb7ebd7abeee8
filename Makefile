# Everything sets itself up in .venv; nothing here needs root (but system-packages).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_WORKERS ?= 2

SEEDS ?= 2000

.PHONY: demo test test-slow chaos bench bench-recovery bench-peers simulate mutants scale check lint types imports format system-packages clean help

help:
	@echo "make demo             the main job: real work on three devices, one of them killed on the way"
	@echo "make test             all tests (the short lanes)"
	@echo "make test-slow        the longer lanes: everything killed again and again, and the like"
	@echo "make chaos            real processes struck again and again, ROUNDS=100 times (SEED=1: the first seed, ENGINE=, JOBS=, REPORT=)"
	@echo "make simulate         the cores in a simulated world, SEEDS=2000 times (FIRST=0: the first seed)"
	@echo "make mutants          the planted bugs: each must be found by the simulator (MUTANT=: one)"
	@echo "make scale            what a call costs the controller, with 10 to 10,000 devices"
	@echo "make bench            how fast it is here, with the floors (BENCH=--help)"
	@echo "make bench-recovery   how soon work goes on after something died, froze or forgot everything"
	@echo "make bench-peers      beside dask, Celery, Ray, dispy and the process pool (PEERS=--help)"
	@echo "make check            ruff, mypy --strict, import-linter and the tests"
	@echo "make system-packages  what widens the tests' coverage (needs root; Debian)"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "forage needs Python 3.11 or newer; this is %d.%d. Try: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@$(PYTHON) -m venv $(VENV) || { echo "python3 has no venv module here: on Debian, apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/forage demo

test: $(STAMP)
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup -m "not slow" tests

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup -m slow tests

# REPORT=docs/chaos-report.md writes what came of it.
ROUNDS ?= 100
SEED ?= 1
ENGINE ?= both
REPORT ?=
# JOBS=2 plays rounds in so many processes side by side.
JOBS ?= 1
chaos: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m chaos --rounds $(ROUNDS) --seed $(SEED) --engine $(ENGINE) --jobs $(JOBS) $(if $(REPORT),--report $(REPORT))

FIRST ?= 0
simulate: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m forage_sim --seeds $(SEEDS) --first $(FIRST) --jobs $(PYTEST_WORKERS) --shorten

# MUTANT= takes a part of a name.
mutants: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m forage_sim.mutants --only "$(MUTANT)"

scale: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m forage_sim.scale

# What is to be measured, as in `make bench BENCH="--engine mosquitto --only latency"`.
BENCH ?=
bench: $(STAMP)
	cd bench && PYTHONPATH=../tests ../$(BIN)/python -m speed $(BENCH)

# How long until work goes on after something died, froze or forgot: a part of the same bench.
bench-recovery: $(STAMP)
	cd bench && PYTHONPATH=../tests ../$(BIN)/python -m speed --only failover --only frozen --only controller-restart --only broker-restart --only herd $(BENCH)

# Each peer gets an environment of its own below bench/peers; see the README there.
PEERS ?=
bench-peers: $(STAMP)
	$(BIN)/python bench/peers/run.py $(PEERS)

check: lint types imports test

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

system-packages:
	apt-get update -qq
	apt-get install -y -qq mosquitto mosquitto-clients bubblewrap iproute2 nftables strace gcc libc6-dev libmosquitto-dev

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
