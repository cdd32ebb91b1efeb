// Package buildkit runs BuildKit inside the daemon: its solver, caches and
// history over the engine's own content and snapshots, so that what is built
// is an image of the engine at once. Steps run in the keeper. It must not know
// HTTP, nor other engines: what it needs of them are the ports of ports.go.
package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/frontend/gateway"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/version"
	"github.com/moby/buildkit/worker"
	"github.com/sirupsen/logrus"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// Options of a Builder. All but Logger are needed.
type Options struct {
	Root         string // state that lasts: caches and history
	Run          string // state of this boot: mounts of steps
	Containerd   *containerd.Client
	Namespace    string // of containerd, that of the engine's images
	Snapshotter  string
	Applier      diff.Applier // unpacks layers
	Images       Images
	Networks     Networks
	Runner       Runner
	Hosts        docker.RegistryHosts // how registries are reached, without credentials
	CgroupParent string
	// Profile gives the AppArmor profile of steps, loading it where it is not;
	// "" where the host has none.
	Profile func() (string, error)
	// Scanner gives the image that lists the packages of a result, which is in
	// the engine then: a ScannerImage.
	Scanner func(ctx context.Context) (string, error)
	Gateway string // address that host-gateway means, for clients; "" leaves it out
	Logger  *slog.Logger
}

// Builder is BuildKit in this process. It takes nothing until the first build:
// then it opens its databases and stays.
type Builder struct {
	o     Options
	log   *slog.Logger
	steps *executor

	mu      sync.Mutex
	running *running          // nil before the first build
	builds  map[string]func() // cancels, by clients' ids
	closed  bool
}

// running is all that a first build starts.
type running struct {
	controller *control.Controller
	worker     *node
	sessions   *session.Manager
	server     *grpc.Server
	stop       chan struct{} // closed: finish what can wait
}

// New removes what an earlier daemon's builds have left. Close it.
func New(ctx context.Context, o Options) (*Builder, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	steps, err := newExecutor(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	return &Builder{o: o, log: o.Logger, steps: steps}, nil
}

// start gives the running builder, starting it where none is.
func (b *Builder) start() (*running, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return nil, errors.New("the daemon is stopping")
	case b.running != nil:
		return b.running, nil
	}
	r, err := b.boot()
	if err != nil {
		return nil, fmt.Errorf("start the builder: %w", err)
	}
	b.running = r
	b.log.Info("builder started", "buildkit", version.Version)
	return r, nil
}

func (b *Builder) boot() (_ *running, err error) {
	if err := os.MkdirAll(b.o.Root, 0o700); err != nil {
		return nil, err
	}
	version.Version = release() // BuildKit's own build sets it
	var opened []io.Closer
	defer func() {
		if err == nil {
			return
		}
		for _, c := range slices.Backward(opened) {
			_ = c.Close() // or the next try waits for its lock for ever
		}
	}()
	r := &running{stop: make(chan struct{})}
	if r.sessions, err = session.NewManager(); err != nil {
		return nil, err
	}
	if r.worker, err = newNode(b.o, b.steps); err != nil {
		return nil, err
	}
	opened = append(opened, r.worker)
	workers := &worker.Controller{}
	if err := workers.Add(r.worker); err != nil {
		return nil, err
	}
	builtin := forwarder.NewGatewayForwarder(workers.Infos(), buildDockerfile)
	remote, err := gateway.NewGatewayFrontend(workers.Infos(), nil)
	if err != nil {
		return nil, err
	}
	cache, err := bboltcachestorage.NewStore(filepath.Join(b.o.Root, "cache.db"))
	if err != nil {
		return nil, err
	}
	opened = append(opened, cache)
	history, err := boltutil.SafeOpen(filepath.Join(b.o.Root, "history.db"), 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType, NoFreelistSync: true})
	if err != nil {
		return nil, err
	}
	opened = append(opened, history)
	exports, imports := remoteCaches(r.sessions, r.worker, b.o.Hosts)
	kept := int64(maxHistory)
	r.controller, err = control.NewController(control.Opt{
		SessionManager: r.sessions, WorkerController: workers,
		Frontends:                 map[string]frontend.Frontend{"dockerfile.v0": builtin, "gateway.v0": syntax{builtin: builtin, remote: remote}},
		ResolveCacheExporterFuncs: exports, ResolveCacheImporterFuncs: imports,
		CacheManager: solver.NewCacheManager(context.Background(), "local", cache, worker.NewCacheResultStorage(workers)),
		Entitlements: []string{"network.host", "security.insecure", "device"},
		HistoryDB:    history, CacheStore: cache, LeaseManager: r.worker.LeaseManager(), ContentStore: r.worker.ContentStore(),
		HistoryConfig: &config.HistoryConfig{MaxEntries: &kept}, GarbageCollect: r.worker.GarbageCollect, GracefulStop: r.stop,
	})
	if err != nil {
		return nil, err
	}
	r.server = grpc.NewServer(
		grpc.ChainUnaryInterceptor(discreet, grpcerrors.UnaryServerInterceptor, b.adapt),
		grpc.ChainStreamInterceptor(discreetStream, grpcerrors.StreamServerInterceptor),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
	)
	r.controller.Register(r.server)
	grpc_health_v1.RegisterHealthServer(r.server, health.NewServer())
	return r, nil
}

// Limits of the builder.
const (
	maxMessage = 16 << 20 // bytes of one message of a client, as buildkitd takes
	maxHistory = 100      // builds that are remembered
)

// Serve speaks BuildKit's API on a connection until that ends.
func (b *Builder) Serve(conn net.Conn) error {
	defer conn.Close()
	r, err := b.start()
	if err != nil {
		return err
	}
	//lint:ignore SA1019 the connection was taken over from a request: http.Server serves listeners only
	(&http2.Server{}).ServeConn(conn, &http2.ServeConnOpts{Context: quiet(context.Background()), Handler: r.server, BaseConfig: &http.Server{ErrorLog: slog.NewLogLogger(b.log.Handler(), slog.LevelDebug)}})
	return nil
}

// Session lets a client serve its files, secrets and credentials to its builds
// on a connection until that ends; h says who it is.
func (b *Builder) Session(ctx context.Context, conn net.Conn, h http.Header) error {
	defer conn.Close()
	r, err := b.start()
	if err != nil {
		return err
	}
	return r.sessions.HandleConn(quiet(ctx), conn, h)
}

// quiet drops what BuildKit logs: what matters of it comes back as errors.
func quiet(ctx context.Context) context.Context {
	return bklog.WithLogger(ctx, logrus.NewEntry(&logrus.Logger{Out: io.Discard, Formatter: &logrus.TextFormatter{}, Hooks: logrus.LevelHooks{}, Level: logrus.PanicLevel}))
}

// release is that of the linked BuildKit.
func release() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == version.Package {
				return m.Version
			}
		}
	}
	return version.Version
}

// Close ends the builds and closes the databases.
func (b *Builder) Close() error {
	b.mu.Lock()
	b.closed = true
	r := b.running
	b.mu.Unlock()
	var err error
	if r != nil {
		close(r.stop)
		r.server.Stop()
		err = r.controller.Close()
	}
	b.steps.close()
	return err
}
