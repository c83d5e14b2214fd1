SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
# Modules are compiled once, not at the start of each process.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help install install-gradio install-peers run test test-long test-clients demo compare fetch-model lint format migrate revision psql key keys revoke-key servers hosts capacity simulate webhook-secret lock clean screenshots bench bench-day bench-peers crash-peers test-compose crashtest

PYTHON ?= python3
# Files of tests at once; they wait for other processes most of the time.
JOBS ?= 3
BIN := .venv/bin
LOCAL := $(BIN)/python -m nvidia_triton.local
VAST := $(BIN)/python -m nvidia_triton.vast
COMPILE := $(BIN)/uv pip compile -q --universal --generate-hashes --python-version 3.11 --no-emit-index-url \
	--custom-compile-command "make lock"

help: ## show this table
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 42

install: ## make .venv and .venv-engine with the pinned dependencies (every target does)
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 to 3.14 is needed and there is no $(PYTHON): install one."; exit 1; }
	@$(PYTHON) -m nvidia_triton.local.bootstrap install

run: install ## start Postgres, Triton, the dispatcher and the API on http://127.0.0.1:8887; Ctrl-C stops all
	@exec $(LOCAL).run --with-parent

install-gradio: ## make .venv-gradio with the Gradio that tests of the engine for it run (make test does)
install-peers: ## make .venv-peers with what make bench-peers compares the service with
install-gradio install-peers: install-%: install
	@cmp -s requirements-$*.txt .venv-$*/installed || { rm -rf .venv-$* \
		&& $(BIN)/uv venv -q --python $(BIN)/python .venv-$* \
		&& $(BIN)/uv pip install -q --compile-bytecode --python .venv-$*/bin/python \
			--require-hashes -r requirements-$*.txt \
		&& cp requirements-$*.txt .venv-$*/installed; }

test: install ## run the tests; they start what they need. One alone: make test ARGS=tests/queue JOBS=0
	@$(MAKE) install-gradio || echo "Gradio could not be installed: the tests with a real app will be skipped."
	@$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-long: install ## run what takes minutes and what make test has only a shorter one of
	@$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m long $(ARGS)

test-clients: install ## run real clients against the service, each installed in .clients/: CLIENTS="litellm openai-node" runs some
	@$(BIN)/python -m tests.clients $(CLIENTS)

demo: install ## store a prompt, send it to a model and wait for the answer
	@exec $(LOCAL).demo

compare: install ## one prompt to several models, side by side: make compare PROMPT="Why is the sky blue?" MODELS="demo a b"
	@exec $(LOCAL).compare

fetch-model: install ## download and verify a model's files: make fetch-model MODEL=minilm [REPO=owner/name REVISION= FILES=]
	@exec $(BIN)/python -m nvidia_triton.hub

lint: install ## check style, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: install ## rewrite the code in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

migrate: install ## bring the database to the newest schema
	@$(LOCAL).database alembic upgrade head

revision: install ## write a migration from the tables' difference: make revision m="add a column"
	@$(LOCAL).database alembic revision --autogenerate -m "$${m:?say what it does: make revision m=\"add a column\"}"

psql: install ## open psql on the local database
	@exec $(LOCAL).database psql

key: install ## make an API key and print it once: make key NAME=alice RPM=60 (docs/keys.md has the other options)
	@$(LOCAL).database app.cli.keys create "$${NAME:?say whose: make key NAME=alice}" $${OWNER:+--owner "$$OWNER"} \
		$${SCOPES:+--scopes "$$SCOPES"} $${EXPIRES_DAYS:+--expires-days "$$EXPIRES_DAYS"} \
		$${RPM:+--requests-per-minute "$$RPM"} $${PENDING:+--pending "$$PENDING"} \
		$${TOKENS_PER_DAY:+--tokens-per-day "$$TOKENS_PER_DAY"} $${WEIGHT:+--weight "$$WEIGHT"} \
		$${TOKENS_PER_MONTH:+--tokens-per-month "$$TOKENS_PER_MONTH"} \
		$${DOLLARS_PER_DAY:+--dollars-per-day "$$DOLLARS_PER_DAY"} \
		$${DOLLARS_PER_MONTH:+--dollars-per-month "$$DOLLARS_PER_MONTH"} \
		$${STORAGE_BYTES:+--storage-bytes "$$STORAGE_BYTES"} $${PERSON:+--person "$$PERSON"} \
		$${ONLY_MODELS:+--models "$$ONLY_MODELS"} \
		$${WEBHOOK:+--webhook "$$WEBHOOK"}

