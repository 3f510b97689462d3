# Every target works in a fresh clone. VENV is the folder of the virtual environment: make test VENV=~/venvs/sweeps
VENV ?= .venv
PYTHON ?= python3
RUN = $(VENV)/bin/python
# Import the packages of this checkout, even if several checkouts share one environment.
export PYTHONPATH := $(CURDIR)

.PHONY: help install install-cluster quickstart test fast-test test-oldest test-newest chaos chaos-quick cluster-test \
	report-test ui ui-test gpu-check bench bench-compare bench-safety bench-cluster bench-coverage bench-search lint \
	types

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

install: $(VENV)/.installed ## Create the virtual environment and install the project into it

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

install-cluster: install ## Also install what is needed to start a cluster and send it jobs
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test,cluster]'

quickstart: install ## Install the project, run part 3 on the bundled digits, and report what came of it
	$(RUN) sweeps/part3.py --quick
	$(RUN) analysis/part1.py
	$(RUN) analysis/part3.py --quick
	$(RUN) analysis/report.py part3 --quick
	@echo 'Open the report in a browser: figures/report/report.html'
	@echo 'See every curve: make ui'

test: install ## Run all tests, end-to-end runs included, two at a time
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses 2 --dist worksteal

fast-test: install ## Run the fast tests, which take under a minute together
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses 2 --dist worksteal -m 'not slow'

test-oldest: ## Run lint, types and test with the oldest versions allowed, and record them
test-newest: ## The same with the newest versions allowed
# They have environments of their own.
test-oldest test-newest: test-%:
	$(PYTHON) -m venv --clear $(VENV)-$*
	$(VENV)-$*/bin/python tests/versions.py constraints $* > $(VENV)-$*/constraints.txt
	$(VENV)-$*/bin/python -m pip install --quiet --constraint $(VENV)-$*/constraints.txt --editable '.[test,cluster]'
	$(VENV)-$*/bin/python -m ruff check .
	$(VENV)-$*/bin/python -m ruff format --check .
	$(VENV)-$*/bin/python -m mypy
	OMP_NUM_THREADS=1 $(VENV)-$*/bin/python -m pytest --numprocesses 2 --dist worksteal --ignore tests/test_versions.py
	$(VENV)-$*/bin/python tests/versions.py record $*

chaos: install ## Run sweeps with a fault each, and count points lost or doubled; needs root for the full disks
	$(RUN) chaos/suite.py

chaos-quick: install ## Run the few of these faults that CI injects
	$(RUN) chaos/suite.py --quick

cluster-test: install-cluster ## Test a cluster of three simulated hosts, one of which fails; exits with 77 without root
	$(RUN) cluster/suite.py

report-test: install ## Check a report in a browser: make report-test REPORT=figures/report/report.html; exits with 77 without Chromium
	$(RUN) reporttest/suite.py $(if $(REPORT),--report '$(REPORT)')

ui: install ## Show the sweeps of mlflow.db (or MLFLOW_TRACKING_URI) in MLflow's UI, until Ctrl-C
	@$(RUN) analysis/ui.py

ui-test: install ## Check in a browser what sweeps show in MLflow's UI; exits with 77 without Chromium
	$(RUN) uitest/suite.py

gpu-check: ## Check and measure training on a GPU, with the torch, NumPy and scikit-learn of PYTHON alone: no network
	$(PYTHON) -m gpucheck.suite $(if $(SMALL),--small)

bench: install ## Compare sweeps with a plain script, a sweep as in Ray's tutorial, and the machine's peak
	$(RUN) benchmarks/bench.py
	$(RUN) benchmarks/reports.py

bench-compare: install ## Compare two results of make bench: make bench-compare OLD=a.json NEW=b.json
	$(RUN) benchmarks/compare.py --old '$(OLD)' --new '$(NEW)'

bench-safety: install ## Measure what checkpoints and tracking cost
	$(RUN) benchmarks/safety.py

bench-cluster: install-cluster ## Measure the load that a head takes: writers on PostgreSQL, and many trials in Ray Tune
	$(RUN) benchmarks/load.py
	$(RUN) benchmarks/many_trials.py

bench-coverage: install ## Simulate how often the intervals hold the true value, and how often reports claim too much
	$(RUN) benchmarks/interval_coverage.py

bench-search: install ## Compare searches with a grid, plain Optuna and Ray Tune's OptunaSearch, which takes hours
	$(RUN) benchmarks/search.py

lint: install ## Check the code's style
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: install ## Check the types, in strict mode
	$(RUN) -m mypy
