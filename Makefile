# The virtual environment is created when it is missing or older than the pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXPERIMENT ?= configs/demo.yaml
PORT ?= 3000
# Quoted for .env, then for the shell.
DOTENV := DAGSTER_HOME="$${DAGSTER_HOME:-$(subst ",\",$(CURDIR))/.dagster_home}"
QUOTED_DOTENV := '$(subst ','\'',$(DOTENV))'

export DAGSTER_HOME ?= $(CURDIR)/.dagster_home
export FIM_EXPERIMENT ?= $(EXPERIMENT)
export TOKENIZERS_PARALLELISM ?= false
export DAGSTER_DISABLE_TELEMETRY ?= yes

.PHONY: demo train ui test test-slow test-browser test-cluster test-gpu soak lint format fuzz \
	bench-attention bench-data bench-estimate bench-finetune bench-generation bench-gguf bench-long bench-packing bench-train clean

demo: $(READY)  ## CSV -> prompts -> tokens -> checkpoint -> report -> champion, all in Dagster
	$(BIN)/python -m fim_assets.resources.run_worker
	$(BIN)/python -m fim_assets.materialize
	$(BIN)/fim summary $(FIM_EXPERIMENT)

ui: $(READY)  ## Dagster's UI on http://127.0.0.1:$(PORT), with schedules and sensors
	$(BIN)/dagster dev -w workspace.yaml --port "$(PORT)"

test: $(READY)
	$(BIN)/pytest -n 2

test-slow: $(READY)
	$(BIN)/pytest -n 2 -m slow

test-browser: $(READY)  ## Dagster's UI in Debian's Chromium; pictures in artifacts/browser
	$(BIN)/pytest -m browser -rs

test-cluster: $(READY)  ## pdsh, Slurm and OpenMPI on three hosts, made of namespaces; needs root; table in artifacts/cluster
	$(BIN)/pytest -n 0 -m cluster -rs $(ARGS) tests/cluster

test-gpu: $(READY)  ## on NVIDIA GPUs: kernels, losses, speed, NCCL; report in artifacts/gpu
	$(BIN)/pytest -n 0 -m gpu -rs tests/gpu

soak: $(READY)  ## FIM_SOAK_SECONDS (600) of kills, full disks and broken exports
	$(BIN)/pytest -n 0 -s -m soak

fuzz: $(READY)
	FIM_FUZZ=1 $(BIN)/pytest -n 2 -m fuzz

bench-attention: $(READY)
	$(BIN)/python -m benchmarks.attention

bench-data: $(READY)
	$(BIN)/python -m benchmarks.data

bench-estimate: $(READY)
	$(BIN)/python -m benchmarks.estimate $(ARGS)

# The project includes neither a pretrained model nor real rows: make bench-finetune MODEL=FOLDER DATA=FILE
bench-finetune: $(READY)  ## half an hour on 2 cores; ARGS='--cases lora full --train-rows 100' for less
	$(BIN)/python -m benchmarks.finetune --model "$(MODEL)" --data "$(DATA)" $(ARGS)

bench-generation: $(READY)
	$(BIN)/python -m benchmarks.generation

bench-gguf: $(READY)  ## of the model of EXPERIMENT; ARGS='--pretrained FOLDER' for another
	$(BIN)/python -m benchmarks.gguf_parity "$(FIM_EXPERIMENT)" $(ARGS)

bench-long: $(READY)
	$(BIN)/python -m benchmarks.long $(ARGS)

bench-packing: $(READY)
	$(BIN)/python -m benchmarks.packing

bench-train: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.train

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV)
	if test -e .fim/fim-store.json; then rm -rf .fim; fi
	if test "$$(readlink .dagster_home/dagster.yaml)" = ../dagster.yaml; then rm -rf .dagster_home; fi
	if grep -qsxF $(QUOTED_DOTENV) .env && test "$$(wc -l < .env)" = 1; then rm .env; fi

# A .env written by make that names another folder was copied with that folder, so it is rewritten.
$(shell if test "$$(wc -l < .env 2>/dev/null)" = 1 && grep -qsxE 'DAGSTER_HOME="?[$$][{]DAGSTER_HOME:-.*/[.]dagster_home[}]"?' .env \
	&& ! grep -qxF $(QUOTED_DOTENV) .env; then printf '%s\n' $(QUOTED_DOTENV) > .env; fi)

# Dagster reads .env, so that its own commands use the same DAGSTER_HOME as make; one in the environment takes precedence.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps fakesnow  # asks for an older sqlglot
	mkdir -p .dagster_home
	test -e .dagster_home/dagster.yaml || ln -s ../dagster.yaml .dagster_home/dagster.yaml
	test -e .env || printf '%s\n' $(QUOTED_DOTENV) > .env
	touch $@
