# The words of this project: `make help` lists them. Everything is installed in .venv and nowhere else.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: install serve up bundles kernels wheel test test-all tests compose-test lint typecheck bench soak checkpoints clean help

PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin
INSTALLED := .venv/.installed

install: $(INSTALLED) ## Make .venv with everything in it (the other words do it by themselves)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) must be Python 3.11 or newer. If a newer one is installed: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; }
	@# pip comes last into a new environment, so without it one was left half made.
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[export,recipes,dev]'
	@touch $@

serve: bundles ## Export the committed checkpoints and serve them on 127.0.0.1, PORT=8000
	@exec $(BIN)/attnserve serve repository --host 127.0.0.1 --port $(PORT)

# The passwords are made once, readable by the containers' users; the folder is in nobody's image or commit.
up: ## Start the gateway, services, a worker and what they need in containers (docs/deploy.md)
	@mkdir -p secrets
	@for name in postgres-password grafana-password; do \
	  test -s "secrets/$$name" || (umask 022; head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' > "secrets/$$name"); \
	done
	@docker compose up -d --build --wait

# A checkpoint newer than its newest bundle becomes the next version: published bundles never change.
bundles: install ## Export each committed checkpoint to repository/, unless its bundle is up to date
	@for checkpoint in checkpoints/*/; do \
	  bundles=repository/$$(basename "$$checkpoint"); \
	  newest=$$(ls "$$bundles" 2>/dev/null | grep -E '^[1-9][0-9]*$$' | sort -n | tail -n 1 || true); \
	  manifest=$$bundles/$$newest/manifest.json; \
	  if [ ! -f "$$manifest" ] || [ -n "$$(find "$$checkpoint" -type f -newer "$$manifest")" ]; then \
	    $(BIN)/attnserve export "$$checkpoint" "$$bundles/$$((newest + 1))"; \
	  fi; \
	done

kernels: ## Build the native kernels, which services of this checkout then use (docs/kernels.md)
	@kernels/headers
	@cmake -S kernels -B kernels/build $(ARGS)
	@cmake --build kernels/build
	@if command -v nvcc >/dev/null; then \
	  cmake -S kernels/cuda -B kernels/build/cuda && cmake --build kernels/build/cuda; \
	fi

# setuptools calls a wheel without extension modules one for any platform, unless it is told.
wheel: kernels install ## Build a wheel with the native kernels in it, for this platform alone
	@cp kernels/build/libattnserve_kernels.so attnserve/
	@trap 'rm attnserve/libattnserve_kernels.so' EXIT; $(BIN)/python -m build --no-isolation --wheel \
	  -C=--build-option=--plat-name=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_platform())')

# Not `python -m pytest`: that puts this folder on sys.path, and `import models` would work without being installed.
test: lint typecheck ## Lint, types and the fast tests
	@$(BIN)/pytest -m 'not slow'

test-all: install ## Everything, with the seconds of each part
	@for part in lint typecheck tests compose-test; do SECONDS=0; $(MAKE) $$part ARGS=--if-possible; echo "== $$part: $$SECONDS s"; done

tests: install
	@$(BIN)/pytest -m 'not compose' --durations=15

compose-test: install ## The compose file with a real Docker engine; needs root where none runs
	@tests/compose/run $(ARGS)

lint: install ## Style, formatting, spelling, the Dockerfile
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/typos
	@$(BIN)/clang-format --dry-run -Werror kernels/*.cc kernels/*.h kernels/cuda/*.cc kernels/cuda/*.cu kernels/cuda/*.h \
	  tests/kernels/*.cc tests/kernels/cuda/*.cc tests/kernels/cuda/*.h
	@if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint Dockerfile; else echo "hadolint skipped: no build of it for this system"; fi

# mypy does not follow the import hook of an editable install, so it reads what users get: an installed copy.
# build/lib goes too: setuptools would pack modules that have left the tree.
typecheck: install ## mypy --strict
	@rm -rf build/lib build/types
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --target build/types .
	@cd build/types; for sources in '-p attnserve' ../../examples; do \
	  ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache $$sources \
	    | sed -E 's#^attnserve/(models|export|service|worker)/#\1/#; s#^(\.\./)+##'; \
	done

bench: install ## Measure the engine against bare ONNX Runtime: ARGS="..."
	@$(BIN)/python -m benchmarks.engine $(ARGS)

soak: bundles ## What breaks services after hours, each scenario with its law (docs/soak.md): ARGS="--scale 0.01"
	@$(BIN)/python -m soak $(ARGS)

checkpoints: install ## Train the committed checkpoints again
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash checkpoints/train.sh

clean: ## Remove caches and build outputs; .venv and repository/ stay
	rm -rf build kernels/build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile
