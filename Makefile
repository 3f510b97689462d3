# Everything starts from a bare checkout. The environment's place can be chosen: make test VENV=~/venvs/sweeps
VENV ?= .venv
PYTHON ?= python3
RUN = $(VENV)/bin/python
# An environment that several checkouts share imports this one.
export PYTHONPATH := $(CURDIR)

.PHONY: help install install-cluster quickstart test fast-test chaos chaos-quick cluster-test bench bench-compare \
	bench-safety bench-cluster lint types

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

install: $(VENV)/.installed ## Make the virtual environment and install the project into it

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

install-cluster: install ## What bringing up a cluster, and sending it jobs, needs as well
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test,cluster]'

quickstart: install ## Install, run part 3 on the bundled digits, and draw its figures
	$(RUN) sweeps/part3.py --quick
	$(RUN) analysis/part1.py
	$(RUN) analysis/part3.py --quick

test: install ## All tests, end-to-end runs included, two at a time
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses 2 --dist worksteal

fast-test: install ## The tests that take under a minute together
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses 2 --dist worksteal -m 'not slow'

chaos: install ## Real sweeps with a fault each: is anything lost or doubled? Needs root for the full disks
	$(RUN) chaos/suite.py

chaos-quick: install ## The faults that CI injects
	$(RUN) chaos/suite.py --quick

cluster-test: install-cluster ## A cluster on three hosts of this machine, switched off in part; root, or it ends with 77
	$(RUN) cluster/suite.py

bench: install ## Sweeps beside a plain script and one as in Ray's tutorial, and the machine's limit
	$(RUN) benchmarks/bench.py

bench-compare: install ## Two results of make bench: make bench-compare OLD=a.json NEW=b.json
	$(RUN) benchmarks/compare.py --old '$(OLD)' --new '$(NEW)'

bench-safety: install ## What checkpoints and tracking cost
	$(RUN) benchmarks/safety.py

bench-cluster: install-cluster ## What the head takes: writers at once on PostgreSQL, and many trials in Ray Tune
	$(RUN) benchmarks/load.py
	$(RUN) benchmarks/many_trials.py

lint: install ## Style
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: install ## Types, strictly
	$(RUN) -m mypy
