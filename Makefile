# The commands of spot_artifacts. Everything is installed into .venv; nothing needs root.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
MIN_PY := $(shell sed -n 's/^min_python *= *//p' settings.ini)
SETUP  := settings.ini setup.py pyproject.toml

.PHONY: help demo test export refresh readme docs clean soak

help:
	@echo "make demo     install into $(VENV) and run the whole method on the embedded images: runs/demo/report.html"
	@echo "make test     ruff; library, notebooks and README against each other; every notebook; then pytest"
	@echo "make soak     an hour and a half: runs killed and resumed, a million files, memory over an hour; writes nbs/results/soak/"
	@echo "make export   write spot_artifacts/*.py from the notebooks and clean the notebooks"
	@echo "make refresh  export, run the notebooks again, save their outputs and README.md  (NB='12_damage index': only these)"
	@echo "make readme   write README.md from nbs/index.ipynb"
	@echo "make docs     build the site from the notebooks and their saved outputs: _docs/index.html"
	@echo "make clean    delete caches, builds and the check's $(VENV)-newest; $(VENV) and runs/ stay"
	@echo ""
	@echo "Another Python:           make demo PYTHON=python3.12   ($(MIN_PY) or newer; delete an older $(VENV) first)"
	@echo "The small CPU-only torch: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo"

demo: $(VENV)/library
	$(BIN)/spot-artifacts demo

test: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/python tools/check_sync.py
	$(BIN)/python tools/readme.py --check
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --do_print --timing
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

soak: $(VENV)/dev
	$(BIN)/python tools/soak.py kills
	$(BIN)/python tools/soak.py paths
	$(BIN)/python tools/soak.py hour

export: $(VENV)/dev
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

refresh: export
	$(BIN)/python tools/refresh.py $(NB)
	$(BIN)/python tools/readme.py

readme: $(VENV)/dev
	$(BIN)/python tools/readme.py

docs: $(VENV)/dev
	$(BIN)/python tools/docs.py

clean:
	rm -rf build dist *.egg-info _docs _proc .pytest_cache $(VENV)-newest
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -exec rm -rf {} +

# Stamp files: each is newer than what it was made from, so that a second call installs nothing and needs no network.
$(VENV)/made:
	@command -v $(PYTHON) >/dev/null || { echo "No $(PYTHON) here: install Python $(MIN_PY) or newer, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(MIN_PY)".split("."))))' || { echo "Python $(MIN_PY) or newer is needed, and $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@echo "Installing PyTorch, fastai and the rest into $(VENV): some minutes, and up to 6 GB with the CUDA build of PyTorch."
	$(PIP) install 'setuptools>=77'
	@touch $@

$(VENV)/library: $(VENV)/made $(SETUP)
	$(PIP) install --no-build-isolation -e .
	@touch $@

$(VENV)/dev: $(VENV)/made $(SETUP)
	$(PIP) install --no-build-isolation -e '.[dev]'
	@touch $(VENV)/library $@
