# `make help` lists the targets. PYTHON and TORCH may be set:
#   make test PYTHON=python3.12
#   make demo TORCH="torch --index-url URL"   (another build of torch, such as CUDA's)
#   make bench-train BENCH="--cases short_all"
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: help install system proto check test test-faults test-network test-images test-large test-soak test-security pins audit demo
.PHONY: always bench-train bench-round bench-encodings bench-hostile bench-accuracy results docs docs-serve clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed  ## make .venv and install server, client and what develops and tests them

$(VENV)/.installed: $(VENV)/.client
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[client,dev]'
	@touch $@

$(VENV)/.torch: always
	@mkdir -p $(VENV); [ "$$(cat $@ 2>/dev/null)" = '$(TORCH)' ] || echo '$(TORCH)' > $@

$(VENV)/.client: $(VENV)/.torch pyproject.toml hatch_build.py $(wildcard proto/fedpdpo/v1/*.proto)
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[client]'
	@touch $@

system:  ## Debian packages that some tests need (as root); tests are left out without them
	apt-get update -q && apt-get install -q -y --no-install-recommends chromium docker-compose \
	  golang-go golang-github-masterminds-sprig-dev golang-gopkg-yaml.v3-dev openssl postgresql prometheus

proto: install  ## generate the protobuf modules again
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .

check: install  ## ruff, mypy, import-linter, buf
	$(BIN)/ruff format --check .
	$(BIN)/ruff check --no-cache .
	$(BIN)/mypy common server client simulation deploy/demo tests hatch_build.py
	MYPYPATH=benchmarks/train $(BIN)/mypy benchmarks/train
	$(BIN)/mypy benchmarks/round/*.py benchmarks/encodings
	MYPYPATH=deploy/demo $(BIN)/mypy benchmarks/hostile
	MYPYPATH=deploy/site $(BIN)/mypy deploy/site
	MYPYPATH=benchmarks/accuracy:deploy/demo $(BIN)/mypy benchmarks/accuracy
	$(BIN)/lint-imports --no-logo
	$(BIN)/buf lint

test: check  ## everything: checks, units, integration, system tests
	$(BIN)/pytest -m "not network and not large and not soak and not images"

test-faults: install  ## kill, cut, slow and fill; writes benchmarks/results/faults.json
	FEDPDPO_FAULTS=benchmarks/results/faults.json $(BIN)/pytest tests/test_faults.py

test-network: install  ## a run across network namespaces with bad links; needs root
	$(BIN)/pytest tests/test_network.py -m network -rs

test-images: install  ## build both container images and run them to the end of a run; needs root
	FEDPDPO_TORCH="$(TORCH)" $(BIN)/pytest tests/test_images.py -m images -rs -s

test-large: install  ## an adapter of 3 GiB there and back in constant memory; 18 GiB of disk
	$(BIN)/pytest tests/test_large.py -m large -rs -s

test-soak: install  ## 200 rounds with 8 clients: memory, files and threads of the server
	$(BIN)/pytest tests/test_soak.py -m soak -s

demo: $(VENV)/.client  ## one server and four clients align a small real model; writes runs/demo
	$(BIN)/python deploy/demo/run.py

bench-train: install  ## training beside TRL's DPOTrainer; writes benchmarks/results
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/train/run.py $(BENCH)

bench-round: install  ## rounds without training beside Flower and bare gRPC; writes benchmarks/results
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/round/run.py $(BENCH)

bench-encodings: install  ## what encodings of deltas cost in accuracy and bytes; writes benchmarks/results
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/encodings/run.py $(BENCH)

bench-hostile: install  ## what one hostile client of eight does to the others; writes benchmarks/results
	PYTHONPATH=benchmarks:deploy/demo $(BIN)/python benchmarks/hostile/run.py $(BENCH)

bench-accuracy: install  ## FedPDPO beside its baselines; BENCH=quick (minutes) or full (hours)
	PYTHONPATH=benchmarks:deploy/demo $(BIN)/python benchmarks/accuracy/run.py $(BENCH)

results: install  ## docs/results.md and its pictures from benchmarks/results/accuracy.json
	PYTHONPATH=benchmarks:deploy/demo $(BIN)/python benchmarks/accuracy/page.py

test-security: install  ## who gets in, attacks, 200,000 fuzzed inputs; writes benchmarks/results/security.json
	FEDPDPO_SECURITY=benchmarks/results/security.json FEDPDPO_FUZZ=100000 $(BIN)/pytest \
	  tests/test_access.py tests/test_identity.py tests/test_admission.py tests/test_vault.py \
	  tests/test_secrets.py tests/test_security.py tests/test_fuzz.py

pins: install  ## write the tested versions of all that a client needs to deploy/constraints.txt
	$(BIN)/python deploy/pins.py > $(VENV)/constraints.txt && mv $(VENV)/constraints.txt deploy

audit: install  ## look for known faults in these versions; asks a public database
	$(BIN)/pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement deploy/constraints.txt

docs: install  ## the documentation as a site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: install  ## the same at http://127.0.0.1:8000, made again at each change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

clean:  ## remove runs, the site and caches; keeps .venv
	rm -rf runs site .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
