// Package containerd runs containerd inside the daemon: content, snapshots,
// images and leases, served on containerd.sock and used in process. It
// implements core's image library and containers' root file systems. It must
// not know networks, logs or how processes run.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/cmd/containerd/server"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	_ "github.com/containerd/containerd/v2/core/runtime/v2"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	_ "github.com/containerd/containerd/v2/plugins/content/local/plugin"
	_ "github.com/containerd/containerd/v2/plugins/diff/walking/plugin"
	_ "github.com/containerd/containerd/v2/plugins/events"
	_ "github.com/containerd/containerd/v2/plugins/leases"
	_ "github.com/containerd/containerd/v2/plugins/metadata"
	_ "github.com/containerd/containerd/v2/plugins/mount"
	_ "github.com/containerd/containerd/v2/plugins/sandbox"
	_ "github.com/containerd/containerd/v2/plugins/server/grpc"
	_ "github.com/containerd/containerd/v2/plugins/server/ttrpc"
	_ "github.com/containerd/containerd/v2/plugins/services/containers"
	_ "github.com/containerd/containerd/v2/plugins/services/content"
	_ "github.com/containerd/containerd/v2/plugins/services/diff"
	_ "github.com/containerd/containerd/v2/plugins/services/events"
	_ "github.com/containerd/containerd/v2/plugins/services/healthcheck"
	_ "github.com/containerd/containerd/v2/plugins/services/images"
	_ "github.com/containerd/containerd/v2/plugins/services/introspection"
	_ "github.com/containerd/containerd/v2/plugins/services/leases"
	_ "github.com/containerd/containerd/v2/plugins/services/mounts"
	_ "github.com/containerd/containerd/v2/plugins/services/namespaces"
	_ "github.com/containerd/containerd/v2/plugins/services/sandbox"
	_ "github.com/containerd/containerd/v2/plugins/services/snapshots"
	_ "github.com/containerd/containerd/v2/plugins/services/streaming"
	_ "github.com/containerd/containerd/v2/plugins/services/tasks"
	_ "github.com/containerd/containerd/v2/plugins/services/transfer"
	_ "github.com/containerd/containerd/v2/plugins/services/version"
	_ "github.com/containerd/containerd/v2/plugins/services/warning"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/native/plugin"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/overlay/plugin"
	_ "github.com/containerd/containerd/v2/plugins/streaming"
	_ "github.com/containerd/containerd/v2/plugins/transfer"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Namespace holds all of Berth's objects in containerd; docker's own name for
// it, so tools that know where to look find them.
const Namespace = "moby"

// Bundles is where containerd keeps the bundles of our containers that have a
// shim, below its folder of this boot.
func Bundles(state string) string {
	return filepath.Join(state, "io.containerd.runtime.v2.task", Namespace)
}

// Options of an Engine.
type Options struct {
	Root   string // state that lasts
	State  string // state of this boot
	Socket string // where containerd's API is served
	// Tasks changes the plugin that runs tasks of containerd's clients; nil
	// leaves all of them to containerd's shims.
	Tasks  func(stock plugin.Registration) plugin.Registration
	Logger *slog.Logger
}

// Engine is a containerd in this process.
type Engine struct {
	server *server.Server
	client *client.Client
	log    *slog.Logger

	applier diff.Applier // unpacks layers
	state   string       // folder of this boot
	root    string       // folder of what lasts
}

// capture is filled by the one plugin of ours, which runs last and sees all
// others. containerd's registry is global, so one process boots one engine.
var capture = struct {
	once sync.Once
	ic   *plugin.InitContext
}{}