keys: install ## list the API keys
	@$(LOCAL).database app.cli.keys list

revoke-key: install ## end an API key for good: make revoke-key KEY=<id>
	@$(LOCAL).database app.cli.keys revoke "$${KEY:?say which: make revoke-key KEY=<id from make keys>}"

servers: install ## list the servers, or change them: make servers ADD=gpu1 ADDRESS=10.0.0.5:8001, DRAIN=gpu1, ACTIVATE=, DISABLE=, REMOVE= (docs/servers.md)
	@if [ -n "$${ADD:-}" ]; then $(LOCAL).database app.cli.servers add "$$ADD" "$${ADDRESS:?say where: make servers ADD=gpu1 ADDRESS=10.0.0.5:8001}" \
		$${KIND:+--kind "$$KIND"} $${CONCURRENCY:+--concurrency "$$CONCURRENCY"} $${ALIASES:+--models $$ALIASES} \
		$${CREDENTIAL:+--credential "$$CREDENTIAL"} $${HOURLY_PRICE:+--hourly-price "$$HOURLY_PRICE"}; \
	elif [ -n "$${DRAIN:-}" ]; then $(LOCAL).database app.cli.servers drain "$$DRAIN"; \
	elif [ -n "$${ACTIVATE:-}" ]; then $(LOCAL).database app.cli.servers activate "$$ACTIVATE"; \
	elif [ -n "$${DISABLE:-}" ]; then $(LOCAL).database app.cli.servers disable "$$DISABLE"; \
	elif [ -n "$${REMOVE:-}" ]; then $(LOCAL).database app.cli.servers remove "$$REMOVE"; \
	else $(LOCAL).database app.cli.servers; fi

hosts: install ## list the hosts that are or were rented: make hosts [FOLLOW=1], SHOW=host, DRAIN=, DESTROY=, LOCK=, UNLOCK= (docs/capacity.md)
	@if [ -n "$${SHOW:-}" ]; then exec $(LOCAL).database app.cli.hosts show "$$SHOW"; \
	elif [ -n "$${DRAIN:-}" ]; then exec $(LOCAL).database app.cli.hosts drain "$$DRAIN"; \
	elif [ -n "$${DESTROY:-}" ]; then exec $(LOCAL).database app.cli.hosts destroy "$$DESTROY"; \
	elif [ -n "$${LOCK:-}" ]; then exec $(LOCAL).database app.cli.hosts lock "$$LOCK"; \
	elif [ -n "$${UNLOCK:-}" ]; then exec $(LOCAL).database app.cli.hosts unlock "$$UNLOCK"; \
	else exec $(LOCAL).database app.cli.hosts list $${FOLLOW:+--follow}; fi

capacity: install ## what is wanted of hosts, what is decided, and why: make capacity [FOLLOW=1]
	@exec $(LOCAL).database app.cli.capacity $${FOLLOW:+--follow}

simulate: install ## try the policy of hosts in simulated time: make simulate [TRACE=day|batch|trickle|dead|file] [SEED="1 2 3"] [FRONTIER=1] (docs/capacity.md)
	@exec $(BIN)/python -m app.capacity.simulation $${TRACE:+--trace "$$TRACE"} $${SEED:+--seed $$SEED} $${FRONTIER:+--frontier}

webhook-secret: install ## print what signs webhooks: make webhook-secret OWNER=alice (ROTATE=1 makes a new one)
	@$(LOCAL).database app.cli.webhooks $${OWNER:+"$$OWNER"} $${ROTATE:+--rotate}

lock: install ## pin the dependencies of pyproject.toml anew
	@test -x $(BIN)/uv || $(BIN)/python -m pip install -q uv==0.13.8
	@$(COMPILE) pyproject.toml -o requirements.txt
	@$(COMPILE) pyproject.toml --extra local --extra vast --extra ec2 --extra dev -c requirements.txt -o requirements-dev.txt
	@$(COMPILE) pyproject.toml --extra vast --extra ec2 -c requirements-dev.txt -o requirements-capacity.txt
	@$(COMPILE) --group engine -o requirements-engine.txt
	@$(COMPILE) --group gradio -o requirements-gradio.txt
	@$(COMPILE) --group peers -c requirements.txt -o requirements-peers.txt
	@$(LOCAL).download_size requirements-dev.txt 3.13
	@$(LOCAL).download_size requirements-engine.txt 3.12

