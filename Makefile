# One environment for everything, in .venv. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Installs wheels from hash-pinned files many times faster than pip; itself pinned.
UV_VERSION := 0.13.9
UV := $(BIN)/uv --no-config
# lerobot wants other versions than ours, so it has an environment of its own.
LEROBOT_VENV := .venv-lerobot
LEROBOT := lerobot==0.4.4
# Clients of other protocols, unmodified, for the tests that they drive; one of them pins an older numpy.
CLIENTS_VENV := .venv-clients
CLIENTS_STAMP := $(CLIENTS_VENV)/.installed
# Robots of `make load`, and where its report goes.
USERS ?= 20
REPORT ?= .vlastream/load-report.html
# Minutes of their own: `make test-ops` has them, `make test` has not.
OPS_ONLY := test_compose.py test_scaling.py
# Package downloads run beyond uv's own 30 s on slow lines.
export UV_HTTP_TIMEOUT ?= 300

.PHONY: help setup clients demo test test-secure test-export test-ops test-console load scaling soak check audit \
	format up down ps bench lock proto docs clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(STAMP) ## Install everything into .venv (once; a second run does nothing)

$(STAMP): requirements/all.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "Python 3.11 is needed: install it, or run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the environment into $(VENV) (about 6 GB unpacked, most of it torch) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(UV) pip sync --python $(BIN)/python --require-hashes requirements/all.txt
	@$(UV) pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	@touch $@

clients: $(CLIENTS_STAMP) ## Install the clients of other protocols into .venv-clients (some 130 MB)

$(CLIENTS_STAMP): requirements/clients.txt $(STAMP)
	@test -x $(CLIENTS_VENV)/bin/python || $(PYTHON) -m venv $(CLIENTS_VENV)
	@$(UV) pip sync --quiet --python $(CLIENTS_VENV)/bin/python --require-hashes requirements/clients.txt
	@touch $@

demo: $(STAMP) $(CLIENTS_STAMP) ## A robot fleet does its task through the whole pipeline, on the embedded stack
	@$(BIN)/vlastream demo $(ARGS)

test: $(STAMP) $(CLIENTS_STAMP) ## Run all tests: unit (on two cores), contract, integration, end to end
ifdef ARGS
	@$(BIN)/python -m pytest $(ARGS)
else
	@$(BIN)/python -m pytest --numprocesses 2 tests/unit
	@$(BIN)/python -m pytest --ignore tests/unit $(addprefix --ignore tests/e2e/,$(OPS_ONLY))
endif

test-secure: $(STAMP) $(CLIENTS_STAMP) ## Run the end-to-end tests on a stack with TLS everywhere and a user for each role
	@$(BIN)/python -m pytest tests/e2e --secure-stack $(addprefix --ignore tests/e2e/,$(OPS_ONLY)) $(ARGS)

test-export: $(STAMP) ## Load an exported dataset with lerobot itself (installs it, some 6 GB); DATASET=folder for yours
	@test -x $(LEROBOT_VENV)/bin/python || $(PYTHON) -m venv $(LEROBOT_VENV)
	@$(UV) pip install --quiet --python $(LEROBOT_VENV)/bin/python $(LEROBOT)
	@$(BIN)/python -m tests.lerobot.check --python $(LEROBOT_VENV)/bin/python $(if $(DATASET),--dataset $(DATASET))

test-ops: $(STAMP) ## Metrics, alerts, panels against a real Prometheus (installs it by apt as root); traces, scaling, compose, load
	@command -v promtool >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
		&& apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus; } \
		|| { echo "Prometheus is needed: install it (Debian: apt-get install prometheus), then run this again" >&2; exit 1; }
	@$(BIN)/python -m pytest --no-skips tests/e2e/test_prometheus.py tests/e2e/test_traces.py tests/e2e/test_load.py \
		$(addprefix tests/e2e/,$(OPS_ONLY)) tests/unit/test_compose.py tests/unit/test_alerts.py tests/unit/test_autoscaler.py tests/unit/test_dashboard_picture.py $(ARGS)

test-console: $(STAMP) ## The console in a real Chromium (installs it by apt as root)
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
		&& apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } \
		|| { echo "Chromium is needed: install it (Debian: apt-get install chromium), then run this again" >&2; exit 1; }
	@$(BIN)/python -m pytest --no-skips tests/e2e/test_console*.py tests/unit/test_console_*.py $(ARGS)

load: $(STAMP) ## Two minutes of robots over REST and WebSocket by locust, against the embedded stack or HOST; a report with charts
	@test -n "$(HOST)" -o -f .vlastream/stack.json || $(BIN)/vlastream up
	@mkdir -p .vlastream
	@PYTHONPATH=. $(BIN)/python -m locust -f tests/load/locustfile.py --headless --users $(USERS) --spawn-rate 4 --run-time 2m \
		--stop-timeout 10 --only-summary --html $(REPORT) \
		--host "$${HOST:-$$($(BIN)/python -c "import json; print(json.load(open('.vlastream/stack.json'))['api'])")}" $(ARGS)
	@echo "the report is $(REPORT)"

scaling: $(STAMP) ## A wave of load on GPU consumers that KEDA's formula adds and drains; three minutes, a plot
	@$(BIN)/python -m benchmarks.scaling $(ARGS)

soak: $(STAMP) ## Break everything under load for 30 minutes, and check every promise
	@$(BIN)/python -m tests.faults.soak $(ARGS)

bench: $(STAMP) ## Measure the pipeline, one gate and the sinks; reports go to benchmarks/results
	@$(BIN)/vlastream bench --set main --seconds 12 $(ARGS)
	@$(BIN)/python -m benchmarks.gate_rate
	@$(BIN)/python -m benchmarks.sink_rate

check: $(STAMP) ## Lint, formatting, types, known vulnerabilities
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m deploy.audit

audit: $(STAMP) ## Ask the advisory services about every pinned requirement
	@$(BIN)/python -m deploy.audit

format: $(STAMP) ## Format the code
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

up: $(STAMP) ## Start the embedded stack in the background
	@$(BIN)/vlastream up

down: ## Stop the embedded stack
	@test -x $(BIN)/vlastream && $(BIN)/vlastream down || true

ps: $(STAMP) ## Show the processes of the embedded stack
	@$(BIN)/vlastream ps

lock: $(STAMP) ## Pin the requirement files anew from pyproject.toml
	@deploy/lock.sh

proto: $(STAMP) ## Generate the message classes from schemas/vla/v1/*.proto
	@$(BIN)/python -m schemas.generate

docs: $(STAMP) ## Write the pages that are made from code
	@$(BIN)/python -m runtime.metrics_page > docs/metrics.md
	@PYTHONPATH=. $(BIN)/python -m tests.api_page > docs/api.md
	@$(BIN)/python -m deploy.grafana.boards
	@$(BIN)/python -m deploy.kubernetes.generate

clean: ## Remove the environment and the embedded stack's data
	@rm -rf $(VENV) $(LEROBOT_VENV) $(CLIENTS_VENV) .vlastream
