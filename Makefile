# `make demo` and `make test` are all that a person needs: each makes its own environment first, from locks with hashes.
# Needed beforehand: make, Python 3.11 or newer with venv, Java 17 or newer, Maven. A C compiler
# makes the compiled codec, where there is one. Tests of the alerts, the dashboard and the chart need Prometheus (Debian,
# Ubuntu: apt-get install prometheus) and Helm (go install helm.sh/helm/v3/cmd/helm@latest); without, they are skipped and say so.
#
#   .venv        what a user installs without extras; `make test` adds pytest. Neither torch nor polars is ever in it
#   .venv-dev    everything: all extras, tests, checks
#   .venv-gpu    the daemon with ONNX Runtime for NVIDIA GPUs, and tests
#   .venv-docs   what builds the site of the documents
#   .venv-tools  what makes the locks, the audit and the bill of materials

PYTHON ?= python3
EVENTS ?=
SCENARIO ?=
BOOTSTRAP ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
UPGRADE ?=
CODEC = lstmstream/_codec.abi3.so

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_INPUT = 1
# Without bytecode each program that a test starts compiles all modules again: half of the CPU time of its start.
unexport PYTHONDONTWRITEBYTECODE
LOCKED = -m pip install --quiet --require-hashes

.DELETE_ON_ERROR:
.PHONY: help demo test coverage test-faults test-gpu check docs format bench bench-speed bench-stages bench-gpu bench-parity bench-restart bench-state bench-churn bench-verify bench-training bench-cells bench-accuracy codec fuzz-codec lock image-check manifests audit sbom clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 22

demo: .venv/.package ## everything on this machine, from nothing to a scored stream; EVENTS=20000 stops by itself; SCENARIO=sensors or forecast
	.venv/bin/lstmstream demo $(if $(SCENARIO),--scenario $(SCENARIO)) $(if $(EVENTS),--events $(EVENTS)) $(if $(BOOTSTRAP),--bootstrap-servers $(BOOTSTRAP))

# Three at a time, since tests with a broker mostly wait. Each worker has a broker of its own. The second part runs in any case.
test: .venv/.test .venv-dev/.package ## all tests, each once; those that need neither torch nor polars run without them
	@command -v prometheus >/dev/null || echo "no Prometheus: tests of alerts and dashboard are skipped (Debian, Ubuntu: apt-get install prometheus)"
	@failed=0; set -x; \
	.venv/bin/python -m pytest --numprocesses 3 --dist worksteal -m "not torch and not tables" $(PYTEST_ARGS) || failed=1; \
	.venv-dev/bin/python -m pytest --numprocesses 2 --dist loadfile -m "torch or tables" $(PYTEST_ARGS) || failed=1; \
	exit $$failed

coverage: .venv/.test .venv-dev/.package ## the same one after the other, and which lines of each file they run: about 90 minutes
	rm -rf .coverage
	.venv/bin/python -m coverage run -m pytest -m "not torch and not tables" $(PYTEST_ARGS)
	.venv-dev/bin/python -m coverage run -m pytest -m "torch or tables" $(PYTEST_ARGS)
	@.venv-dev/bin/python -m coverage combine --quiet
	@.venv-dev/bin/python -m coverage report --sort=cover # without the daemons that tests start as processes

# kafka-python leaves sockets open whose broker was killed; some are collected after the last test.
test-faults: .venv-dev/.package ## every fault on real brokers, both clients, about half an hour; `python -m tests.faults.chaos --help` for longer runs
	LSTMSTREAM_TEST_FAULTS=1 .venv-dev/bin/python -m pytest --numprocesses 2 --dist worksteal -W "ignore:unclosed:ResourceWarning" tests/faults $(PYTEST_ARGS)

test-gpu: .venv-gpu/.package ## what needs an NVIDIA GPU: scores and states as on the CPU, and the daemon; fails where there is none
	LSTMSTREAM_TEST_GPU=1 .venv-gpu/bin/python -m pytest tests/gpu $(PYTEST_ARGS)

check: .venv-dev/.package docs ## style, types, imports, dependencies, documents
	.venv-dev/bin/ruff check .
	.venv-dev/bin/ruff format --check .
	.venv-dev/bin/mypy
	.venv-dev/bin/mypy $$(find tests benchmarks -name '*.py' ! -name 'test_*')
	.venv-dev/bin/lint-imports
	.venv-dev/bin/deptry .

docs: .venv-docs/.locked ## the site of the documents, in dist/site; fails at a dead link, a missing anchor, a page that the navigation lacks
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

format: .venv-dev/.package ## rewrite the sources in the one style
	.venv-dev/bin/ruff check --fix .
	.venv-dev/bin/ruff format .

bench: .venv-dev/.package ## the daemon beside Kafka Streams, Quix Streams and plain loops; BENCH_ARGS="--quick --latency 2000"
	.venv-dev/bin/python -m benchmarks.throughput $(BENCH_ARGS)

bench-speed: .venv-dev/.package ## one daemon: throughput, latency, memory, time per stage, restarts
	.venv-dev/bin/python -m benchmarks.speed

bench-stages: .venv-dev/.package ## CPU time per event of decoding, stepping and encoding, without a broker
	.venv-dev/bin/python -m benchmarks.stages
	.venv-dev/bin/python -m benchmarks.codec

bench-accuracy: .venv-dev/.package ## the detector builtin:anomaly on public benchmarks; ACCURACY_ARGS="--data FOLDER"
	.venv-dev/bin/python -m benchmarks.accuracy $(ACCURACY_ARGS)

