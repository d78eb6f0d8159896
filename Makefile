# Every target sets up what it needs: .venv is built once per requirements.lock.
#
#   make demo     the whole workflow on synthetic people
#   make test     the tests
#   make test-fast  those of them that are fast and need neither Ray nor a server
#   make coverage the tests, and which lines they run
#   make check    format, lint, types, import contracts, tests: what must pass before a change lands
#   make test-gpu the tests that need a GPU, which `make test` leaves out where there is none
#   make test-slurm  the script of clusters/slurm on real Slurm; needs root, slurm-wlm and munge
#   make test-browser  MLflow's pages as people see them, in Chromium
#   make test-ultralytics  an exported model in Ultralytics' trackers, in .venv-ultralytics
#   make docs     the documentation as a site, in site/; a link that leads nowhere fails
#   make model    retrain, evaluate and save the shipped model: over an hour
#   make bench    parity with the authors' numbers, and the speed of rendering
#   make check-large  the paper's recipe at full size for a few steps: minutes, and gigabytes
#
# TORCH_INDEX=https://download.pytorch.org/whl/cpu takes PyTorch's CPU-only build (1 GB, not 7).

PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
READY := .venv/.ready

# The processes of a run compile what they import once, and not each for itself.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo docs test test-fast coverage test-gpu test-slurm test-browser test-ultralytics check check-large format model bench lock clean
.DEFAULT_GOAL := help

help:
	@sed -n '3,17s/^# \{0,3\}//p' Makefile

setup: $(READY)

$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "Setting up .venv from requirements.lock; this takes some minutes once"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--constraint requirements.lock --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/muva demo

# Two at once: more would wait for each other's Ray clusters. What an interrupted run leaves is ended.
PYTEST := $(BIN)/python -m tests.supervise $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_OPTIONS)

test: setup
	$(PYTEST)

test-fast: setup
	$(PYTEST) -m 'not cluster and not slow and not browser and not slurm and not ultralytics'

coverage: setup
	$(PYTEST) --cov --cov-report=term:skip-covered

test-gpu: setup
	$(BIN)/pytest tests/gpu

test-slurm: setup
	$(BIN)/pytest -m slurm -rs tests/clusters/test_slurm.py

test-browser: setup
	$(BIN)/pytest -m browser tests/browser

# Ultralytics is AGPL-3.0: no part of the project imports it, and its environment lacks muva.
test-ultralytics: setup .venv-ultralytics/.ready
	$(BIN)/pytest -m ultralytics tests/workflows/verbs/test_export_ultralytics.py

.venv-ultralytics/.ready: requirements.lock
	$(PYTHON) -m venv --clear .venv-ultralytics
	.venv-ultralytics/bin/pip install --quiet --disable-pip-version-check \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--constraint requirements.lock ultralytics==8.4.190 lap==0.5.13 onnx onnxruntime
	@touch $@

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory test

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Each step continues where it was interrupted. The small CLIP that it starts from is made by
# `python -m muva.pretraining.clip small --out muva/model/small --people FOLDER`.
NAMED := syn-boulevard,syn-station,syn-harbour,syn-airport,syn-plaza,syn-concourse,syn-mall,syn-campus
# Of the open world too, but with networks and people that neither has seen; each one by itself, as
# pairs of strangers from two networks would be too easy to tell apart.
COMMA := ,
EMPTY :=
OTHERS := $(subst $(EMPTY) ,$(COMMA),$(foreach n,$(shell seq 900 919),syn-world-$(n)-$(n)))
model: setup
	$(BIN)/muva train --recipe open-world --name open-world --compile
	$(BIN)/muva calibrate open-world --on $(OTHERS) --recipe open-world \
		--set synthetic.train_people=0 --set synthetic.test_people=40
	$(BIN)/muva evaluate open-world-calibrated --targets $(NAMED) --recipe open-world \
		--set synthetic.train_people=100 --set synthetic.test_people=100
	$(BIN)/muva models save open-world-calibrated muva/model/synthetic --compact --licence apache-2.0

bench: setup
	$(BIN)/python -m benchmarks.parity --check tests/golden/model.json tests/golden/retrieval.npz
	$(BIN)/python -m benchmarks.render --check

# Of every night, not of every change: ViT-B/16 and ViT-L/14 with random weights.
check-large: setup
	$(BIN)/python -m benchmarks.large --check

# Anew from pyproject.toml: resolves the newest versions it allows, then freezes them.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --editable '.[dev]'
	.venv-lock/bin/pip freeze --exclude-editable > requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf .venv .venv-ultralytics runs .ruff_cache .pytest_cache .import_linter_cache
