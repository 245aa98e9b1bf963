# All commands start here: `make` lists them. ENV is the environment: any NAME that has an env/NAME.env.
ENV ?= dev
N ?=
QUEUE ?=
VERSION ?=
MIN ?= 1
MAX ?= 5
ARGS ?=
# With any value, targets that change a stack only print their commands.
DRY_RUN ?=
# 1: scale even if the machine lacks the memory.
FORCE ?=
FILE ?=
# The name of the environment to destroy, for scripts: without it, `make destroy` asks.
CONFIRM ?=

# A CA bundle for builds behind a proxy that inspects TLS; by default that of the host.
export CA_BUNDLE ?= $(firstword $(wildcard $(SSL_CERT_FILE) /etc/ssl/certs/ca-certificates.crt) /dev/null)
export DOCKER_BUILDKIT = 1

# A value as one word of the shell, with any characters in it.
q = '$(subst ','\'',$(1))'

# The Python of the system is enough, because ops needs only the standard library.
OPS = python3 -m ops --env $(call q,$(ENV)) $(if $(DRY_RUN),--dry-run)
PYTHON = .venv/bin/python
VENV = .venv/installed

.DEFAULT_GOAL = help
TARGETS := $(shell sed -n 's/^\([a-z-]*\):.*\#\# .*/\1/p' $(firstword $(MAKEFILE_LIST)) 2>/dev/null)
.PHONY: $(TARGETS) # only the target of the virtual environment is a file

help: ## Print this list
	@awk -F ':.*## ' '/^##@/ { print substr($$0, 5) } /^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' \
	  $(MAKEFILE_LIST)
	@echo; echo "  ENV=dev (default), ENV=prod, or any NAME with an env/NAME.env; with DRY_RUN=1, changes of a stack are only printed"

##@ Run

engine: ## Install and start Docker if it is missing (asks first; YES=1 does not ask)
	@$(if $(DRY_RUN),echo ops/engine.sh,ops/engine.sh)

up: ## Build and start the stack, wait until it is healthy
	@$(OPS) up

down: ## Stop and remove the containers; data and secrets are kept
	@$(OPS) down

destroy: ## Delete the containers, the networks and all data; asks for the environment's name
	@$(OPS) destroy $(if $(CONFIRM),--confirm $(call q,$(CONFIRM)))

restart: ## Restart the containers; workers drain first
	@$(OPS) restart

scale: ## Set the number of replicas: N=3 (QUEUE=media for the service of one queue)
	@$(OPS) scale $(call q,$(N)) $(if $(QUEUE),--queue $(call q,$(QUEUE))) $(if $(filter 1,$(FORCE)),--force)

autoscale: ## Scale by the waiting jobs, until Ctrl-C: MIN=1 MAX=5 (QUEUE=media)
	@$(OPS) autoscale $(call q,$(MIN)) $(call q,$(MAX)) $(if $(QUEUE),--queue $(call q,$(QUEUE))) $(if $(filter 1,$(FORCE)),--force) $(ARGS)

local: $(VENV) ## Run workers and an embedded Valkey without Docker; restarts when the code changes
	@PATH=$(CURDIR)/.venv/bin:$$PATH $(OPS) local

##@ Deploy

deploy: ## Replace the workers without a pause, by the checkout's commit or VERSION=1.4.2
	@$(OPS) deploy $(if $(VERSION),--version $(call q,$(VERSION)))

rollback: ## Replace the workers by the previous version, or VERSION=…
	@$(OPS) rollback $(if $(VERSION),--version $(call q,$(VERSION)))

releases: ## List the deployed versions, and those that a rollback can use
	@$(OPS) releases

deploy-redis: ## Save the data, then restart Redis with the current image and configuration
	@$(OPS) deploy-redis

upgrade-redis: ## Run Redis on another image, newer or older: IMAGE=valkey/valkey:8-alpine
	@$(OPS) upgrade-redis $(call q,$(IMAGE))

bundle: ## Write everything for a host without a network into one file (FILE=…)
	@$(OPS) bundle $(if $(FILE),--file $(call q,$(FILE)))

load: ## Load the images of a bundle: FILE=…
	@$(OPS) load $(call q,$(FILE))

