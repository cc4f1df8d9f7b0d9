# Four words: run, test, lint, docs. Each sets up what it needs in .venv.
PYTHON ?= python3
BIN := .venv/bin
PORT ?= 7860

.PHONY: run test lint docs screenshots hub-demo browser clean

run: .venv/installed  ## set up and open the app
	$(BIN)/python app.py --port $(PORT)

test: .venv/installed browser  ## set up and run every test
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: .venv/installed  ## style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: .venv/installed  ## write the generated parts of docs/ again
	$(BIN)/python -m phi3lora.cli docs

screenshots: .venv/installed browser  ## every page, light and dark, wide and phone
	$(BIN)/python -m tests.screenshots

hub-demo: .venv/installed  ## the app beside a Hub on loopback, for a machine without internet
	$(BIN)/python -m tests.hub --app

browser:  ## Debian's Chromium where no browser is found and this user may install one
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	  { apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null 2>&1 || \
	  echo "No Chromium here, and none could be installed: tests in a browser are skipped."

.venv/installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "torch==2.13.0"
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf .venv
