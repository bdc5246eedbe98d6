# Two commands do it all: `make demo` (a running app to play with) and `make test`.
PYTHON ?= $(shell for p in python3.15 python3.14 python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
SEEDS ?= 1 2 3
SECONDS ?= 40
# most tests wait: more of them at once than there are cores
JOBS ?= 6
# what `make pythons` tests under
PYTHONS ?= python3.11 python3.12 python3.13 python3.14 python3.15
# where it is set, each process of the tests that is given it would compile anew what it imports
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
.PHONY: docs site containers demo demo-stop setup test collected pythons check lint types imports fmt bench profile chaos chaos-long reload-load fuzz leaks failpoints lives clean

$(VENV)/.demo: pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer with venv was found. Install one (Debian: apt install python3 python3-venv), or say make PYTHON=/path/to/python"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

# not compiled: that is a third of its time, and tests import a tenth of it
$(VENV)/.dev: pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer with venv was found. Install one (Debian: apt install python3 python3-venv), or say make PYTHON=/path/to/python"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.[dev]'
	@touch $@ $(VENV)/.demo

setup: $(VENV)/.dev

demo: $(VENV)/.demo  ## install, start configs/app.toml, show the spread, leave it running
	@$(BIN)/python configs/demo.py

demo-stop: $(VENV)/.demo  ## stop what `make demo` started
	@$(BIN)/python configs/demo.py stop

test: $(VENV)/.dev  ## the tests
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

collected: $(VENV)/.dev  ## compile the tests, which each of JOBS would do for itself where none has
	@said=$$($(BIN)/python -m pytest --collect-only -q) || { echo "$$said"; exit 1; }

pythons:  ## the tests under each of PYTHONS that is here, in environments of their own; PYTHONS="python3.12 /path/to/python3.13"
	@tested=; for python in $(PYTHONS); do \
		version=$$($$python -c 'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || { echo "$$python is not here"; continue; }; \
		echo "Python $$version"; tested=yes; \
		$(MAKE) --no-print-directory test VENV=.venv-$$version PYTHON=$$python || exit 1; \
	done; test -n "$$tested"

check: lint types imports test  ## what CI runs before a short chaos

lint: $(VENV)/.dev
	$(BIN)/ruff check pyworker tests benchmarks configs
	$(BIN)/ruff format --check pyworker

fmt: $(VENV)/.dev
	$(BIN)/ruff format pyworker

types: $(VENV)/.dev
	$(BIN)/mypy

imports: $(VENV)/.dev
	$(BIN)/lint-imports

bench: $(VENV)/.dev  ## beside the peers, in turns (some 20 minutes); PARTS="keepalive conns" for some
	$(BIN)/python -m benchmarks $(PARTS)

profile: $(VENV)/.dev  ## where the time goes: PATHS="asgi wsgi conns daemon logger ps"
	$(BIN)/python -m benchmarks.profile $(PATHS)

docs: $(VENV)/.dev  ## what is made from the code: reference pages, the manual page, pictures
	$(BIN)/python docs/make.py
	$(BIN)/python docs/screenshots.py

site: $(VENV)/.dev  ## the documents as a web site, in site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict

containers: $(VENV)/.dev  ## pyworker run and its exports in real containers (root; apt install podman runc catatonit; some 6 minutes)
	CONTAINER_TESTS=1 $(BIN)/python -m pytest -q -o faulthandler_timeout=290 tests/system/test_podman.py tests/system/test_container.py

chaos: $(VENV)/.dev  ## kill -9 of random processes under load; SEEDS="1 2 3" SECONDS=40
	@for seed in $(SEEDS); do $(BIN)/python -m tests.chaos.chaos --seed $$seed --seconds $(SECONDS) || exit 1; done

chaos-long: $(VENV)/.dev  ## an hour of it, with checks of processes, fds and memory in between
	$(BIN)/python -m tests.chaos.chaos --long $(ARGS)

reload-load: $(VENV)/.dev  ## 200 reloads under every kind of client (some 8 minutes)
	$(BIN)/python -m tests.chaos.reload_load $(ARGS)

lives: $(VENV)/.dev  ## the daemon's code in simulated worlds, each by its seed: SEEDS="17 99", or new ones for SECONDS=40
	$(BIN)/python -m tests.simulation.lives $(if $(filter file,$(origin SEEDS)),--seconds $(SECONDS),$(SEEDS))

fuzz: $(VENV)/.dev  ## 1,000,000 inputs without a process, 200,000 messages at a live daemon
	$(BIN)/python -m tests.fuzz.offline
	$(BIN)/python -m tests.fuzz.live

leaks: $(VENV)/.dev  ## 10,000 restarts, 1,000 commands, 1,000 reloads: nothing may grow
	$(BIN)/python -m tests.leaks.leaks $(ARGS)

failpoints: $(VENV)/.dev  ## every failpoint x kill, raise, sleep, and all pairs of deaths, under load
	PYWORKER_TEST_ALL=1 $(BIN)/python -m pytest tests/system/test_failpoints.py tests/system/test_pairs.py $(ARGS)

clean:
	rm -rf $(VENV) .venv-* site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .demo
