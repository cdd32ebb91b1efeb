package buildkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/cache/remotecache"
	inlineremotecache "github.com/moby/buildkit/cache/remotecache/inline"
	localremotecache "github.com/moby/buildkit/cache/remotecache/local"
	registryremotecache "github.com/moby/buildkit/cache/remotecache/registry"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/exporter"
	dockerfileversion "github.com/moby/buildkit/frontend/dockerfile/version"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/util/archutil"
	"github.com/moby/buildkit/util/disk"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/version"
	"github.com/moby/buildkit/worker/base"
	"github.com/moby/buildkit/worker/label"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// labelGateway tells clients the address that host-gateway means; the name is
// the Docker engine's.
const labelGateway = "org.mobyproject.buildkit.worker.moby.host-gateway-ip"

// node is BuildKit's worker over the engine's content, snapshots and leases.
type node struct {
	*base.Worker
	o      Options
	mounts *mountStore
}

func newNode(o Options, steps *executor) (*node, error) {
	root := filepath.Join(o.Root, "worker")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	id, err := base.ID(root)
	if err != nil {
		return nil, err
	}
	md, err := metadata.NewStore(filepath.Join(root, "metadata.db"))
	if err != nil {
		return nil, err
	}
	c := o.Containerd
	lm := leaseutil.WithNamespace(sharedLeases{c.LeasesService()}, o.Namespace)
	sn := containerdsnapshot.NewSnapshotter(o.Snapshotter, sharedSnapshots{c.SnapshotService(o.Snapshotter)}, o.Namespace, nil)
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "unknown"
	}
	labels := map[string]string{
		label.Executor: "berth-keeper", label.Snapshotter: o.Snapshotter, label.Hostname: hostname, label.Network: "bridge", label.ContainerdNamespace: o.Namespace,
	}
	if o.Gateway != "" {
		labels[labelGateway] = o.Gateway
	}
	w, err := base.NewWorker(context.Background(), base.WorkerOpt{
		ID: id, Root: root, Labels: labels, Platforms: archutil.SupportedPlatforms(true), GCPolicy: policy(o.Root),
		BuildkitVersion: client.BuildkitVersion{Package: version.Package, Version: version.Version, Revision: version.Revision, DockerfileVersion: dockerfileversion.Version()},
		Executor:        steps, Snapshotter: sn, ContentStore: containerdsnapshot.NewContentStore(c.ContentStore(), o.Namespace),
		Applier: inSpace{o.Namespace, o.Applier, nil}, Differ: inSpace{o.Namespace, nil, c.DiffService()}, ImageStore: spaceImages{o.Namespace, c.ImageService()}, RegistryHosts: ownHosts(o.Hosts), LeaseManager: lm,
		GarbageCollect: func(ctx context.Context) (gc.Stats, error) {
			// A lease that is deleted synchronously makes containerd collect.
			l, err := lm.Create(ctx, leases.WithRandomID())
			if err != nil {
				return nil, fmt.Errorf("collect garbage: %w", err)
			}
			return nil, lm.Delete(ctx, leases.Lease{ID: l.ID}, leases.SynchronousDelete)
		},
		MetadataStore: md, MountPoolRoot: filepath.Join(o.Run, mountsDir),
	})
	if err != nil {
		return nil, errors.Join(err, md.Close())
	}
	mounts := &mountStore{Manager: w.CacheMgr}
	w.CacheMgr = mounts // steps look for their cache mounts there
	return &node{Worker: w, o: o, mounts: mounts}, nil
}

// policy bounds the cache as buildkitd does by default: old local sources and
// cache mounts first, then what has not been used for long, then all above a
// part of the disk.
func policy(root string) []client.PruneInfo {
	stat, err := disk.GetDiskStat(root)
	if err != nil {
		stat = disk.DiskStat{}
	}
	var list []client.PruneInfo
	for _, p := range config.DefaultGCPolicy(config.GCConfig{}, stat) {
		list = append(list, client.PruneInfo{
			Filter: p.Filters, All: p.All, KeepDuration: p.KeepDuration.Duration,
			ReservedSpace: p.ReservedSpace.AsBytes(stat), MaxUsedSpace: p.MaxUsedSpace.AsBytes(stat), MinFreeSpace: p.MinFreeSpace.AsBytes(stat),
		})
	}
	return list
}

