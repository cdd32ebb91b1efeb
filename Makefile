# Berth's few targets. `make demo` and `make test` set up a fresh Debian machine.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
TIME    ?= $(shell date -u +%Y-%m-%dT%H:%M:%SZ)
LINK     = -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.buildTime=$(TIME)
FLAGS    = -trimpath -ldflags "$(LINK)"

.PHONY: build demo test test-tools test-corpus test-library test-peer test-vm check bench bench-build bench-compose clean install packages test-packages

build: packages
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o app/welcome/rootfs/welcome ./library/welcome
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o app/scanner/rootfs/sbom-scanner ./library/sbom-scanner
	CGO_ENABLED=0 go build $(FLAGS) -o bin/berth ./cmd/berth
	ln -sf berth bin/docker-compose
	CGO_ENABLED=0 go build $(FLAGS) -o bin/berthd ./cmd/berthd
	CGO_ENABLED=1 go build -trimpath -ldflags "$(LINK) -linkmode external -extldflags -static" -tags seccomp,netgo,osusergo -o bin/berth-keeper ./cmd/berth-keeper
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o bin/containerd-shim-runc-v2 github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2

# Runs a container with a published port and fetches its page.
demo: build
	go run ./test/demo

# Everything that must pass before a change lands.
test: build test-packages test-tools check
	BERTH_TEST_BIN=$(CURDIR)/bin go test -timeout 30m ./...

# Foreign programs that tests compare with or use, each built in a module of its own.
test-tools:
	sh .ci/tool docker-compose github.com/docker/compose/v5/cmd github.com/docker/compose/v5 v5.6.0 "-X github.com/docker/compose/v5/internal.Version=v5.6.0"
	sh .ci/tool docker-buildx github.com/docker/buildx/cmd/buildx github.com/docker/buildx v0.38.2 "-X github.com/docker/buildx/version.Version=v0.38.2"

# Every Compose file of the corpus: read, or refused for a reason that others share.
test-corpus: test-packages test-tools
	BERTH_TEST_BIN=$(CURDIR)/bin BERTH_TEST_CORPUS=1 go test -count=1 -timeout 60m -v -run TestCorpus ./test/corpus

# The same scripts against Debian's docker.io.
test-peer: test-packages
	BERTH_TEST_PEER=1 go test -count=1 -timeout 60m ./test/script

# All official images: made, examined, made again. Takes long; packages come from a Debian mirror.
test-library: build
	BERTH_TEST_BIN=$(CURDIR)/bin go test -count=1 -timeout 180m ./test/library -all -v

# The same tests on Debian's kernel in an emulated machine: cgroup v2 alone, AppArmor, without and with systemd.
# The guest's root is made once and kept in the user's cache (or in BERTH_VM_CACHE).
test-vm: build
	@sh .ci/packages busybox-static debootstrap docker.io e2fsprogs qemu-system-x86 util-linux
	CGO_ENABLED=0 BERTH_TEST_VM=1 BERTH_TEST_BIN=$(CURDIR)/bin go test -trimpath -count=1 -v -timeout 3h ./test/vm

check:
	@test -z "$$(git ls-files '*.go' | xargs gofmt -l | tee /dev/stderr)" || { echo "gofmt -w these files"; exit 1; }
	go vet ./...
	go tool staticcheck ./...

# Ratios against docker.io and runc in the same run.
bench: build
	go run ./test/bench -bin bin -o docs/bench.md

# Builds, beside docker.io's own BuildKit and buildah where that is installed.
bench-build: build test-packages test-tools
	go run ./test/bench/build -bin bin -o docs/bench-build.md

# Applications: `berth compose` beside docker compose v5.6.0 and docker-compose 1.29.2, on both engines. Takes long.
bench-compose: build test-packages test-tools
	go run ./test/bench/compose -bin bin -o docs/bench-compose.md

install: build
	install -D -m 755 -t $(DESTDIR)/usr/local/bin bin/berth bin/berthd bin/berth-keeper bin/containerd-shim-runc-v2
	install -d $(DESTDIR)/usr/local/lib/docker/cli-plugins
	ln -sf ../../../bin/berth $(DESTDIR)/usr/local/lib/docker/cli-plugins/docker-compose
	install -D -m 644 contrib/systemd/berth.service $(DESTDIR)/etc/systemd/system/berth.service

clean:
	rm -rf bin app/welcome/rootfs/welcome app/scanner/rootfs/sbom-scanner

packages:
	@sh .ci/packages gcc libc6-dev pkg-config libseccomp-dev

test-packages:
	@sh .ci/packages busybox-static curl docker.io docker-compose docker-registry git iproute2 nftables openssh-client python3-docker redis-server tini tmux util-linux
