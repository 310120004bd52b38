# Everything a developer or CI runs. `make` lists the targets.
.DEFAULT_GOAL := help
.PHONY: help build install dist deb demo test test-airflow test-packages bench-airflow check broker clean rust
# Where rustup puts cargo, for shells that do not have it yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

build: rust ## build the release binary
	cargo build --release --locked

prefix ?= /usr/local
PROGRAM ?= $(or $(CARGO_TARGET_DIR),target)/release/airkafka-worker
# Builds nothing: it is mostly root who says this.
install: ## install what `make build` built, with man page, completions and units, below $(DESTDIR)$(prefix)
	@fixtures/packaging/install.sh "$(PROGRAM)" "$(DESTDIR)" "$(prefix)"

dist: rust ## build a static program and pack it, with all that goes with it, into a tarball in dist/
	fixtures/packaging/pack.sh dist dist

deb: rust ## the same as a Debian package
	fixtures/packaging/pack.sh deb dist

demo: rust ## run six commands through a real Kafka broker and print their outcomes
	@fixtures/demo/run.sh

test: rust broker ## run all tests, with the real binary, real children and real brokers
	cargo test --locked
	AIRKAFKA_TEST_KAFKA_VERSION=4.2.1 cargo test --locked --test share
	AIRKAFKA_TEST_KAFKA_VERSION=4.4.0 cargo test --locked --test groups --test secure --test produce --test hand
	AIRKAFKA_TEST_KAFKA_VERSION=4.4.0 cargo test --locked --test faults -- leaders stays_away

test-airflow: build broker ## run the executor's tests with real Airflow 2.11.2 and 3.3.2
	executor/tests/venv.sh need-postgres
	@for version in 2.11.2 3.3.2; do \
	  venv=$$(executor/tests/venv.sh airflow-$$version) || exit; \
	  echo "Airflow $$version:"; \
	  PYTHONPATH=executor "$$venv/bin/python" -m pytest -q -p no:cacheprovider executor/tests || exit; done

test-packages: rust ## make the packages of a debug build and check them on bare systems, as root on Debian or Ubuntu
	AIRKAFKA_PACK_PROFILE=dev fixtures/packaging/check.sh

bench-airflow: build broker ## what a task of Airflow costs: this worker, CeleryExecutor with Redis, LocalExecutor
	executor/tests/venv.sh need-postgres
	executor/tests/venv.sh need-redis
	@for version in 2.11.2 3.3.2; do \
	  venv=$$(executor/tests/venv.sh bench-$$version) || exit; \
	  PYTHONPATH=executor "$$venv/bin/python" executor/tests/bench_airflow.py || exit; done

check: rust ## formatting, lints, documentation and scripts, as CI checks them
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps --document-private-items --locked
	bash -n fixtures/broker/kafka.sh
	bash -n fixtures/batches/capture.sh
	bash -n fixtures/demo/run.sh
	sh -n fixtures/demo/airflow
	bash -n executor/tests/venv.sh
	bash -n fixtures/packaging/install.sh
	bash -n fixtures/packaging/pack.sh
	bash -n fixtures/packaging/check.sh
	for script in postinst prerm postrm; do sh -n fixtures/packaging/deb/$$script || exit; done
	bash -n .ci/run
	@if command -v shellcheck >/dev/null; then \
	  shellcheck fixtures/broker/kafka.sh fixtures/batches/capture.sh fixtures/demo/run.sh fixtures/demo/airflow \
	    fixtures/packaging/*.sh fixtures/packaging/deb/p* executor/tests/venv.sh .ci/run; fi
	ruff=$$(executor/tests/venv.sh tools)/bin/ruff && \
	  "$$ruff" check --no-cache --config executor/pyproject.toml executor fixtures/preload && \
	  "$$ruff" format --check --no-cache --config executor/pyproject.toml executor fixtures/preload

broker: ## get the Kafka brokers that the tests use, and the tools of the newest
	@for version in 3.9.2 4.2.1 4.4.0 4.3.1 0.11.0.3; do fixtures/broker/kafka.sh jars $$version || exit; done

clean: ## remove what was built; what was fetched stays in its cache
	cargo clean

rust:
	@command -v cargo >/dev/null || { echo "Rust is missing: install Rust 1.88 or newer with rustup (https://rustup.rs)" >&2; exit 3; }
	@command -v cc >/dev/null || { echo "a C linker is missing: install gcc (on Debian: apt-get install gcc libc6-dev)" >&2; exit 3; }
