# `make` alone lists the targets. A fresh machine needs Python (3.10 or newer) and pip.

PYTHON ?= python3
export TF_CPP_MIN_LOG_LEVEL ?= 3

# The lower end of the supported range (the upper one is whatever pip finds for .venv). Newer
# tensorflow-metadata needs a newer protobuf than that TensorFlow has.
OLDEST = 'keras==3.8.*' 'tensorflow==2.18.*' 'numpy==1.26.*' 'tensorflow-metadata==1.16.*'
PYTEST = -m pytest -n 2 --dist worksteal --doctest-modules
# The last of every minor version in between, on the TensorFlow of .venv.
BETWEEN = 3.9.2 3.10.0 3.11.3 3.12.4 3.13.2 3.14.1

.PHONY: help demo test test-slow test-oldest test-between bench docs docs-serve lint clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

demo: .venv/installed  ## train digits at full rank and low-rank, compare, export (about a minute)
	.venv/bin/python examples/digits.py

test: lint  ## check the style and the types, and run all tests on the newest versions
	.venv/bin/python $(PYTEST)

test-slow: .venv/installed  ## run the tests that take minutes (35 at most)
	timeout 35m .venv/bin/python -m pytest -n 2 --dist worksteal -m slow tests

test-oldest: .venv-oldest/installed  ## run all tests on the oldest supported Keras and TensorFlow
	.venv-oldest/bin/python $(PYTEST)

test-between: .venv/installed  ## run the tests of what hangs on Keras's version on those in between
	for version in $(BETWEEN); do \
		test -d .venv-between/$$version || .venv/bin/python -m pip install --quiet --no-deps \
			--target .venv-between/$$version keras==$$version || exit 1; \
		PYTHONPATH=.venv-between/$$version .venv/bin/python -m pytest -n 2 --dist worksteal tests/test_keras_internals.py tests/test_keras_graphs.py \
			tests/files/test_saving.py tests/training/test_recomputed.py tests/optimizers/test_optimizer_rules.py \
			tests/training/test_custom_losses.py tests/integrators/test_fixed_rank.py || exit 1; \
	done

bench: .venv/installed  ## measure time and memory of training and of inference (5 minutes)
	.venv/bin/python benchmarks/train_step.py
	.venv/bin/python benchmarks/inference.py
	.venv/bin/python benchmarks/memory.py --ranks 32

docs: .venv/docs-installed  ## build the site into out/site; the guides run (3 minutes)
	.venv/bin/python -m mkdocs build

docs-serve: .venv/docs-installed  ## show the site at http://localhost:8000; the guides do not run
	DOCS_EXECUTE=false .venv/bin/python -m mkdocs serve

lint: .venv/installed  ## check the style and the types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

clean:  ## remove environments, caches and builds; results in out/ stay
	rm -rf .venv .venv-oldest .venv-between build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: installed again only when pyproject.toml changes.
.venv/installed: pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -e '.[examples,test]'
	touch $@

.venv/docs-installed: .venv/installed
	.venv/bin/python -m pip install -e '.[docs]'
	touch $@

.venv-oldest/installed: pyproject.toml
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -e '.[examples,test]' $(OLDEST)
	touch $@
