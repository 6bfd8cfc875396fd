PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
STAMP := .venv/installed
QUIET := RAY_USAGE_STATS_ENABLED=0 TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S=0

.PHONY: setup sweep test lint

# The whole main job: make sweep SWEEP_ARGS="--seeds 5 --out elsewhere"
sweep: setup
	$(BIN)/python sweeps/cam_geometry.py $(SWEEP_ARGS)

test: setup
	$(QUIET) $(BIN)/python -m pytest $(TEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

setup: $(STAMP)

# Torch comes first and apart, so that another build of it can be chosen: make setup TORCH=FILE.whl
$(STAMP): requirements.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@