// Boot builds the plugin graph and serves the socket.
func Boot(ctx context.Context, o Options) (*Engine, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	// containerd speaks logrus; what matters of it comes back as errors.
	log.L = logrus.NewEntry(&logrus.Logger{Out: os.Stderr, Formatter: &logrus.TextFormatter{DisableColors: true}, Level: logrus.ErrorLevel, Hooks: logrus.LevelHooks{}, ExitFunc: func(int) {}})
	capture.once.Do(func() {
		register()
		registerCollector()
		if o.Tasks != nil {
			replaceTasks(o.Tasks)
		}
	})
	config := &srvconfig.Config{
		Version: version.ConfigVersion, Root: o.Root, State: o.State,
		Plugins: map[string]any{
			"io.containerd.server.v1.grpc":  map[string]any{"address": o.Socket},
			"io.containerd.server.v1.ttrpc": map[string]any{"address": o.Socket + ".ttrpc"},
		},
		RequiredPlugins: []string{"io.berth.v1.capture"},
	}
	if err := server.CreateTopLevelDirectories(config); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(o.Socket), 0o711); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(Bundles(o.State), 0o711); err != nil {
		return nil, err
	}
	for _, s := range []string{o.Socket, o.Socket + ".ttrpc"} {
		_ = os.Remove(s) // of a daemon that was killed
	}
	// Layers are unpacked through mounts that a killed daemon may have left.
	temp := filepath.Join(o.State, "unpack")
	if err := os.MkdirAll(temp, 0o700); err != nil {
		return nil, err
	}
	if err := mount.SetTempMountLocation(temp); err != nil {
		return nil, err
	}
	if warnings, err := mount.CleanupTempMounts(unix.MNT_DETACH); err != nil || len(warnings) > 0 {
		o.Logger.Warn("mounts of an earlier unpack not removed", "error", err, "warnings", warnings)
	}
	s, err := server.New(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("containerd: %w", err)
	}
	c, err := client.New("", client.WithDefaultNamespace(Namespace), client.WithInMemoryServices(capture.ic))
	if err != nil {
		s.Stop()
		return nil, fmt.Errorf("containerd: %w", err)
	}
	stock, err := capture.ic.GetByID(plugins.DiffPlugin, "walking")
	if err != nil {
		s.Stop()
		return nil, fmt.Errorf("containerd: %w", err)
	}
	if err := sweepSnapshots(ctx, o.Root); err != nil {
		s.Stop()
		return nil, fmt.Errorf("containerd: %w", err)
	}
	if err := s.Start(ctx); err != nil {
		s.Stop()
		return nil, fmt.Errorf("serve containerd: %w", err)
	}
	return &Engine{server: s, client: c, log: o.Logger, applier: applier{next: stock.(diff.Applier), store: c.ContentStore()}, state: o.State, root: o.Root}, nil
}

// sweepSnapshots removes folders of snapshots that a killed daemon had made
// and not yet written down: the next snapshot would get the same number, and
// fail for ever because its folder is there.
func sweepSnapshots(ctx context.Context, root string) error {
	for _, name := range []string{"overlayfs", "native"} {
		p, err := capture.ic.GetByID(plugins.SnapshotPlugin, name)
		if err != nil {
			continue // not on this host
		}
		if sn, ok := p.(snapshots.Cleaner); ok {
			err := sn.Cleanup(ctx)
			if errdefs.IsNotFound(err) { // nothing was ever written down
				err = emptyFolder(filepath.Join(root, "io.containerd.snapshotter.v1."+name, "snapshots"))
			}
			if err != nil {
				return fmt.Errorf("remove folders of lost snapshots: %w", err)
			}
		}
	}
	return nil
}

func emptyFolder(path string) error {
	entries, err := os.ReadDir(path)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(path, e.Name())))
	}
	return err
}

func register() {
	registry.Register(&plugin.Registration{
		Type: "io.berth.v1", ID: "capture",
		Requires: []plugin.Type{
			plugins.EventPlugin, plugins.LeasePlugin, plugins.SandboxStorePlugin, plugins.TransferPlugin, plugins.MountManagerPlugin,
			plugins.ServicePlugin, plugins.SnapshotPlugin, plugins.DiffPlugin,
		},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			capture.ic = ic
			return struct{}{}, nil
		},
	})
}

// replaceTasks registers all plugins again, with another one for tasks:
// containerd's services ask for it by this name.
func replaceTasks(change func(plugin.Registration) plugin.Registration) {
	all := registry.Graph(nil)
	registry.Reset()
	for _, r := range all {
		if r.Type == plugins.RuntimePluginV2 && r.ID == "task" {
			r = change(r)
		}
		registry.Register(&r)
	}
}

// Client speaks to the engine in process.
func (e *Engine) Client() *client.Client { return e.client }

// Applier unpacks layers, within the limits of this host.
func (e *Engine) Applier() diff.Applier { return e.applier }

// Close stops serving and closes the databases.
func (e *Engine) Close() error {
	err := e.client.Close()
	e.server.Stop()
	return err
}

// in gives a context that names the containerd namespace.
func in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, Namespace)
}
