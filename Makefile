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
VRAM ?=
BIN := .venv/bin
SERVED = --target $(TARGET) $(if $(VRAM),--vram $(VRAM)) $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)")
IMAGES := gateway server server-cpu
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

.PHONY: setup run serve test test-all images-check coverage bench tiny lint locks release clean

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

test: .venv/test.stamp  ## the suite without what takes long
	$(BIN)/python -m pytest -m "not slow"

test-all: .venv/test.stamp  ## the whole suite, an hour on two cores
	$(BIN)/python -m pytest

images-check: .venv/test.stamp  ## assemble every image file and start it as its manifest says: as root, ten minutes and more
	WAN_IMAGES_CHECK=1 $(BIN)/python -m pytest -v tests/k8s/test_started_images.py

coverage: .venv/test.stamp  ## the whole suite, and which lines no test ran
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

locks: .venv/test.stamp  ## what the images install, every package with its hashes, from k8s/images/requirements-*.txt
	for image in $(IMAGES); do $(BIN)/uv pip compile --quiet --upgrade --generate-hashes --no-header --no-annotate --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_36 k8s/images/requirements-$$image.txt -o k8s/images/$$image.lock || exit 1; done

release: .venv/test.stamp  ## build/release: a bill of materials for each image, the manifests, and their SHA-256
	rm -rf build/release && mkdir -p build/release
	for image in $(IMAGES); do \
	  { cat k8s/images/$$image.lock; sed -n 's/^RUN pip install \(torch==\)/\1/p' k8s/images/$$image.Dockerfile; } \
	  | $(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON -o build/release/$$image.cdx.json - || exit 1; done
	for overlay in one-gpu eight-gpu spot pool-14b; do kubectl kustomize k8s/overlays/$$overlay > build/release/$$overlay.yaml || exit 1; done
	cd build/release && sha256sum -- * > SHA256SUMS

clean:  ## what was built, not the environment
	rm -rf build
