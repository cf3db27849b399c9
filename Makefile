# The commands everybody uses. Each works on a fresh machine that has make and cargo: what else it
# needs it installs (as root on Debian) or names.

CARGO ?= cargo

# Where the programs stand when the whole workspace is built in one go, which resolves every
# dependency's features once: tests and demo then need no second build of them.
BIN_DIR = $(abspath $(or $(CARGO_TARGET_DIR),target))/debug
PROGRAMS = -p lsp-node -p wallet-cli -p exit-runner -p watchtower -p outside-node -p superscalar-regtest
export SUPERSCALAR_BIN_DIR = $(BIN_DIR)

.PHONY: help demo test soak mutants bindings lint bench setup tools bitcoind

help:
	@echo "make demo    a factory, payments and an exit on a real regtest chain"
	@echo "make test    everything, on real bitcoinds"
	@echo "make bindings  write the Kotlin and Python sources anew and test them"
	@echo "make soak    the simulation, seed after seed (MINUTES=10 FIRST=0)"
	@echo "make mutants  plant deliberate faults and show what catches each"
	@echo "make lint    rustfmt, clippy, docs; warnings are errors"
	@echo "make bench   the figures of the README"
	@echo "make setup   install system packages (as root on Debian), or say which are missing"

demo: bitcoind
	$(CARGO) build --locked $(PROGRAMS) -p superscalar-tests --bins
	$(BIN_DIR)/demo

# Tests of nodes wait for others most of the time: three for each processor keep it busy.
THREADS = $(shell expr 3 '*' $$(getconf _NPROCESSORS_ONLN))

# The first line also compares the committed sources of the bindings with the library.
test: export RUST_TEST_THREADS ?= $(THREADS)
test: bitcoind
	@scripts/test-bindings needs
	$(CARGO) test --workspace --locked
	scripts/test-bindings

bindings: bitcoind
	$(CARGO) build --locked $(PROGRAMS) -p superscalar-tests -p superscalar-ffi -p superscalar-bindgen
	$(BIN_DIR)/superscalar-bindgen write
	scripts/test-bindings

# FIRST is the first seed: another one for every night. A failing seed prints how to see it again.
soak: MINUTES ?= 10
soak: FIRST ?= 0
soak: tools
	$(CARGO) run --locked -p superscalar-simulation -- --minutes $(MINUTES) --first $(FIRST)

# Each deliberate fault of xtask/mutations.toml must be caught by a test. One of each room, in about
# an hour: `cargo xtask mutate --one-per-room`.
mutants: bitcoind
	$(CARGO) xtask mutate

lint: tools
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --workspace --no-deps --locked

bench: bitcoind
	$(CARGO) xtask bench

setup:
	scripts/setup

# Incomplete packages need not matter here: what cannot do without one says so.
tools:
	-@scripts/setup

bitcoind: tools
	@$(CARGO) xtask bitcoind
