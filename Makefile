# The one front door: `make` lists what there is. ENV is the environment, any NAME that has an env/NAME.env.
ENV ?= dev
N ?=
QUEUE ?=
VERSION ?=
MIN ?= 1
MAX ?= 5
ARGS ?=
# Anything here has what acts on a stack print the commands it would run, and change nothing; have `scale` not look at
# the memory.
DRY_RUN ?=
FORCE ?=
FILE ?=
# The name of the environment to destroy, where there is nobody to ask.
CONFIRM ?=

# A CA bundle to build behind a proxy that inspects TLS; the host's own by default.
export CA_BUNDLE ?= $(firstword $(wildcard $(SSL_CERT_FILE) /etc/ssl/certs/ca-certificates.crt) /dev/null)
export DOCKER_BUILDKIT = 1

# A value as one word of the shell's, whatever is in it.
q = '$(subst ','\'',$(1))'

# The system's Python will do, as ops needs only its standard library.
OPS = python3 -m ops --env $(call q,$(ENV)) $(if $(DRY_RUN),--dry-run)
PYTHON = .venv/bin/python
VENV = .venv/installed

.DEFAULT_GOAL = help
TARGETS := $(shell sed -n 's/^\([a-z-]*\):.*\#\# .*/\1/p' $(firstword $(MAKEFILE_LIST)) 2>/dev/null)
.PHONY: $(TARGETS) # no target is a file, but that of the environment

help: ## This list
	@awk -F ':.*## ' '/^##@/ { print substr($$0, 5) } /^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' \
	  $(MAKEFILE_LIST)
	@echo; echo "  ENV=dev (default), ENV=prod, or any other NAME with an env/NAME.env; DRY_RUN=1 only prints (what acts on a stack)"

##@ Run

engine: ## Install and start Docker where it is missing (asks first; YES=1 does not)
	@$(if $(DRY_RUN),echo ops/engine.sh,ops/engine.sh)

up: ## Build and start the stack, wait until it is healthy
	@$(OPS) up

down: ## Stop and remove the containers; data and secrets stay
	@$(OPS) down

destroy: ## Delete the containers, networks and all data; asks for the environment's name
	@$(OPS) destroy $(if $(CONFIRM),--confirm $(call q,$(CONFIRM)))

restart: ## Restart the containers; running jobs are drained
	@$(OPS) restart

scale: ## Set the number of replicas: N=3, for one queue's service QUEUE=media
	@$(OPS) scale $(call q,$(N)) $(if $(QUEUE),--queue $(call q,$(QUEUE))) $(if $(filter 1,$(FORCE)),--force)

autoscale: ## Scale by what waits in the queues, until Ctrl-C: MIN=1 MAX=5 (QUEUE=media)
	@$(OPS) autoscale $(call q,$(MIN)) $(call q,$(MAX)) $(if $(QUEUE),--queue $(call q,$(QUEUE))) $(if $(filter 1,$(FORCE)),--force) $(ARGS)

local: $(VENV) ## Without Docker: workers and an embedded Valkey in the foreground, code reloading
	@PATH=$(CURDIR)/.venv/bin:$$PATH $(OPS) local

##@ Deploy

deploy: ## Replace the workers without a pause: the checkout's commit, or VERSION=1.4.2
	@$(OPS) deploy $(if $(VERSION),--version $(call q,$(VERSION)))

rollback: ## Replace the workers by the version before, or VERSION=…
	@$(OPS) rollback $(if $(VERSION),--version $(call q,$(VERSION)))

releases: ## The versions that were deployed, and which can be rolled back to
	@$(OPS) releases

deploy-redis: ## Save, then restart Redis with its current image and configuration
	@$(OPS) deploy-redis

upgrade-redis: ## Run Redis on another image, up or down: IMAGE=valkey/valkey:8-alpine
	@$(OPS) upgrade-redis $(call q,$(IMAGE))

bundle: ## Everything for a host without a network, in one file (FILE=…)
	@$(OPS) bundle $(if $(FILE),--file $(call q,$(FILE)))

load: ## Bring in a bundle: FILE=…
	@$(OPS) load $(call q,$(FILE))

unlock: ## Break the lock of a change that hangs
	@$(OPS) unlock

