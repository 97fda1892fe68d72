# make demo | test | test-fast | test-gpu | test-slurm | coverage | mutate | lint | bench | figures | results | report
# Each creates .venv when it is missing. PYTHON chooses the interpreter (3.11 or newer).
# make test also installs FFCV and the system libraries that it needs, where it may; FFCV=no leaves that out.
# It also installs Chromium, where it may, to test the pages of results/site; BROWSER=no leaves that out.
PYTHON ?= python3
FFCV ?= yes
BROWSER ?= yes
FAST := -m "not slow" tests/ham/optim tests/ham/theory tests/ham/report tests/pruning --ignore=tests/pruning/test_contract.py \
	--ignore=tests/pruning/test_contract_ranks.py tests/ham/run/test_config.py tests/ham/run/test_loop.py tests/ham/run/test_golden.py tests/ham/run/test_node.py \
	tests/ham/test_import.py tests/ham/test_models.py tests/ham/test_gnn.py tests/test_docs.py
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile

.PHONY: demo test test-fast test-gpu test-slurm coverage mutate lint bench figures results report clean

demo: $(VENV)/run.stamp
	$(BIN)/python train.py +exp=acdc_ham_s90 +demo=digits resume=false

test: $(VENV)/dev.stamp
	@[ "$(FFCV)" = no ] || scripts/install_ffcv.sh $(BIN)/python || echo "Continuing without FFCV: its tests are skipped"
	@[ "$(BROWSER)" = no ] || scripts/install_browser.sh || echo "Continuing without a browser: tests of pages in it are skipped"
	$(PYTEST)

test-fast: $(VENV)/dev.stamp  # what fails most often, in under 3 minutes
	$(PYTEST) $(FAST)

test-gpu: $(VENV)/dev.stamp
	$(BIN)/python -m pytest tests/gpu -m gpu

test-slurm: $(VENV)/dev.stamp
	$(BIN)/python -m pytest tests/slurm

coverage: $(VENV)/dev.stamp  # of the quick tests
	$(PYTEST) $(FAST) --cov=ham --cov=pruning --cov-report=term:skip-covered

mutate: $(VENV)/dev.stamp  # do tests notice small changes of the code? make mutate MUTATE="pruning --sample 100"
	$(BIN)/python tests/mutate.py $(MUTATE)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

RESULTS := benchmarks/results
bench: $(VENV)/dev.stamp  # all benchmarks, then docs/benchmarks.md
	$(BIN)/python benchmarks/optimizer.py --json $(RESULTS)/optimizer.json
	$(BIN)/python benchmarks/masks.py --json $(RESULTS)/masks.json
	$(BIN)/python benchmarks/throughput.py --rounds 3 --batch 4 --json $(RESULTS)/throughput-cpu.json
	$(BIN)/python benchmarks/loops.py --json $(RESULTS)/loops.json
	$(BIN)/python benchmarks/graphs.py --sets cora minesweeper --json $(RESULTS)/graphs.json
	$(BIN)/python benchmarks/molecules.py --graphs 640 --steps 20 --json $(RESULTS)/molecules.json
	$(BIN)/python benchmarks/counts.py --json $(RESULTS)/counts.json
	$(BIN)/python benchmarks/page.py --print

figures: $(VENV)/run.stamp
	$(BIN)/python scripts/theory_runs.py
	$(BIN)/python scripts/figures.py --theory
	$(BIN)/python scripts/figures.py

results: $(VENV)/site.stamp  # everything that is made of the committed records, again
	$(BIN)/python scripts/tables.py
	$(BIN)/python scripts/tables.py --demo digits
	$(BIN)/python scripts/tables.py --demo cifar16
	$(BIN)/python scripts/tables.py --demo smollm
	$(BIN)/python scripts/figures.py
	$(BIN)/python scripts/figures.py --demo digits
	$(BIN)/python scripts/figures.py --demo cifar16
	$(BIN)/python scripts/figures.py --theory
	$(BIN)/python scripts/node_report.py
	$(BIN)/python scripts/node_grid.py
	$(BIN)/python scripts/study.py cifar16
	$(BIN)/python scripts/report.py
	$(BIN)/python scripts/index.py

report: $(VENV)/site.stamp  # the pages that show the records in a browser
	$(BIN)/python scripts/report.py

clean:
	rm -rf $(VENV) build *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing torch and what the experiments need into $(VENV): 5.5 GB, a few minutes once"
	$(PIP) -e '.[run]'
	@touch $@

$(VENV)/site.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing torch, what the experiments and the pages need into $(VENV): 5.5 GB, a few minutes once"
	$(PIP) -e '.[run,site]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing torch, what the experiments need and the test tools into $(VENV): 5.5 GB, a few minutes once"
	$(PIP) -e '.[run,site,gnn,ogb,dev]'
	@touch $@
