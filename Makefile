# Four words: run, test, lint, docs. Each sets up what it needs in .venv.
PYTHON ?= python3
BIN := .venv/bin
# A file's tests stay together, since they share an app or a model. All files with a browser go to
# one of three workers, and are served first: pages wait more than they compute (tests/conftest.py).
PYTEST := -m pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: faults run test test-lowest test-space gpu fake-gpu lint docs screenshots hub-demo hub-conformance browser clean

run: .venv/installed  ## set up and open the app
	$(BIN)/python app.py $(if $(PORT),--port $(PORT))

test: .venv/installed browser  ## set up and run every test
	$(BIN)/python $(PYTEST)

gpu: .venv/installed  ## on a machine with a GPU: its tests, and the table of benchmarks
	$(BIN)/python -m benchmarks.on_gpu

fake-gpu: .venv/installed  ## without one: the training on a fake CUDA device, full size too
	$(BIN)/python -m pytest tests/test_fake_cuda.py -m "full_size or not full_size"

faults: .venv/installed  ## kills, full disks and damage for twenty minutes; the table goes into docs/
	$(BIN)/python -m tests.faults --write

lint: .venv/installed  ## style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: .venv/installed  ## write the generated parts of docs/ again
	$(BIN)/python -m phi3lora.cli docs

.PHONY: attacks
attacks: .venv/installed browser  ## try the catalogue of attacks, and write its table
	$(BIN)/python -m tests.attacks --write

screenshots: .venv/installed browser  ## every page, light and dark, wide, tablet and phone
	$(BIN)/python -m tests.screenshots

hub-demo: .venv/installed  ## the app beside a Hub on loopback, for a machine without internet
	$(BIN)/python -m tests.hub --app

hub-conformance: .venv/installed  ## the Hub clients' own tests against the Hub on loopback
	$(BIN)/python -m tests.hub.conformance

test-space: .venv/installed  ## what depends on pydantic, with the version that a Space has
	$(BIN)/pip install --quiet --upgrade --target build/space "pydantic==2.12.5"
	PYTHONPATH=build/space $(BIN)/python -m pytest tests/test_config.py tests/test_settings.py \
	  tests/test_form.py tests/test_recipes.py tests/test_strict_yaml.py

# A venv of its own: torch's lowest version brings its CUDA libraries, some 5 GB.
test-lowest: build/lowest/installed browser  ## every test with the lowest versions that are admitted
	build/lowest/bin/python $(PYTEST)

build/lowest/installed: requirements.txt pyproject.toml
	test -x build/lowest/bin/python || $(PYTHON) -m venv build/lowest
	sed -E '/^#/d; s/>=([^,]+).*/==\1/' requirements.txt > build/lowest/requirements.txt
	build/lowest/bin/pip install --quiet -r build/lowest/requirements.txt \
	  "pytest>=8" "pytest-xdist>=3.8" "playwright>=1.50" "nbformat>=5"
	touch $@

browser:  ## Debian's Chromium where no browser is found and this user may install one
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	  { apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null 2>&1 || \
	  echo "No Chromium here, and none could be installed: tests in a browser are skipped."

.venv/installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --upgrade pip
	$(BIN)/pip install --quiet --no-compile "torch==2.13.0"
	$(BIN)/pip install --quiet --no-compile -e ".[dev]"
	touch $@

clean:
	rm -rf .venv build