##@ Look

health: ## Queues, replicas and Redis at a glance
	@$(OPS) app health status $(ARGS)

doctor: ## Check the host, the configuration and what runs, and say what to mend (ARGS=--json)
	@$(OPS) doctor $(ARGS)

events: ## What happened, in order (ARGS="--since 2h", --follow, --json)
	@$(OPS) events $(ARGS)

ps: ## Containers and their health
	@$(OPS) compose ps

logs: ## Follow the logs (ARGS="redis" for one service's)
	@$(OPS) compose logs --follow --tail=100 $(ARGS)

diag: ## One redacted archive for a bug report
	@$(OPS) diag

config: ## The merged Compose configuration
	@$(OPS) compose config

shell: ## A shell in a worker's container
	@$(OPS) compose exec worker sh

redis-cli: ## redis-cli, logged in (ARGS="info memory" for one command)
	@$(OPS) redis-cli $(ARGS)

load-test: ## Send load and measure it (ARGS="io" by default, or "cpu -n 1000", …)
	@$(OPS) app load-test $(or $(ARGS),io)

##@ Data and secrets

backup: ## Write an archive of all jobs and results into backups/, the latest KEEP=7 stay
	@$(OPS) backup $(if $(KEEP),--keep $(call q,$(KEEP)))

restore: ## Replace what Redis holds by FILE=backups/… (YES=1 on a stack that is up; AGE_IDENTITY=file)
	@$(OPS) restore $(call q,$(FILE)) $(if $(filter 1,$(YES)),--yes) $(if $(AGE_IDENTITY),--identity $(call q,$(AGE_IDENTITY)))

secrets: ## Make the secrets that are missing
	@$(OPS) secrets

secrets-rotate: ## New passwords for Redis's users, nothing restarts (USER=worker for one)
	@$(OPS) secrets-rotate $(if $(filter command line,$(origin USER)),--user $(call q,$(USER))) $(ARGS)

certs: ## Make the certificates that are missing, renew those about to expire, list them
	@$(OPS) certs $(ARGS)

##@ Images

build: ## Build the images
	@$(OPS) build

sbom: ## Print the bill of materials of the workers' image, CycloneDX (QUEUE=media for one queue's)
	@$(OPS) sbom $(if $(QUEUE),--queue $(call q,$(QUEUE)))

digests: ## Pin the images that are pulled by their digests, in env/<ENV>.env; again to take newer ones
	@$(OPS) digests

##@ Develop

test: $(VENV) ## All tests; those of the stack need the engine
	@$(PYTHON) -m pytest -n 2 $(ARGS)

faults: $(VENV) ## Workers and Redis killed, paused, cut off: 10,000 jobs a scenario (ARGS="-k redis")
	@FAULTS_JOBS=$${FAULTS_JOBS:-10000} $(PYTHON) -m pytest tests/faults -s $(ARGS)

fuzz: $(VENV) ## Fuzz the decoder of payloads, guided by its coverage (ARGS="60" seconds for each format)
	@$(PYTHON) -m tests.fuzz.decoder seconds $(or $(ARGS),60)

lint: $(VENV) ## Every linter
	@PATH=$(CURDIR)/.venv/bin:$$PATH ops/lint.sh

bench: $(VENV) ## Measure this worker beside its peers (ARGS="depth", "replicas", …, or "all")
	@$(PYTHON) -m benchmarks $(ARGS)

lock: $(VENV) ## Lock the dependencies of pyproject.toml, with hashes
	@PATH=$(CURDIR)/.venv/bin:$$PATH ops/lock.sh

docs: $(VENV) ## Write the generated pages: docs/configuration.md and docs/cli.md
	@$(PYTHON) docs/generate.py

$(VENV): requirements/dev.txt pyproject.toml library/pyproject.toml
	@python3 -c 'import sys; sys.version_info >= (3, 11) or sys.exit("this needs Python 3.11; `make up` does with 3.10")'
	@python3 -m venv .venv
	@.venv/bin/pip install -qq --no-compile --disable-pip-version-check --require-hashes --no-deps -r requirements/dev.txt
	@for part in library .; do \
	  .venv/bin/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable $$part || exit; done
	@touch $@
