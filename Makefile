PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
STAMP := .venv/installed
QUIET := RAY_USAGE_STATS_ENABLED=0 TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S=0

.PHONY: setup sweep test lint

# The whole main job: make sweep SWEEP_ARGS="--seeds 5 --out elsewhere"
sweep: setup
	$(BIN)/python sweeps/cam_geometry.py $(SWEEP_ARGS)

# Two processes take turns at the files, those that start Ray first. One file, in one process, with a debugger:
# make test TEST_ARGS="-n 0 --pdb tests/test_cli.py"
test: setup
	$(QUIET) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

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

# Notebooks. Jupyter has an environment of its own: beside Ray it slows the start of every process of a sweep.
NOTEBOOK_BIN := .venv-notebooks/bin
NOTEBOOK_STAMP := .venv-notebooks/installed
NOTEBOOK_OUT ?= out/notebooks
NOTEBOOK_RUNS := out/notebook_runs
# The sweep that they look at, a folder or an address: make notebooks NOTEBOOK_RUN=runs/cam_geometry
NOTEBOOK_RUN ?=
LOOKED_AT := $(or $(NOTEBOOK_RUN),$(NOTEBOOK_RUNS)/cam_geometry)
LOOKED_AT := $(if $(findstring ://,$(LOOKED_AT)),$(LOOKED_AT),$(abspath $(LOOKED_AT)))

.PHONY: notebooks jupyter strip

# Executes all of them into NOTEBOOK_OUT, as notebooks and as HTML; those in analysis/ stay as they are.
notebooks: $(NOTEBOOK_STAMP) $(if $(NOTEBOOK_RUN),,$(NOTEBOOK_RUNS)/finished)
	MANTRA_RUN="$(LOOKED_AT)" $(NOTEBOOK_BIN)/jupyter-nbconvert --log-level WARN --to notebook --execute \
		--ExecutePreprocessor.startup_timeout=300 --ExecutePreprocessor.timeout=600 \
		--output-dir "$(NOTEBOOK_OUT)" analysis/*.ipynb
	$(NOTEBOOK_BIN)/jupyter-nbconvert --log-level ERROR --to html "$(NOTEBOOK_OUT)"/*.ipynb
	@ls "$(NOTEBOOK_OUT)"/*.html

# Opens them in the browser; `make strip` before a commit takes their outputs away again.
jupyter: $(NOTEBOOK_STAMP)
	$(if $(NOTEBOOK_RUN),MANTRA_RUN="$(LOOKED_AT)") $(NOTEBOOK_BIN)/jupyter-lab --notebook-dir=analysis

strip: $(NOTEBOOK_STAMP)
	$(NOTEBOOK_BIN)/jupyter-nbconvert --log-level WARN --clear-output --inplace analysis/*.ipynb

$(NOTEBOOK_STAMP): analysis/requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-notebooks
	$(NOTEBOOK_BIN)/python -m pip install --quiet --disable-pip-version-check -r analysis/requirements.txt
	$(NOTEBOOK_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

# A tiny sweep, made anew where the code changed.
$(NOTEBOOK_RUNS)/finished: $(STAMP) sweeps/cam_geometry.py $(wildcard mantra_ray/*.py mantra_ray/*/*.py)
	$(QUIET) $(BIN)/python sweeps/cam_geometry.py --smoke --out $(NOTEBOOK_RUNS)
	touch $@

# Known vulnerabilities of all that is pinned. Where nothing can be installed or asked it says so, and passes unless
# AUDIT_REQUIRED=1.
AUDIT_STAMP := .venv-audit/installed

.PHONY: audit

audit: $(AUDIT_STAMP)
	@$(PYTHON) .ci/audit.py --also "$(TORCH)"

$(AUDIT_STAMP): .ci/audit-requirements.txt
	-$(PYTHON) -m venv .venv-audit && \
		.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check -r $< && touch $@