unlock: ## Break the lock of a change that hangs
	@$(OPS) unlock

##@ Inspect

health: ## Show queues, replicas and Redis
	@$(OPS) app health status $(ARGS)

doctor: ## Check the host, the configuration and what runs, and say what to fix (ARGS=--json)
	@$(OPS) doctor $(ARGS)

events: ## List what happened, in order (ARGS="--since 2h", --follow, --json)
	@$(OPS) events $(ARGS)

ps: ## List the containers and their health
	@$(OPS) compose ps

logs: ## Follow the logs (ARGS="redis" for one service)
	@$(OPS) compose logs --follow --tail=100 $(ARGS)

diag: ## Write a redacted archive for a bug report
	@$(OPS) diag

config: ## Print the merged Compose configuration
	@$(OPS) compose config

shell: ## Open a shell in a worker's container
	@$(OPS) compose exec worker sh

redis-cli: ## Run redis-cli, logged in (ARGS="info memory" for one command)
	@$(OPS) redis-cli $(ARGS)

load-test: ## Send jobs and measure how they run (ARGS="io" by default, or "cpu -n 1000", …)
	@$(OPS) app load-test $(or $(ARGS),io)

##@ Data and secrets

backup: ## Write an archive of all jobs and results into backups/; the latest KEEP=7 are kept
	@$(OPS) backup $(if $(KEEP),--keep $(call q,$(KEEP)))

restore: ## Replace the data of Redis by FILE=backups/… (YES=1 if the stack is up; AGE_IDENTITY=file)
	@$(OPS) restore $(call q,$(FILE)) $(if $(filter 1,$(YES)),--yes) $(if $(AGE_IDENTITY),--identity $(call q,$(AGE_IDENTITY)))

secrets: ## Make missing secrets
	@$(OPS) secrets

secrets-rotate: ## Change the passwords of Redis's users without a restart (USER=worker for one)
	@$(OPS) secrets-rotate $(if $(filter command line,$(origin USER)),--user $(call q,$(USER))) $(ARGS)

certs: ## Make missing certificates, renew those that expire soon, and list all
	@$(OPS) certs $(ARGS)

##@ Images

build: ## Build the images
	@$(OPS) build

sbom: ## Print the bill of materials of the workers' image, as CycloneDX (QUEUE=media for one queue)
	@$(OPS) sbom $(if $(QUEUE),--queue $(call q,$(QUEUE)))

digests: ## Pin the pulled images by their digests in env/<ENV>.env; run it again for newer images
	@$(OPS) digests

##@ Develop

test: $(VENV) ## Run all tests; those of the stack need Docker
	@$(PYTHON) -m pytest -n 2 $(ARGS)

faults: $(VENV) ## Kill, pause and cut off workers and Redis, with 10,000 jobs in each scenario (ARGS="-k redis")
	@FAULTS_JOBS=$${FAULTS_JOBS:-10000} $(PYTHON) -m pytest tests/faults -s $(ARGS)

fuzz: $(VENV) ## Fuzz the decoder of payloads (ARGS="60" seconds for each format)
	@$(PYTHON) -m tests.fuzz.decoder seconds $(or $(ARGS),60)

lint: $(VENV) ## Run all linters
	@PATH=$(CURDIR)/.venv/bin:$$PATH ops/lint.sh

bench: $(VENV) ## Compare this worker with others (ARGS="depth", "replicas", …, or "all")
	@$(PYTHON) -m benchmarks $(ARGS)

lock: $(VENV) ## Lock the dependencies of pyproject.toml, with hashes
	@PATH=$(CURDIR)/.venv/bin:$$PATH ops/lock.sh

docs: $(VENV) ## Write the generated pages: docs/configuration.md and docs/cli.md
	@$(PYTHON) docs/generate.py

$(VENV): requirements/dev.txt pyproject.toml library/pyproject.toml
	@python3 -c 'import sys; sys.version_info >= (3, 11) or sys.exit("this needs Python 3.11; `make up` needs only 3.10")'
	@python3 -m venv .venv
	@.venv/bin/pip install -qq --no-compile --disable-pip-version-check --require-hashes --no-deps -r requirements/dev.txt
	@for part in library .; do \
	  .venv/bin/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable $$part || exit; done
	@touch $@
