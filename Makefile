# Two commands do everything on a machine with Python >= 3.11: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help demo deploy-demo test test-fast test-slow check wheel each-class reference-share client-targets
.PHONY: deeper compare strategy-matrix paper-small paper-figures strategy-time scaling dags ulira private-answers
.PHONY: bench-store bench-overhead bench-fisher bench-ledger faults fuzz scale attacks clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 17

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit("Python >= 3.11 is needed, " + v + " was found; name another with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.sim: pyproject.toml | $(BIN)/python
	@echo "Installing fl-unlearn and what the simulations need (torch is large: a minute or more) ..."
	$(BIN)/python -m pip install --quiet --editable '.[sim]'
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/.sim
	@echo "Installing what the tests need ..."
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

$(VENV)/.bench: pyproject.toml | $(VENV)/.sim
	@echo "Installing the libraries that the Fisher benchmark compares with ..."
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@touch $@

demo: $(VENV)/.sim  ## train on handwritten digits with Flower, forget one, write a report (ARGS="--help" for more)
	$(BIN)/python -m simulations.demo $(ARGS)

deploy-demo: $(VENV)/.sim  ## the same on Flower's deployment engine: a SuperLink and SuperNodes, TLS, keys (ARGS="--help")
	$(BIN)/python -m simulations.deploy $(ARGS)

test: $(VENV)/.test  ## all tests, two at a time; some start Flower's simulation engine
	@sh tests/install_browser.sh
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

test-fast: $(VENV)/.test  ## the tests that need no simulation engine
	@sh tests/install_browser.sh
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not e2e and not slow" $(ARGS)

test-slow: $(VENV)/.test  ## the tests left out of `make test`: processes of the deployment engine, minutes each
	$(BIN)/python -m pytest -m slow $(ARGS)

check: $(VENV)/.test  ## lint, format, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: $(VENV)/.test  ## build the wheel and import it in a clean environment outside the repository
	$(BIN)/python tests/check_wheel.py

each-class: $(VENV)/.sim  ## digits: forget each of the ten classes in turn, and several at once (tables)
	$(BIN)/python -m simulations.figures.each_class --out outputs/each-class $(ARGS)
	$(BIN)/python -m simulations.figures.each_class --holders 2 --out outputs/several-classes 1,9 0,1,2 3,5,8 $(ARGS)

reference-share: $(VENV)/.sim  ## digits: what is lost when the reference comes from a part of its samples
	$(BIN)/python -m simulations.figures.reference_share $(ARGS)

client-targets: $(VENV)/.sim  ## digits: what a Fisher update does for a client's data and for single samples (tables)
	$(BIN)/python -m simulations.figures.client_targets $(ARGS)

private-answers: $(VENV)/.sim  ## digits: what noise, masks and pooled scores cost a request (table)
	$(BIN)/python -m simulations.figures.private_answers $(ARGS)

deeper: $(VENV)/.sim  ## what is left of a class beyond accuracy, beside retraining (ARGS="--data FOLDER"; hours)
	$(BIN)/python -m simulations.figures.deeper --out outputs/deeper $(ARGS)

compare: $(VENV)/.sim  ## every strategy on the same federation, beside retraining (ARGS="--data FOLDER" adds CIFAR-10; hours)
	$(BIN)/python -m simulations.compare $(ARGS)

paper-small: $(VENV)/.sim  ## the paper's scenarios, small: on digits (a minute); ARGS="--data FOLDER" adds CIFAR-10 (an hour)
	$(BIN)/python -m simulations.inheritance --small --out outputs/paper-small $(ARGS)

paper-figures: $(VENV)/.sim  ## the paper's figures on graphs, of paper-small's and others (ARGS="NAME... --config FILE..."; --help lists them)
	$(BIN)/python -m simulations.figures.inherited --experiments outputs/paper-small --out outputs/paper-figures $(ARGS)

strategy-matrix: $(VENV)/.sim  ## every strategy of Flower: bit-identical, forgets, stays forgotten (minutes)
	$(BIN)/python -m simulations.figures.strategy_matrix --out outputs/strategy-matrix $(ARGS)

strategy-time: $(VENV)/.sim  ## time of every strategy to forget in a whole graph (digits; ARGS="--config NAME --data FOLDER")
	$(BIN)/python -m simulations.figures.time --out outputs/strategy-time $(or $(ARGS),--config diamond-digits-mlp-small)

scaling: $(VENV)/.sim  ## digits: time to forget against the number of affected models, 10 to 1,000, in random graphs
	$(BIN)/python -m simulations.figures.scaling --out outputs/scaling $(ARGS)

dags: $(VENV)/.sim  ## a picture of each scenario's graph
	$(BIN)/python -m simulations.figures.dags --out outputs/dags $(ARGS)

ulira: $(VENV)/.sim  ## U-LiRA, a membership attack with shadow models, against strategies on digits
	$(BIN)/python -m simulations.compare.shadows --out outputs/ulira $(ARGS)

bench-store: $(VENV)/.sim  ## lineage beside networkx, applying updates beside loops and copies (30 GB of disk)
	$(BIN)/python -m simulations.benchmarks.store $(ARGS)

bench-overhead: $(VENV)/.sim  ## what recording costs a training run, on the simulation engine (table and JSON)
	$(BIN)/python -m simulations.benchmarks.overhead $(ARGS)

bench-fisher: $(VENV)/.bench  ## Fisher diagonals beside a backward pass, torch.func, BackPACK and Opacus (table and JSON)
	$(BIN)/python -m simulations.benchmarks.fisher $(ARGS)

bench-ledger: $(VENV)/.sim  ## a class request from the clients' ledgers beside computing it (ARGS="--data FOLDER")
	$(BIN)/python -m simulations.benchmarks.ledger $(ARGS)

faults: $(VENV)/.sim  ## kill processes that work on a store, 300 times, and see what the next start makes of it
	$(BIN)/python -m simulations.faults $(ARGS)

scale: $(VENV)/.sim  ## one request over 10, 100 and 1,000 clients: time and the server's memory (ARGS="--engine pipes --case small")
	$(BIN)/python -m simulations.scale $(ARGS)

fuzz: $(VENV)/.sim  ## sound and altered inputs at random (TARGET=documents, answers, questions, updates or checkpoints; ARGS="--examples N")
	$(BIN)/python -m simulations.fuzz $(or $(TARGET),documents) $(ARGS)

attacks: $(VENV)/.sim  ## digits: clients that lie while a class is forgotten, with and without the defence (minutes)
	$(BIN)/python -m simulations.attacks $(ARGS)
	$(BIN)/python -m simulations.attacks.client
	$(BIN)/python -m simulations.attacks.honest

clean:  ## remove the environment and what was built; outputs/ stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
