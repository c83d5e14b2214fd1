SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help install run test demo lint format migrate revision psql lock clean bench test-compose crashtest

PYTHON ?= python3
BIN := .venv/bin
LOCAL := $(BIN)/python -m nvidia_triton.local
COMPILE := $(BIN)/uv pip compile -q --universal --generate-hashes --python-version 3.11 --no-emit-index-url \
	--custom-compile-command "make lock" pyproject.toml

help: ## show this table
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 22

install: ## make .venv with the pinned dependencies (every target does)
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or 3.12 is needed and there is no $(PYTHON): install one."; exit 1; }
	@$(PYTHON) nvidia_triton/local/bootstrap.py install

run: install ## start Postgres, Triton, the dispatcher and the API on http://127.0.0.1:8887; Ctrl-C stops all
	@exec $(LOCAL).run --with-parent

test: install ## run the tests; they start what they need
	@$(BIN)/pytest $(ARGS)

demo: install ## store a prompt, send it to a model and wait for the answer
	@exec $(LOCAL).demo

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

lock: install ## pin the dependencies of pyproject.toml anew
	@test -x $(BIN)/uv || $(BIN)/python -m pip install -q uv==0.13.8
	@$(COMPILE) -o requirements.txt
	@$(COMPILE) --extra local --extra dev -c requirements.txt -o requirements-dev.txt

clean: ## remove .venv and the caches; CLEAN_DATA=1 deletes the local database too
	@$(PYTHON) nvidia_triton/local/bootstrap.py clean

bench: install ## measure against bare tritonclient and FastAPI: make bench ARGS="drain submits"
	@$(BIN)/python -m bench $(ARGS)

test-compose: ## bring docker compose up and test it
	@bash tests/compose/run.sh

crashtest: install ## kill and freeze everything at random under load for five minutes, then count
	@$(BIN)/python -m tests.crash
