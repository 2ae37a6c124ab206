# Every target works in a fresh clone: .venv is made when it is missing. Python 3.11 or newer is all that is needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PACKAGES := libs/pipeline libs/echo_model services/dicom_listener services/dispatcher services/inference_worker \
            services/fhir_writer services/console services/standalone
SOURCES := libs services scripts tests benchmarks

.PHONY: help setup demo test check format bench services services-stop render up chaos variants demo-model docs clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

setup: $(STAMP)  ## virtual environment with all packages, pinned by constraints.txt

$(STAMP): constraints.txt pyproject.toml $(addsuffix /pyproject.toml,$(PACKAGES))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing (a first time downloads several GB, mostly PyTorch) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -r requirements-dev.txt $(addprefix -e ,$(PACKAGES))
	@touch $@

demo: setup  ## the whole flow on embedded defaults: two studies by DICOM, their reports, the console (KEEP=1 stays)
	@$(BIN)/python -m standalone demo $(if $(filter 1,$(KEEP)),--keep)

test: setup  ## all tests; those whose server is absent are skipped with the reason (see make services)
	$(BIN)/python -m pytest $(ARGS)

check: setup  ## what pre-commit and CI run: format, lint, types, import rules, schemas, generated docs
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy $(wildcard libs/*/src services/*/src) scripts benchmarks
	$(BIN)/lint-imports
	$(BIN)/python scripts/lint_schemas.py
	$(BIN)/python scripts/gen_settings_docs.py --check
	$(BIN)/python benchmarks/render.py --check

format: setup  ## put the code into the common format
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

docs: setup  ## write docs/settings.md and the tables of docs/dicom-conformance.md anew
	$(BIN)/python scripts/gen_settings_docs.py
	$(BIN)/python scripts/gen_conformance_docs.py

services:  ## real PostgreSQL, Redis, Kafka, HAPI FHIR, Orthanc on loopback
	@scripts/services.sh start

services-stop:  ## stop them
	@scripts/services.sh stop

render: setup  ## Kubernetes manifests to build/
	@$(BIN)/python scripts/render.py build

up:  ## the whole flow in containers
	docker compose up --build --detach

bench: setup  ## what a CPU can measure (3 minutes); results in benchmarks/results/, page docs/benchmarks.md
	$(BIN)/echo-model bench --limit 90 --json benchmarks/results/echo_model_cpu_demo.json --png docs/images/bench-cpu-demo.png
	$(BIN)/python benchmarks/decode_profile.py
	$(BIN)/python benchmarks/end_to_end.py --studies 6
	$(BIN)/python benchmarks/render.py

chaos: setup  ## faults of all kinds in the cluster mode under load: make chaos MINUTES=3 SEED=1 (MUTE=1: silent connections, too); result in build/
	@scripts/services.sh start
	$(BIN)/python benchmarks/chaos.py --minutes $(or $(MINUTES),3) $(if $(SEED),--seed $(SEED)) $(if $(MUTE),--mute)

variants: setup  ## the method against its alternatives, three seeds (hours, resumable): table and verdicts in docs/benchmarks.md
	$(BIN)/python -m echo_model.training.variants --work .training/variants --json benchmarks/results/variants.json
	$(BIN)/python benchmarks/render.py

demo-model: setup  ## train the demo checkpoint again (hours, resumable)
	$(BIN)/python -m echo_model.training.demo --work .training --out .training/checkpoint
	@echo "Look at .training/checkpoint/MODEL_CARD.md; copy the folder over libs/echo_model/src/echo_model/checkpoints/demo to ship it."

clean:  ## remove the virtual environment and everything made by the targets
	rm -rf $(VENV) build .demo .training
