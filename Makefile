# Every target works from a fresh clone: it makes the virtual environment it needs.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
WORKERS ?= --numprocesses 2 --dist worksteal
NUMERIC := tests/methods tests/scoring tests/models/test_quantized.py tests/training/test_invariance.py \
	tests/training/test_update_picks.py tests/pipeline/test_processes.py tests/pipeline/test_on_policy_processes.py
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow test-numeric setup lint docs audit

## SFT → DPO beside SFT-C → CW-DPO on drawn pictures; ends with cwdpo-demo/report.html
demo: $(STAMP)
	$(BIN)/cwdpo demo

## The test suite (the quick part), by two processes: a test computes with one thread
test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" $(WORKERS)

## The tests that take longer
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(WORKERS)

## What compares numbers, with less of the processor's vector instructions, which take sums in another order
test-numeric: $(STAMP)
	for isa in default avx2; do ATEN_CPU_CAPABILITY=$$isa $(BIN)/python -m pytest -m "not slow" $(WORKERS) $(NUMERIC) || exit 1; done

## What CI checks beside the tests
lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

## The documentation, built strictly into site/
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

## Known vulnerabilities in the pinned set, asked of public databases; exit code 3 where these cannot be asked
audit: $(STAMP)
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet pip-audit
	@$(BIN)/python scripts/audit.py --pip-audit $(VENV)-audit/bin/pip-audit
