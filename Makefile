# What a fresh Debian or Ubuntu machine with Rust needs is installed by the first target of each command.

PACKAGES := ca-certificates conntrack curl gcc iproute2 iptables kmod libc6-dev nftables procps
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
TRIPLE := $(shell rustc -vV | sed -n 's/^host: //p')
# Tests make network namespaces, so they run as root; cargo itself does not have to.
RUNNER := CARGO_TARGET_$(shell echo $(TRIPLE) | tr a-z- A-Z_)_RUNNER="$(if $(SUDO),sudo -E,env)"

.PHONY: all demo test check deps bench scale soak conformance e2e

all: demo

## demo: the main job, in network namespaces of its own
demo: deps
	@cargo build --quiet --release
	@$(SUDO) target/release/kube-proxy demo

## test: all tests
test: deps
	cargo build
	$(RUNNER) cargo test --workspace

## check: formatting, lints, documentation, licences
check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items
	cargo deny --offline check bans licenses sources

## conformance: the recorded cases alone; CASES=regex FLAVOUR=nft|legacy CASES_DIR=folder
conformance: deps
	$(RUNNER) cargo test --test conformance

## bench: rendering and planning; see benches/README.md
bench:
	cargo bench --bench rules

## scale: the release binary against an API server with up to 10,000 Services; see benches/README.md
scale: deps
	cargo build --release
	$(RUNNER) cargo bench --bench scale

## soak: 100 changes a second for a minute at 10,000 Services, asserting on memory and metrics; see benches/README.md
soak: deps
	cargo build --release
	$(RUNNER) cargo bench --bench scale -- soak

## e2e: how to try it on a cluster
e2e:
	@sed -n '/^## On a cluster/,/^## /p' README.md

deps:
	@missing=""; for package in $(PACKAGES); do \
	  dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q ' installed' || missing="$$missing $$package"; done; \
	if [ -n "$$missing" ]; then \
	  echo "installing$$missing"; \
	  $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null; fi
