# Everything a developer or CI runs. `make` lists the targets.
.DEFAULT_GOAL := help
.PHONY: help build demo test check broker clean rust
# Where rustup puts cargo, for shells that do not have it yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

build: rust ## build the release binary
	cargo build --release --locked

demo: rust ## run six commands through a real Kafka broker and print their outcomes
	@fixtures/demo/run.sh

test: rust broker ## run all tests, with the real binary, real children and real brokers
	cargo test --locked
	AIRKAFKA_TEST_KAFKA_VERSION=4.4.0 cargo test --locked --test groups --test secure --test produce
	AIRKAFKA_TEST_KAFKA_VERSION=4.4.0 cargo test --locked --test faults -- leaders stays_away

check: rust ## formatting, lints, documentation and scripts, as CI checks them
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps --document-private-items --locked
	bash -n fixtures/broker/kafka.sh
	bash -n fixtures/batches/capture.sh
	bash -n fixtures/demo/run.sh
	sh -n fixtures/demo/airflow
	bash -n .ci/run
	@if command -v shellcheck >/dev/null; then \
	  shellcheck fixtures/broker/kafka.sh fixtures/batches/capture.sh fixtures/demo/run.sh fixtures/demo/airflow .ci/run; fi

broker: ## get the Kafka brokers that the tests use, and the tools of the newest
	@for version in 3.9.2 4.4.0 4.3.1 0.11.0.3; do fixtures/broker/kafka.sh jars $$version || exit; done

clean: ## remove what was built; the broker's jars stay in their cache
	cargo clean

rust:
	@command -v cargo >/dev/null || { echo "Rust is missing: install Rust 1.88 or newer with rustup (https://rustup.rs)" >&2; exit 3; }
	@command -v cc >/dev/null || { echo "a C linker is missing: install gcc (on Debian: apt-get install gcc libc6-dev)" >&2; exit 3; }
