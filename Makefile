# make demo    train, label, unlearn, export and measure on TinySD, and write runs/demo/report.html
# make test    the tests; make test PYTEST_ARGS=--slow runs those over ten seconds too
# make results  every method, baseline and attack on TinySD, into docs/results.md
# make check   lint and types
# make lint    ruff alone
# make bench   the scripts in benchmarks/
# make clean   remove the environment and caches; runs/ stays
#
# TORCH is the torch that `make` installs. To choose another: make demo TORCH='torch>=2.6,<2.14'

PYTHON ?= python3
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
BIN := .venv/bin
READY := .venv/ready
READY_DEV := .venv/ready-dev

.PHONY: demo results test check lint types bench clean

demo: $(READY)
	$(BIN)/safetune demo

results: $(READY)
	$(BIN)/safetune results --page docs/results.md

test: $(READY_DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 \
		--dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: lint types

lint: $(READY_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY_DEV)
	$(BIN)/mypy

bench: $(READY_DEV)
	@for script in $(sort $(wildcard benchmarks/*.py)); do echo "$$script" && $(BIN)/python "$$script" || exit 1; done

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)" --editable .
	touch $@

$(READY_DEV): $(READY)
	$(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[dev]"
	touch $@
