# Two commands are all a newcomer needs: `make quickstart` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DATA   := data/quickstart
# Quiet, and one place to change how ranks are started; without a GPU the launcher need not look for one.
TRAIN  := $(if $(shell command -v nvidia-smi),,DS_ACCELERATOR=cpu )$(BIN)/deepspeed --log_level error radio_distill/train.py

.DEFAULT_GOAL := help
.PHONY: help install quickstart test rehearse lint clean-quickstart

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

install: $(READY)  ## make .venv and install radio-distill into it

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

quickstart: $(READY)  ## the main job end to end on a CPU: shards, sharpener, student, baseline, report
	$(BIN)/python -m eval.tabletop shards $(DATA) --scenes 2000
	$(BIN)/python -m eval.tabletop shards $(DATA) --scenes 200 --split heldout
	$(TRAIN) recipes/featsharp/tabletop_clip.yaml
	$(TRAIN) recipes/quickstart.yaml
	$(TRAIN) recipes/quickstart.yaml teachers.clip.sharpen=bilinear run=runs/quickstart_baseline
	$(BIN)/python -m eval recipes/eval/quickstart.yaml runs/quickstart runs/quickstart_baseline untrained:runs/quickstart \
		teacher:tabletop_clip teacher:tabletop_siglip --baseline quickstart_baseline --out runs/quickstart_report

clean-quickstart:  ## remove what quickstart made (not the environment)
	rm -rf $(DATA) runs/quickstart runs/quickstart_baseline runs/quickstart_report runs/featsharp/tabletop_clip_2x

test: $(READY)  ## the whole test suite: no network, no GPU, about ten minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

rehearse: $(READY)  ## one step of every shipped recipe at true size, without weights, data or memory: twenty minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m radio_distill.dry_run

lint: $(READY)  ## ruff
	$(BIN)/ruff check .