bench-gpu: .venv-gpu/.package ## events a second with states on the host and on a GPU, and whether the scores agree
	.venv-gpu/bin/python -m benchmarks.gpu

bench-parity: .venv-dev/.package ## all of ../shared/fraud through Kafka, against torch and `score`
	.venv-dev/bin/python -m benchmarks.parity

bench-restart: .venv-dev/.package ## stop and restart with 1,000,000 keys: time and memory
	.venv-dev/bin/python -m benchmarks.restart

bench-state: .venv-dev/.package ## up to 10,000,000 keys, without a broker: memory, pauses, look-ups, time per event; needs 8 GB
	.venv-dev/bin/python -m benchmarks.state_scale

bench-churn: .venv-dev/.package ## a day of keys that do not come back, without a broker: memory and state topic over time
	.venv-dev/bin/python -m benchmarks.churn $(CHURN_ARGS)

bench-verify: .venv-dev/.package ## `lstmstream verify` over 200,000 events on a real broker
	.venv-dev/bin/python -m benchmarks.verify

bench-training: .venv-dev/.package ## `lstmstream train`: speed, memory, and the trainer beside plain PyTorch loops
	.venv-dev/bin/python -m benchmarks.training
	.venv-dev/bin/python -m benchmarks.training_loops

bench-cells: .venv-dev/.package ## the cells of `lstmstream train`: accuracy, cost of a step, state; CELLS_ARGS="--data FOLDER"
	.venv-dev/bin/python -m benchmarks.cells $(CELLS_ARGS)

codec: $(CODEC) ## the compiled codec, where there is a C compiler; all works without it

fuzz-codec: .venv-dev/.package ## hostile events through a codec that checks its memory, for SECONDS=60
	mkdir -p .cache/sanitized
	.venv-dev/bin/python native/build.py --required --strict --sanitize --out .cache/sanitized
	LD_PRELOAD=$$($(or $(CC),cc) -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
	    .venv-dev/bin/python -m tests.serve.codec_oracle --seconds $(or $(SECONDS),60) --library .cache/sanitized/_codec.abi3.so

lock: .venv-tools/.locked ## rewrite requirements/*.txt; UPGRADE=--upgrade takes the newest versions
	UV=.venv-tools/bin/uv UPGRADE=$(UPGRADE) requirements/lock.sh

image-check: .venv/.test ## build what is in the image without a container, from nothing, and start it; IMAGE=cuda or train
	.venv/bin/python -m tests.dockerfile $(IMAGE)

manifests: ## rewrite deploy/kubernetes from the Helm chart; needs helm
	deploy/kubernetes/make.sh

audit: .venv-tools/.locked ## known vulnerabilities of what the locks install
	for lock in base cuda train; do .venv-tools/bin/pip-audit --strict --disable-pip --require-hashes -r requirements/$$lock.txt || exit 1; done

sbom: .venv-tools/.locked ## dist/sbom.json, the bill of materials of the base install (CycloneDX)
	mkdir -p dist
	.venv-tools/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible -o dist/sbom.json requirements/base.txt

clean: ## remove the environments and all that tools left behind; the development broker's data stay
	rm -rf .venv .venv-dev .venv-gpu .venv-docs .venv-tools .cache/throughput .cache/sanitized $(CODEC) dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- environments: a changed lock makes its environment anew, so that nothing of the old one lingers -------------------

define new_environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@echo "Making $(@D), with downloads: a minute or more ..."
	@$(PYTHON) -m venv --clear $(@D) || \
	    { echo "Python's venv module is needed (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
endef

.venv/.locked: requirements/base.txt requirements/build.txt
	$(new_environment)
	.venv/bin/python $(LOCKED) -r requirements/base.txt
	.venv/bin/python $(LOCKED) -r requirements/build.txt
	@touch $@

.venv/.test: requirements/test.txt .venv/.package
	.venv/bin/python $(LOCKED) -r requirements/test.txt
	@touch $@

.venv-dev/.locked: requirements/train.txt requirements/build.txt requirements/test.txt requirements/check.txt \
                   requirements/foreign.txt
	$(new_environment)
	.venv-dev/bin/python $(LOCKED) -r requirements/train.txt
	.venv-dev/bin/python $(LOCKED) -r requirements/build.txt
	.venv-dev/bin/python $(LOCKED) -r requirements/test.txt
	.venv-dev/bin/python $(LOCKED) -r requirements/check.txt
	.venv-dev/bin/python $(LOCKED) -r requirements/foreign.txt
	@touch $@

.venv-gpu/.locked: requirements/cuda.txt requirements/build.txt requirements/test.txt
	$(new_environment)
	.venv-gpu/bin/python $(LOCKED) -r requirements/cuda.txt
	.venv-gpu/bin/python $(LOCKED) -r requirements/build.txt
	.venv-gpu/bin/python $(LOCKED) -r requirements/test.txt
	@touch $@

.venv-docs/.locked: requirements/docs.txt
	$(new_environment)
	.venv-docs/bin/python $(LOCKED) -r requirements/docs.txt
	@touch $@

.venv-tools/.locked: requirements/tools.txt
	$(new_environment)
	.venv-tools/bin/python $(LOCKED) -r requirements/tools.txt
	@touch $@

# The package in it is this folder, with the compiled codec where there is a C compiler: one file for all Pythons.
%/.package: %/.locked pyproject.toml lstmstream/__init__.py | $(CODEC)
	$*/bin/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@

$(CODEC): $(wildcard native/*)
	@$(PYTHON) native/build.py

.PRECIOUS: .venv/.locked .venv-dev/.locked .venv-gpu/.locked
