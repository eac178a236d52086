# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# ARGS and the like are for the recipes here, not for the make of libbpf.
MAKEOVERRIDES :=

# What lsm-nice gets from `make run`: make run ARGS="--pid 4242"
ARGS ?=
# Where `make test-kernels` runs the live tests.
KERNELS ?= 5.10 6.1 6.12 6.18 newest
# Percent of the full counts of the heavy tests.
HEAVY ?= 10

TARGET := $(or $(CARGO_TARGET_DIR),target)
# Looked up when it is used: there may be no Rust yet, or not for root, who installs.
BIN = $(TARGET)/$(or $(shell rustc --print host-tuple 2>/dev/null),*)/release/lsm-nice
LIVE := $(TARGET)/live
# What `make install` puts where. share/ is laid out as it is installed.
PREFIX ?= /usr/local
UNIT := lib/systemd/system/lsm-nice@.service
SHARE := $(wildcard share/*/*/*)
DOCS := README.md CHANGELOG.md docs/internals.md $(wildcard LICENSES/*)
CARGO_DEB := $(or $(shell command -v cargo-deb),$(TARGET)/tools/bin/cargo-deb)
C_FILES = $(wildcard bpf/*.c bpf/*.h include/*.h benches/*.c benches/peers/*.c)

# The recipes share the build and the installation of packages.
.NOTPARALLEL:
.PHONY: help setup build run lint live test test-kernels test-heavy bench bench-check install uninstall deb test-deb docs fmt clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 20

setup: ## install what is missing (apt-get; sudo where not root)
	@tests/setup

build: ## build the static binary
	@tests/setup build
	cargo build --release

run: build ## run the main job, here or in a VM; ARGS="--pid 4242" are lsm-nice's
	@bin=$$(realpath $(BIN)); \
	sudo=(); [ "$$(id -u)" -eq 0 ] || sudo=(sudo); \
	if answer=$$("$${sudo[@]}" "$$bin" check 2>&1); then \
		echo "A guard holds on this machine."; \
		exec "$${sudo[@]}" $(if $(ARGS),"$$bin" $(ARGS),env "PATH=$${bin%/*}:$$PATH" tests/demo); \
	fi; \
	reason=$$(sed -n 's/^[a-z-]* *FAILED *//p' <<<"$$answer" | head -n 1); \
	echo "A guard cannot hold on this machine ($${reason:-$$answer}): booting a throw-away VM."; \
	tests/setup vm; \
	exec tests/vm --bin "$$bin" --bin tests/demo --env LSM_NICE_VM=1 -- demo $(ARGS)

# The tests unwind, and the binary does not: as if it did, what it depends on is checked once.
lint:
	@tests/setup
	cargo fmt --check
	clang-format --dry-run -Werror $(C_FILES)
	CARGO_PROFILE_RELEASE_PANIC=unwind cargo clippy --release --all-targets -- -D warnings
	CARGO_PROFILE_RELEASE_PANIC=unwind cargo clippy --release --test live -- -D warnings

# What runs in the VM, and the program for it.
live:
	@tests/setup build
	@exe=$$(cargo test --release --test live --no-run \
		--message-format=json-render-diagnostics | \
		sed -n 's/.*"name":"live".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1); \
	[ -n "$$exe" ] || { echo "make live: cargo named no executable of the live tests" >&2; exit 1; }; \
	cmp -s "$$exe" $(LIVE) || cp "$$exe" $(LIVE)

test: lint live ## format, clippy, unit and command-line tests, live tests in a VM
	cargo test --release
	LIVE_HEAVY=$(HEAVY) tests/kernels $(BIN) $(LIVE) 6.12

test-kernels: setup live ## the live tests on every kernel of KERNELS, and without bpf in lsm=
	@LIVE_HEAVY=$(HEAVY) tests/kernels $(BIN) $(LIVE) $(KERNELS) 6.12:refusals 5.10:refusals

test-heavy: setup live ## the live tests on 6.12 with the full counts
	@LIVE_HEAVY=100 SHARDS=1 TIMEOUT=7200 tests/kernels $(BIN) $(LIVE) 6.12

# What `make bench` measures with, and its results, which stand in docs/.
BENCH = $$(cargo bench --bench bench --no-run --message-format=json-render-diagnostics | \
	sed -n 's/.*"name":"bench".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)

bench: setup build ## measure what lsm-nice costs, on 6.12 and the newest kernel; writes docs/bench
	benches/run $(BIN) "$(BENCH)" docs/bench 6.12 newest
	"$(BENCH)" draw docs/bench

bench-check: setup live ## compare what calls cost on 6.12 with docs/bench: 5 % worse fails
	benches/run quick $(BIN) "$(BENCH)" $(TARGET)/bench/now 6.12
	"$(BENCH)" compare docs/bench/6.12.json $(TARGET)/bench/now/6.12.json

install: ## install what `make build` has built; PREFIX=/usr/local, DESTDIR=
	@[ -f $(BIN) ] || { echo "make install: there is no $(BIN): make build" >&2; exit 1; }
	@to="$(DESTDIR)$(PREFIX)"; \
	install -D -m 755 $(BIN) "$$to/sbin/lsm-nice"; \
	sed 's,/usr/sbin/,$(PREFIX)/sbin/,' systemd/lsm-nice@.service | \
		install -D -m 644 /dev/stdin "$$to/$(UNIT)"; \
	for file in $(SHARE); do install -D -m 644 "$$file" "$$to/$$file"; done; \
	for file in $(DOCS); do install -D -m 644 "$$file" "$$to/share/doc/lsm-nice/$$file"; done

uninstall: ## remove what `make install` has installed, with the same PREFIX and DESTDIR
	@cd "$(DESTDIR)$(PREFIX)"; \
	rm -f sbin/lsm-nice $(UNIT) $(SHARE); \
	rm -rf share/doc/lsm-nice

deb: build ## build a Debian package, target/debian/lsm-nice_*.deb
	@command -v $(CARGO_DEB) >/dev/null || \
		env -u CARGO_TARGET_DIR cargo install cargo-deb --locked --root $(TARGET)/tools
	@rm -f $(TARGET)/debian/lsm-nice_*.deb
	@$(CARGO_DEB) deb --no-build --no-strip --target $$(rustc --print host-tuple) -o $(TARGET)/debian/

test-deb: deb ## install and remove the Debian package in a root of its own; as root
	@tests/setup deb
	@tests/deb $(TARGET)/debian/lsm-nice_*.deb

docs: ## write the man page and the completions anew, from the command line
	@tests/setup build
	LSM_NICE_WRITE_DOCS=1 cargo test --release --bin lsm-nice docs

fmt: ## format the Rust and C sources
	cargo fmt
	clang-format -i $(C_FILES)

clean: ## remove what was built (not the kernels in ~/.cache/lsm-nice)
	cargo clean
	rm -f $(LIVE)
	rm -rf $(TARGET)/live-logs
