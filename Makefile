# Every target does the set-up it needs; nothing has to be installed by hand but Python 3.11 or 3.12.
PYTHON ?= python3
PROMPT ?= a red circle moves left on a black background
OUT ?=
IMAGE ?=
LAST_IMAGE ?=
VIDEO ?=
LORA ?=
OPTIONS ?=
CHECKPOINT ?=
TARGET ?= auto
BIN := .venv/bin
SERVED = --target $(TARGET) $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)")
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

.PHONY: setup run serve test coverage bench tiny lint clean

setup: .venv/run.stamp  ## the environment that serves

.venv/run.stamp: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13) and "Python 3.11 or 3.12 is needed, not " + sys.version.split()[0] + "; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing Python packages into .venv (a minute or two)"
	$(PIP) -e '.[triton]'
	@touch $@

.venv/test.stamp: .venv/run.stamp
	@echo "Installing the packages of the test suite"
	$(PIP) -e '.[test]'
	@touch $@

# those of models/tiny come with the project
run serve: export WAN_LORA_DIR ?= $(if $(CHECKPOINT),,$(CURDIR)/models/loras)

run: setup  ## one video: make run PROMPT="a blue star moves up on a white background" [IMAGE=photo.png] [OUT=star.mp4]
	$(BIN)/python -m service.run $(SERVED) --prompt "$(PROMPT)" $(if $(IMAGE),--image "$(IMAGE)") \
	  $(if $(LAST_IMAGE),--last-image "$(LAST_IMAGE)") $(if $(VIDEO),--video "$(VIDEO)") $(if $(LORA),--lora "$(LORA)") $(if $(OUT),--out "$(OUT)") $(OPTIONS)

serve: setup  ## Triton, the worker and the web service, until Ctrl-C
	$(BIN)/python -m service.serve $(SERVED)

test: .venv/test.stamp  ## the whole suite
	$(BIN)/python -m pytest

coverage: .venv/test.stamp  ## the same, and which lines no test ran
	$(BIN)/python -m pytest --cov

bench: .venv/test.stamp  ## ours against diffusers on this machine
	$(BIN)/python -m loadtest bench

tiny: .venv/test.stamp  ## train models/tiny again (hours on two cores)
	$(BIN)/python -m tiny.train_text
	$(BIN)/python -m tiny.train_vae
	$(BIN)/python -m tiny.train_dit
	$(BIN)/python -m tiny.assemble
	$(BIN)/python -m tiny.train_wordings
	$(BIN)/python -m tiny.train_i2v
	$(BIN)/python -m tiny.assemble tiny-i2v
	$(BIN)/python -m tiny.train_trail
	$(BIN)/python -m tiny.train_four_steps
	$(BIN)/python -m tiny.train_four_steps

lint: .venv/test.stamp  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## what was built, not the environment
	rm -rf build
