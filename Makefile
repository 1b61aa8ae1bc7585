# Everything runs from a clean clone with Python 3.11, git and make.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: setup demo test test-live test-faults ui train-toy findings bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there. Install Python 3.11, or: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]" --constraint constraints.txt
	touch $@

demo: $(READY)   ## the main job on the embedded demo
	$(BIN)/sam-laplace demo

test: $(READY)   ## lint, types, layers, and all tests but those that need the daemon or a browser
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not live and not browser and not faults"

test-live: $(READY)   ## tests with the real daemon, webserver and browser; `make test-live BUT=long` leaves the longest out
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "(live or browser) and not faults$(if $(BUT), and not $(BUT))"

test-faults: $(READY) ## the long attacks: kill it, fill its disk, damage its files; about half an hour
	rm -rf .artifacts/faults
	start=$$(date +%s); $(BIN)/python -m pytest -n 2 --dist loadfile -m "not live" \
	  sam_laplace_assets_tests/faults sam_laplace_assets_tests/test_security.py sam_laplace_assets_tests/resources/test_tracking_faults.py \
	&& $(BIN)/python -m sam_laplace_assets_tests.faults --seconds $$(($$(date +%s) - start))

ui: $(READY)     ## Dagster's UI and MLflow's, on this machine
	$(BIN)/sam-laplace dev

train-toy: $(READY)   ## train the toy SAM again, then measure it
	$(BIN)/python -m sam_laplace_assets.demo.train_toy_sam
	$(BIN)/python -m sam_laplace_assets.demo.evaluate_toy_sam

findings: $(READY)   ## measure what the posterior is worth, on drawn images; about two hours on 2 cores
	$(BIN)/python -m sam_laplace_assets_tests.benchmarks.findings

bench: $(READY)  ## time the platform against plain references, side by side; `make bench ROWS="pack" ROUNDS=5`
	$(BIN)/python -m sam_laplace_assets_tests.benchmarks $(ROWS) --rounds $(or $(ROUNDS),7)

clean:           ## remove what was made here, the demo's outputs included
	rm -rf $(VENV) .demo .artifacts .findings
