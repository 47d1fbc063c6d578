# The commands of this project. `make demo` and `make test` need nothing prepared: they bring what is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLUSTER_COMMAND := $(PYTHON) -m localcluster

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show these lines
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: demo
demo: ## A cluster on this machine, the operator, a SynapseScale, and runs with agents and a human
	@$(PYTHON) -m localcluster.demo

.PHONY: demo-down
demo-down: ## Remove the demo's cluster, all of it
	@$(CLUSTER_COMMAND) down

.PHONY: test
test: $(VENV)/ready ## Every test: unit, contract, control plane, services, faults, operator, cluster
	@$(BIN)/python -m tests.support.run_layers

.PHONY: check
check: $(VENV)/ready ## Lint, types, unit and contract tests, in under a minute
	@$(BIN)/python -m tests.support.run_layers lint unit engine contract

.PHONY: e2e
e2e: $(VENV)/ready ## The cluster layer alone: both images, real pods
	@$(BIN)/python -m tests.support.run_layers cluster

.PHONY: chaos
chaos: $(VENV)/ready ## Break workers, Redis and PostgreSQL for real, count what is lost or doubled; 15 minutes
	@$(BIN)/python -m tests.chaos

# In this order: `crowd` leaves its jobs behind.
CHAOS_CLUSTER := faults changes scaling humans drains outside streams operators crowd

.PHONY: chaos-cluster
chaos-cluster: $(VENV)/ready ## Break pods and PostgreSQL, change shards, Secret and tenants in the local cluster under load
	@$(CLUSTER_COMMAND) images && $(CLUSTER_COMMAND) up && $(CLUSTER_COMMAND) load-image
	@$(BIN)/python -m pytest -q -s $(addprefix tests/e2e/,$(addsuffix .py,$(CHAOS_CLUSTER)))

.PHONY: soak
soak: $(VENV)/ready ## The operator for 35 minutes: leaders killed, tokens that end, watches cut, an upgrade (SOAK_SECONDS, SOAK_KILLS)
	@$(BIN)/python -m pytest -q -s tests/controlplane/soak.py

.PHONY: bench
bench: $(VENV)/ready ## Measure against the references; writes benchmarks/RESULTS.md
	@$(BIN)/python -m benchmarks

.PHONY: up
up: ## Start the local cluster
	@$(CLUSTER_COMMAND) up

.PHONY: down
down: demo-down ## The same as demo-down

.PHONY: images
images: ## Build both images (IMAGE_PREFIX, IMAGE_TAG, BASE_IMAGE)
	@$(CLUSTER_COMMAND) images

.PHONY: generate
generate: crds install-yaml docs ## Write everything that is generated

.PHONY: crds
crds: $(VENV)/ready ## Write crds/ and docs/crd-reference.md from the models
	@$(BIN)/python -m synapse_operator.api.crd --out crds
	@$(BIN)/python -m synapse_operator.api.reference --out docs

.PHONY: install-yaml
install-yaml: ## Write manifests/install.yaml from manifests/base
	@$(CLUSTER_COMMAND) kubectl kustomize manifests/base > manifests/install.yaml.new
	@mv manifests/install.yaml.new manifests/install.yaml

.PHONY: image-names
image-names: ## Write the images' names (IMAGE_PREFIX, IMAGE_TAG) into what is applied to a cluster
	@for file in manifests/install.yaml manifests/overlays/namespaced/kustomization.yaml; do \
	  sed -E 's#[^ ]+/(synapse-scale-(operator|worker)):[^ ]+#$(or $(IMAGE_PREFIX),localhost)/\1:$(or $(IMAGE_TAG),dev)#' \
	    $$file > $$file.new && mv $$file.new $$file || exit 1; done

.PHONY: docs
docs: $(VENV)/ready ## Write docs/environment.md from the contract
	@$(BIN)/python -m tests.support.environment_page > docs/environment.md

.PHONY: lock
lock: $(VENV)/ready ## Resolve the dependencies anew into locks/
	@for extra in operator worker dev; do \
	  $(BIN)/uv pip compile -q pyproject.toml --extra $$extra --universal --python-version 3.11 \
	    --generate-hashes --no-emit-index-url --no-header -o locks/$$extra.txt || exit 1; done

$(VENV)/ready: locks/dev.txt pyproject.toml
	@echo "preparing the Python environment in $(VENV) (about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --require-hashes -r locks/dev.txt
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@