clean: ## remove .venv and the caches; CLEAN_DATA=1 deletes the local database too
	@$(PYTHON) -m nvidia_triton.local.bootstrap clean

screenshots: install ## make the pictures of docs/console.md anew, with a demo on a real small model
	@$(BIN)/python -m tests.console.screenshots $(ARGS)

bench: install ## measure against bare tritonclient and FastAPI: make bench ARGS="drain submits"
	@$(BIN)/python -m bench $(ARGS)

bench-day: install ## let a day of tickets pass at speed and draw how tables and claims grow: make bench-day TICKETS=500000
	@$(BIN)/python -m bench.day $(TICKETS)

bench-peers: install-peers ## measure the same jobs through Celery with RabbitMQ and Redis, and through PgQueuer, beside this service
	@$(BIN)/python -m bench.peers

crash-peers: install-peers ## kill worker, API and stores of each of them in turn under 3,000 jobs, then count
	@$(BIN)/python -m bench.peers.crash

test-compose: ## bring docker compose up and test it
	@bash tests/compose/run.sh

crashtest: install ## kill and freeze everything at random under load for five minutes, then count
	@$(BIN)/python -m tests.crash

.PHONY: search-instance create-instance ssh-instance run-tritonserver ssh-tunnels-tritonserver stop-tunnels \
	deploy-models-tritonserver check-health-tritonserver check-logs-tritonserver check-model-stats-tritonserver \
	check-contract-tritonserver \
	list-instances stop-instance start-instance destroy-instance gpu-up gpu-down
# Variables go to these through the environment: INSTANCE_ID, CONTRACT_ID, MODELS, MAX_PRICE, RESTART, FOLLOW, DEFINITION.

gpu-up: install ## rent a GPU, set it up and answer a first ticket: make gpu-up [MAX_PRICE=0.80]
	@exec $(VAST) gpu-up

gpu-down: install ## end the tunnel and the instance, and print the cost
	@exec $(VAST) gpu-down

search-instance: install ## offers on Vast.ai that fit nvidia_triton/vastai_instance_definition.yaml
	@exec $(VAST) search-instance

create-instance: install ## rent an offer: make create-instance INSTANCE_ID=<offer id>
	@exec $(VAST) create-instance

list-instances: install ## instances of this project and their cost
	@exec $(VAST) list-instances

ssh-instance: install ## open a shell on the instance (CONTRACT_ID= where there are several)
	@exec $(VAST) ssh-instance

run-tritonserver: install ## start Triton on the instance; RESTART=1 stops it first
	@exec $(VAST) run-tritonserver

deploy-models-tritonserver: install ## send models to the instance and load them: MODELS="a b"
	@exec $(VAST) deploy-models-tritonserver

ssh-tunnels-tritonserver: install ## start the tunnel to the instance; it reconnects by itself
	@exec $(VAST) ssh-tunnels-tritonserver

stop-tunnels: install ## stop the tunnels
	@exec $(VAST) stop-tunnels

check-health-tritonserver: install ## print 1 when Triton is well, else 0 and why
	@exec $(VAST) check-health-tritonserver

check-logs-tritonserver: install ## the last lines of Triton's log; FOLLOW=1 goes on
	@exec $(VAST) check-logs-tritonserver

check-model-stats-tritonserver: install ## requests, failures, times and tokens of each model
	@exec $(VAST) check-model-stats-tritonserver

check-contract-tritonserver: install ## ask a Triton for all that this service needs of it: URL=host:8001 MODEL=demo RELOAD=1
	@exec $(BIN)/python -m nvidia_triton.contract

stop-instance: install ## stop the instance; its disk goes on costing
	@exec $(VAST) stop-instance

start-instance: install ## start a stopped instance
	@exec $(VAST) start-instance

destroy-instance: install ## end the instance, its disk and its bill
	@exec $(VAST) destroy-instance