// Exporter adds the engine's own image library to BuildKit's exporters.
func (n *node) Exporter(name string, sm *session.Manager) (exporter.Exporter, error) {
	if name != client.ExporterImage && name != exporterMoby {
		return n.Worker.Exporter(name, sm)
	}
	next, err := n.Worker.Exporter(client.ExporterImage, sm)
	if err != nil {
		return nil, err
	}
	return imageExporter{next: next, images: n.o.Images}, nil
}

func remoteCaches(sm *session.Manager, n *node, hosts docker.RegistryHosts) (map[string]remotecache.ResolveCacheExporterFunc, map[string]remotecache.ResolveCacheImporterFunc) {
	return map[string]remotecache.ResolveCacheExporterFunc{
			"registry": registryremotecache.ResolveCacheExporterFunc(sm, hosts), "local": localremotecache.ResolveCacheExporterFunc(sm), "inline": inlineremotecache.ResolveCacheExporterFunc(),
		}, map[string]remotecache.ResolveCacheImporterFunc{
			"registry": registryremotecache.ResolveCacheImporterFunc(sm, n.ContentStore(), hosts), "local": localremotecache.ResolveCacheImporterFunc(sm),
		}
}

// inSpace diffs and unpacks in one namespace of containerd, whatever the context says.
type inSpace struct {
	space    string
	applier  diff.Applier
	comparer diff.Comparer
}

func (s inSpace) Apply(ctx context.Context, d ocispec.Descriptor, m []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	return s.applier.Apply(namespaces.WithNamespace(ctx, s.space), d, m, opts...)
}

func (s inSpace) Compare(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (ocispec.Descriptor, error) {
	return s.comparer.Compare(namespaces.WithNamespace(ctx, s.space), lower, upper, opts...)
}

// spaceImages are the images of one namespace of containerd.
type spaceImages struct {
	space string
	images.Store
}

func (s spaceImages) Get(ctx context.Context, name string) (images.Image, error) {
	return s.Store.Get(namespaces.WithNamespace(ctx, s.space), name)
}

func (s spaceImages) List(ctx context.Context, filters ...string) ([]images.Image, error) {
	return s.Store.List(namespaces.WithNamespace(ctx, s.space), filters...)
}

// shared gives a snapshot of layers the name by which the engine knows it, its
// chain id: BuildKit would unpack the same layers again under another. Both
// verify each layer before they name it.
func shared(key string) string {
	if chain, ok := snapshot.ParseLayerSnapshotID(key); ok {
		return chain.String()
	}
	return key
}

// sharedSnapshots are the engine's snapshots under BuildKit's names.
type sharedSnapshots struct{ snapshots.Snapshotter }

func (s sharedSnapshots) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	return s.Snapshotter.Stat(ctx, shared(key))
}

func (s sharedSnapshots) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	return s.Snapshotter.Usage(ctx, shared(key))
}

func (s sharedSnapshots) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	return s.Snapshotter.Mounts(ctx, shared(key))
}

func (s sharedSnapshots) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.Snapshotter.Prepare(ctx, key, shared(parent), opts...)
}

func (s sharedSnapshots) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.Snapshotter.View(ctx, key, shared(parent), opts...)
}

func (s sharedSnapshots) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return s.Snapshotter.Commit(ctx, shared(name), key, opts...)
}

// sharedLeases hold them under the engine's names too.
type sharedLeases struct{ leases.Manager }

func (l sharedLeases) AddResource(ctx context.Context, lease leases.Lease, r leases.Resource) error {
	r.ID = shared(r.ID)
	return l.Manager.AddResource(ctx, lease, r)
}

func (l sharedLeases) DeleteResource(ctx context.Context, lease leases.Lease, r leases.Resource) error {
	r.ID = shared(r.ID)
	return l.Manager.DeleteResource(ctx, lease, r)
}
