# make demo [MODALITY=rgb|depth|rgbd]   environment, sample data, training, evaluation, pictures
# make demo NETWORK=umdr                the same with UMDR's network (RGB)
# make test                             environment, tests; make test-fast: those of less than seconds
# make lint                             environment, ruff and mypy
# make coverage                         tests, and which lines and branches they run
# make env [VENV=.venv]                 the environment alone; of other versions, as on a GPU machine:
# make env DALI=cuda130 TORCH=2.11 PYTHON=python3.12 VENV=.venv-gpu
# Nothing but Python 3.10 to 3.12 and its package index is needed; `PYTHON=... make demo` picks one.

SHELL := /bin/bash
MODALITY ?= rgb
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/installed

# MADE_WITH: what the environment was made with stays its choice until another is named.
-include $(VENV)/made_with.mk
DALI ?= $(or $(word 1,$(MADE_WITH)),cuda120)
TORCH ?= $(word 2,$(MADE_WITH))
ifneq ($(strip $(DALI) $(TORCH)),$(or $(MADE_WITH),cuda120))
$(READY): FORCE
endif

.PHONY: FORCE env demo demo-data-rgb demo-data-depth demo-data-rgbd test test-fast coverage lint clean
.DELETE_ON_ERROR:

ENTRY := $(BIN)/torchrun --standalone --nproc_per_node=1 engine
NAME := demo_$(if $(NETWORK),$(NETWORK)_)
RUN := runs/$(NAME)$(MODALITY)
# The full-size network where there is a GPU.
CONFIG = configs/$(NAME)$(1)$$($(BIN)/python -c \
  'import torch; print("_gpu" if torch.cuda.is_available() else "")').yaml

demo: $(READY) demo-data-$(MODALITY)
	@config=$(call CONFIG,$(MODALITY)); \
	$(ENTRY)/train.py --dry-run --config $$config train.run_dir=$(RUN) > /dev/null && \
	$(ENTRY)/train.py --config $$config train.run_dir=$(RUN) && \
	$(ENTRY)/evaluate.py --config $$config --checkpoint $(RUN)/last.pt
	@$(if $(filter rgbd,$(MODALITY)),$(BIN)/python engine/fuse_scores.py $(RUN)_rgb $(RUN)_depth)
	@printf '%s\n' '' \
	  "augmented clips and motion maps  $(RUN)/contact_sheet.png" \
	  "curves                           $(RUN)/curves.png" \
	  "confusion matrix                 $(RUN)/confusion.png" \
	  "checkpoint                       $(RUN)/last.pt (best on the evaluation list: best.pt)" \
	  "result                           $(RUN)/result.json" \
	  "TensorBoard                      $(BIN)/tensorboard --logdir $(RUN)/tensorboard"

demo-data-rgb demo-data-depth: $(READY)
	@$(BIN)/python -m pipelines.synthetic sample_data

# RGB-D starts from the two networks of one modality each.
demo-data-rgbd: $(READY)
	@$(BIN)/python -m pipelines.synthetic sample_data_rgbd --complementary
	@for modality in rgb depth; do \
	  config=$(call CONFIG,$$modality); run=$(RUN)_$$modality; \
	  $(ENTRY)/train.py --config $$config data.root=sample_data_rgbd train.run_dir=$$run && \
	  $(ENTRY)/evaluate.py --config $$config --checkpoint $$run/last.pt \
	    data.root=sample_data_rgbd || exit 1; \
	done

# As many tests at a time as there are cores, four at most; each with one thread, or they would wait
# for each other.
PYTEST := -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

test-fast: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m 'not slow'

coverage: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/coverage run $(PYTEST)
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report --skip-covered

lint: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

env: $(READY)

# A named torch comes with a NumPy on which the interpreter of its Triton (before 3.7) runs.
REQUIREMENTS = $(BIN)/python -c "import configparser; c = configparser.ConfigParser(); \
  c.read('setup.cfg'); print(c['options']['install_requires'], c['options.extras_require']['dev'])" \
  | sed 's/^nvidia-dali-cuda120/nvidia-dali-$(DALI)/'
CONSTRAINTS := $(if $(TORCH),torch==$(TORCH).* numpy<2.4)

# The stamp is newer than setup.cfg exactly when all that setup.cfg asks for is installed.
$(READY): setup.cfg pyproject.toml
	@if [ -L $(VENV) ]; then \
	  echo 'error: $(VENV) is a link: what it points to is not changed; remove it, or name another environment: make VENV=...' >&2; \
	  exit 1; fi; \
	python=$$(for p in $(or $(PYTHON),python3 python3.12 python3.11 python3.10); do \
	  $$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	    && echo $$p && break; done); \
	if [ -z "$$python" ]; then \
	  echo 'error: $(or $(PYTHON),no python3 here) is not Python 3.10, 3.11 or 3.12; name one: make PYTHON=/path/to/python3' >&2; \
	  exit 1; fi; \
	test -x $(BIN)/python || $$python -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip uninstall --quiet --yes $(filter-out %-$(DALI),nvidia-dali-cuda120 nvidia-dali-cuda130)
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --requirement <($(REQUIREMENTS)) \
	  --constraint <(printf '%s\n' $(foreach c,$(CONSTRAINTS),'$(c)'))
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@echo 'MADE_WITH := $(strip $(DALI) $(TORCH))' > $(VENV)/made_with.mk
	@touch $@

clean:
	rm -rf $(VENV) sample_data sample_data_rgbd runs/demo_*
