# make demo [MODALITY=rgb|depth]   environment, sample data, training, evaluation, pictures
# make test                        environment, tests
# make lint                        ruff and mypy
# Nothing but Python 3.10 to 3.12 and its package index is needed; `PYTHON=... make demo` picks one.

SHELL := /bin/bash
MODALITY ?= rgb
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/installed

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

demo: $(READY)
	@$(BIN)/python -m pipelines.synthetic sample_data
	@config=configs/demo_$(MODALITY)$$($(BIN)/python -c \
	  'import torch; print("_gpu" if torch.cuda.is_available() else "")').yaml; \
	run=$$($(BIN)/python -c 'import sys, yaml; print(yaml.safe_load(open(sys.argv[1]))["train"]["run_dir"])' $$config); \
	$(BIN)/torchrun --standalone --nproc_per_node=1 engine/train.py --dry-run --config $$config > /dev/null && \
	$(BIN)/torchrun --standalone --nproc_per_node=1 engine/train.py --config $$config && \
	$(BIN)/torchrun --standalone --nproc_per_node=1 engine/evaluate.py --config $$config --checkpoint $$run/last.pt && \
	printf '\n%s\n' \
	  "augmented clips and motion maps  $$run/contact_sheet.png" \
	  "curves                           $$run/curves.png" \
	  "confusion matrix                 $$run/confusion.png" \
	  "checkpoint                       $$run/last.pt (best on the evaluation list: best.pt)" \
	  "result                           $$run/result.json" \
	  "TensorBoard                      $(BIN)/tensorboard --logdir $$run/tensorboard"

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# The stamp is newer than setup.cfg exactly when all that setup.cfg asks for is installed.
$(READY): setup.cfg pyproject.toml
	@python=$$(for p in $(PYTHON) python3 python3.12 python3.11 python3.10; do \
	  $$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	    && echo $$p && break; done); \
	if [ -z "$$python" ]; then \
	  echo 'error: no Python 3.10, 3.11 or 3.12 found; name one: make PYTHON=/path/to/python3' >&2; \
	  exit 1; fi; \
	test -x $(BIN)/python || $$python -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) sample_data runs/demo_*
