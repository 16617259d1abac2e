# Balsa's workshop. `make` alone lists what there is.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS   += --no-print-directory

export GOFLAGS := -buildvcs=false
TOOLS   := $(CURDIR)/.tools
HELPERS := internal/helpers/bin
VERSION ?= $(shell cat VERSION)
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X github.com/balsa-run/balsa/internal/version.version=$(VERSION) -X github.com/balsa-run/balsa/internal/version.commit=$(COMMIT)

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install the Debian packages that building and testing need
	@tools/setup

.PHONY: build
build: setup $(HELPERS)/balsa-shim $(HELPERS)/balsa-runc ## Build bin/balsa, the helper programs inside
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -tags helpers -ldflags '$(LDFLAGS)' -o bin/balsa ./cmd/balsa

# The helper programs are embedded in the binary; go decides what is up to date.
.PHONY: $(HELPERS)/balsa-shim $(HELPERS)/balsa-runc
$(HELPERS)/balsa-shim:
	@mkdir -p $(HELPERS)
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $@ ./cmd/balsa-shim

$(HELPERS)/balsa-runc:
	@mkdir -p $(HELPERS)
	CGO_ENABLED=1 go build -trimpath -tags 'seccomp netgo osusergo' -ldflags '-s -w -linkmode external -extldflags "-static"' -o $@ ./cmd/balsa-runc

.PHONY: demo
demo: build ## Three servers, two agents, one app; a leader and an agent are killed (KEEP=1 leaves it up)
	@tools/demo/run

.PHONY: test
test: setup ## Everything that CI runs
	@tools/ci/all

.PHONY: test-fast
test-fast: ## The tests that need no root and no helper programs
	go test ./internal/... ./object/... ./store/... ./scheduler/... ./reconciler/... ./pki/... ./cluster/... ./apiserver/... ./client/...

# Properties that need no root, each with new cases.
CHECKS ?= 2000
.PHONY: explore
explore: ## Try every property with CHECKS new random cases (default 2000)
	@go list -f '{{.ImportPath}} {{.TestImports}} {{.XTestImports}}' ./... | grep -F pgregory.net/rapid | cut -d' ' -f1 | \
	  xargs -I{} go test -count=1 -timeout 30m {} -rapid.checks=$(CHECKS)

.PHONY: lint
lint: $(TOOLS)/golangci-lint $(TOOLS)/buf ## go vet, golangci-lint, buf lint
	go vet ./...
	$(TOOLS)/golangci-lint run ./...
	$(TOOLS)/buf lint

.PHONY: generate
generate: $(TOOLS)/buf $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-connect-go ## Generate gen/ from proto/
	PATH="$(TOOLS):$$PATH" $(TOOLS)/buf generate

.PHONY: check-generate
check-generate: generate ## Fail when gen/ is not what proto/ says
	@git diff --exit-code --stat -- gen || { echo "gen/ is out of date: run 'make generate' and commit it" >&2; exit 1; }
	@test -z "$$(git ls-files --others --exclude-standard gen)" || { echo "gen/ has files that are not committed" >&2; exit 1; }

# The oldest commit that today's program must work together with.
EARLIER := $(shell cat chaos/faults/testdata/earlier-commit)

.PHONY: check-breaking
check-breaking: $(TOOLS)/buf ## Fail when proto/ breaks what an earlier version relies on
	$(TOOLS)/buf breaking --against '.git#ref=$(EARLIER)'

.PHONY: .tools-ready
.tools-ready: $(TOOLS)/buf $(TOOLS)/golangci-lint $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-connect-go

.PHONY: bench
bench: build ## Measure and write docs/benchmarks.md
	@go run ./bench/report

.PHONY: bench-pods
bench-pods: build ## Measure pods beside containerd, crane and tar; write docs/benchmarks-pods.md
	@go run ./bench/report -suite pods

.PHONY: bench-network
bench-network: build ## Measure services, names and their changes beside kube-proxy's rules and CoreDNS; write docs/benchmarks-network.md
	@go run ./bench/report -suite network

.PHONY: bench-store
bench-store: build ## Compare the store with etcd and its log with raft-wal, in turns; write their part of docs/benchmarks.md (exit 1: below a floor)
	@go run ./bench/report -suite store

.PHONY: test-zero-drop
test-zero-drop: build ## Roll, drain, upgrade and kill under load; no request may fail (SHORT=1: two minutes)
	@tools/zerodrop/run

# How long its differential fuzz runs; 30m and more also holds the list of accepted
# differences to be in use.
FUZZ_FOR ?= 60s
# 0: another one each time.
FUZZ_SEED ?= 0

.PHONY: test-etcd
test-etcd: build $(TOOLS)/peers/etcd ## Hold the etcd API against a real etcd: clients, etcdctl, a minute of fuzz (FUZZ_FOR=30m)
	go test -count=1 -parallel 4 -timeout 2h ./etcdapi/etcdtest -fuzz-for $(FUZZ_FOR) -fuzz-seed $(FUZZ_SEED)

.PHONY: test-v2
test-v2: build ## Pods, demo and systemd units on Debian's own kernel with cgroup v2 alone, in a VM
	@tools/v2/run

$(TOOLS)/buf: tools/buf/go.mod
	@mkdir -p $(TOOLS)
	cd tools/buf && go build -o $@ github.com/bufbuild/buf/cmd/buf

$(TOOLS)/golangci-lint: tools/lint/go.mod
	@mkdir -p $(TOOLS)
	cd tools/lint && go build -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

$(TOOLS)/protoc-gen-go: tools/go.mod
	@mkdir -p $(TOOLS)
	cd tools && go build -o $@ google.golang.org/protobuf/cmd/protoc-gen-go

$(TOOLS)/protoc-gen-connect-go: tools/go.mod
	@mkdir -p $(TOOLS)
	cd tools && go build -o $@ connectrpc.com/connect/cmd/protoc-gen-connect-go

$(TOOLS)/peers/etcd: tools/peers/etcd/go.mod tools/peers/etcd/build
	tools/peers/etcd/build $(TOOLS)/peers
