# The two commands a newcomer types are `make demo` and `make test`; both set everything up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without an NVIDIA GPU, torch is held to the version whose CPU build pip can find; with one, pip's own choice is right.
CONSTRAINT := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo -c constraints.txt)
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check docs install

demo: $(VENV)/.installed
	$(BIN)/mcvd predict examples/digits.mp4 --frames 10 --samples 2 --out output/predict.mp4
	$(BIN)/mcvd predict examples/digits.mp4 --backward --frames 10 --samples 2 --out output/backward.mp4
	$(BIN)/mcvd fill examples/digits.mp4 --known 0-4,10-19 --samples 2 --out output/interpolate.mp4
	$(BIN)/mcvd generate --frames 15 --samples 2 --out output/generate.mp4
	@echo "look at output/*.png first: given frames are edged blue, generated ones orange"

test: $(VENV)/.installed-test check
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-test
	$(BIN)/sphinx-build -q -W --keep-going docs output/docs
	@echo "open output/docs/index.html"

install: $(VENV)/.installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("mcvd needs Python 3.11 or newer, not %d.%d: make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet $(CONSTRAINT) --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet $(CONSTRAINT) --editable '.[test]'
	@touch $@
