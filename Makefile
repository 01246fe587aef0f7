# What a fresh Debian or Ubuntu machine with Rust needs is installed by the first target of each command.

PACKAGES := ca-certificates conntrack curl gcc ipset iproute2 iptables ipvsadm kmod libc6-dev libssl-dev nftables pkg-config procps strace
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
TRIPLE := $(shell rustc -vV | sed -n 's/^host: //p')
# Tests make network namespaces, so they run as root; cargo itself does not have to.
RUNNER := CARGO_TARGET_$(shell echo $(TRIPLE) | tr a-z- A-Z_)_RUNNER="$(if $(SUDO),sudo -E,env)"

.PHONY: all demo faults test test-ipvs check deps bench bench-ipvs scale soak conformance conformance-ipvs e2e

all: demo

## demo: the main job, in network namespaces of its own
demo: deps
	@cargo build --quiet --release
	@$(SUDO) target/release/kube-proxy demo

## test: all tests
test: deps
	cargo build
	$(RUNNER) cargo test --workspace
	$(MAKE) --no-print-directory test-ipvs

## test-ipvs: the tests that `cargo test` ignores for want of IPVS; golden/tools/with-ipvs finds a kernel; ARGS="filter …" for some of them
test-ipvs: deps
	cargo build
	golden/tools/test-ipvs proxier suite --ignored $(ARGS)
	golden/tools/test-ipvs kube-proxy e2e --ignored $(or $(ARGS),ipvs_)
	@$(MAKE) --no-print-directory conformance-ipvs

## conformance-ipvs: the recorded cases of IPVS mode; all in one flavour of iptables, which matters little here, some in the other
conformance-ipvs: deps
	MODE=ipvs FLAVOUR=nft JOBS=4 golden/tools/test-ipvs kube-proxy conformance
	MODE=ipvs FLAVOUR=legacy JOBS=4 CASES='^(003|210|220|600|800)' golden/tools/test-ipvs kube-proxy conformance

## faults: every fault of golden/faults/README.md against the release binary, under traffic; prints its table. FAULTS=part KILLS=n BESIDE=binary
faults: deps
	cargo build --release
	KUBE_PROXY=$(CURDIR)/target/release/kube-proxy FAULTS=$(or $(FAULTS),all) KILLS=$(or $(KILLS),50) $(RUNNER) cargo test --test faults

## check: formatting, lints, documentation, licences
check:
	.ci/run fmt clippy docs deny

## conformance: the recorded cases alone; CASES=regex FLAVOUR=nft|legacy CASES_DIR=folder
conformance: deps
	$(RUNNER) cargo test --test conformance

## bench: rendering and planning; see benches/README.md
bench:
	cargo bench --bench rules

## bench-ipvs: the kernel's IPVS and ipset over netlink, and IPVS mode, with up to 10,000 services; see benches/README.md
bench-ipvs: deps
	@set -e; for bench in ipvs ipvs_mode; do \
	  golden/tools/with-ipvs $$(cargo bench --package proxier --bench $$bench --no-run --message-format=json-render-diagnostics | golden/tools/executable) --bench; done

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
	@sed -n '/^### On a cluster/,/^## /p' README.md

deps:
	@missing=""; for package in $(PACKAGES); do \
	  dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q ' installed' || missing="$$missing $$package"; done; \
	if [ -n "$$missing" ]; then \
	  echo "installing$$missing"; \
	  $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null; fi
