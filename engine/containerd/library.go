package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	client "github.com/containerd/containerd/v2/client"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/event"
	"github.com/berth-project/berth/lib/fault"
)

// Limits of what an image may say of itself.
const (
	maxConfig = 8 << 20 // bytes of a configuration or a manifest
)

// danglingPrefix names images without a tag in containerd's store.
const danglingPrefix = "moby-dangling@"

// LibraryOptions of a Library.
type LibraryOptions struct {
	Engine      *Engine
	Snapshotter string // "overlayfs" or "native"
	Events      *event.Bus
	Logger      *slog.Logger
	Registry    RegistryOptions
}

// Library is the image library: it implements the Docker door's Images and
// core's container.Images. It answers from memory; containerd's store is the
// truth, read again after each change.
type Library struct {
	o  LibraryOptions
	c  *client.Client
	sn string

	// Users tells which containers are made of an image; set once by whoever joins the parts.
	users func(imageID string) []User

	mu      sync.RWMutex
	names   map[string]images.Image   // by name in containerd's store
	targets map[digest.Digest]*target // by what a name points at
	ids     map[string][]string       // image id → names

	changing sync.Mutex // one change of names at a time

	reg       *registries
	downloads *semaphore.Weighted
	working   locks // what is being fetched or unpacked
}

// User is a container that was made of an image.
type User struct {
	ID      container.ID
	Name    string
	Image   string // the reference it was made with
	Running bool
}

// target is what a name points at, resolved for this host's platform.
type target struct {
	id       string // image id: the digest of the configuration
	desc     ocispec.Descriptor
	manifest ocispec.Descriptor
	config   ocispec.Descriptor
	spec     dockerspec.DockerOCIImage
	raw      []byte // configuration's "config" object
	extra    dockerExtra
	chain    digest.Digest
	layers   []ocispec.Descriptor
	size     int64 // bytes of all unpacked layers
}

// dockerExtra are the fields of a configuration that only Docker writes.
type dockerExtra struct {
	Parent  string `json:"parent"`
	Comment string `json:"comment"`
}

// NewLibrary reads all images that are there.
func NewLibrary(ctx context.Context, o LibraryOptions) (*Library, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Snapshotter == "" {
		o.Snapshotter = "overlayfs"
	}
	if o.Registry.Downloads <= 0 {
		o.Registry.Downloads = defaultDownloads
	}
	reg, err := newRegistries(o.Registry)
	if err != nil {
		return nil, err
	}
	l := &Library{
		o: o, c: o.Engine.client, sn: o.Snapshotter, targets: map[digest.Digest]*target{}, users: func(string) []User { return nil },
		reg: reg, downloads: semaphore.NewWeighted(int64(o.Registry.Downloads)),
	}
	return l, l.refresh(ctx)
}

// SetUsers tells the library who asks which containers use an image.
func (l *Library) SetUsers(users func(imageID string) []User) { l.users = users }

// refresh reads the names again; what they point at never changes and is kept.
func (l *Library) refresh(ctx context.Context) error {
	ctx = in(ctx)
	list, err := l.c.ImageService().List(ctx)
	if err != nil {
		return err
	}
	l.mu.RLock()
	old := l.targets
	l.mu.RUnlock()
	names, targets, ids := map[string]images.Image{}, map[digest.Digest]*target{}, map[string][]string{}
	for _, i := range list {
		t := old[i.Target.Digest]
		if t == nil {
			if t, err = l.resolve(ctx, i.Target); err != nil {
				l.o.Logger.Warn("image not readable", "image", i.Name, "error", err)
				continue
			}
		}
		names[i.Name], targets[i.Target.Digest] = i, t
		ids[t.id] = append(ids[t.id], i.Name)
	}
	l.mu.Lock()
	l.names, l.targets, l.ids = names, targets, ids
	l.mu.Unlock()
	return nil
}

// resolve reads what a name points at, for this host's platform or else the
// first that is whole.
func (l *Library) resolve(ctx context.Context, desc ocispec.Descriptor) (*target, error) {
	cs := l.c.ContentStore()
	manifest, m, err := findManifest(ctx, cs, desc)
	if err != nil {
		return nil, err
	}
	b, err := readBlob(ctx, cs, m.Config)
	if err != nil {
		return nil, err
	}
	t := &target{id: m.Config.Digest.String(), desc: desc, manifest: manifest, config: m.Config, layers: m.Layers}
	if err := json.Unmarshal(b, &t.spec); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", m.Config.Digest, err)
	}
	if err := json.Unmarshal(b, &t.extra); err != nil {
		return nil, err
	}
	var whole struct {
		Config json.RawMessage `json:"config"`
	}
	if err := json.Unmarshal(b, &whole); err != nil {
		return nil, err
	}
	t.raw = whole.Config
	t.chain = identity.ChainID(t.spec.RootFS.DiffIDs)
	for i := range t.spec.RootFS.DiffIDs {
		u, err := l.c.SnapshotService(l.sn).Usage(ctx, identity.ChainID(t.spec.RootFS.DiffIDs[:i+1]).String())
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, err
		}
		t.size += u.Size
	}
	return t, nil
}

// findManifest goes from an index to the manifest for this host.
func findManifest(ctx context.Context, cs content.Store, desc ocispec.Descriptor) (ocispec.Descriptor, ocispec.Manifest, error) {
	var m ocispec.Manifest
	if images.IsManifestType(desc.MediaType) {
		b, err := readBlob(ctx, cs, desc)
		if err != nil {
			return desc, m, err
		}
		err = json.Unmarshal(b, &m)
		return desc, m, err
	}
	if !images.IsIndexType(desc.MediaType) {
		return desc, m, fault.Invalidf("media type %q is no image", desc.MediaType)
	}
	b, err := readBlob(ctx, cs, desc)
	if err != nil {
		return desc, m, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return desc, m, err
	}
	host := platforms.Default()
	slices.SortStableFunc(index.Manifests, func(a, b ocispec.Descriptor) int {
		switch {
		case a.Platform != nil && b.Platform != nil && host.Match(*a.Platform) != host.Match(*b.Platform):
			if host.Match(*a.Platform) {
				return -1
			}
			return 1
		case a.Platform != nil && b.Platform != nil && host.Less(*a.Platform, *b.Platform):
			return -1
		}
		return 0
	})
	err = fault.NotFoundf("the index holds no image")
	for _, d := range index.Manifests {
		if d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" {
			continue
		}
		var found ocispec.Descriptor
		if found, m, err = findManifest(ctx, cs, d); err == nil {
			return found, m, nil
		}
	}
	return desc, m, err
}

func readBlob(ctx context.Context, cs content.Provider, d ocispec.Descriptor) ([]byte, error) {
	if d.Size > maxConfig {
		return nil, fault.Invalidf("%s of %d bytes exceeds the limit of %d", d.MediaType, d.Size, maxConfig)
	}
	return content.ReadBlob(ctx, cs, d)
}

// find looks an image up: by reference, by id, or by the beginning of an id.
func (l *Library) find(ref string) (name string, t *target, err error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	missing := &fault.Error{Class: fault.ErrNotFound, Noun: "image", ID: ref, Msg: "No such image: " + familiar(ref)}
	byID := func(id string) (string, *target, error) {
		n := l.ids[id]
		if len(n) == 0 {
			return "", nil, missing
		}
		return "", l.targets[l.names[n[0]].Target.Digest], nil
	}
	if strings.HasPrefix(ref, "sha256:") && len(ref) == 71 {
		return byID(ref)
	}
	if len(ref) == 64 && isHex(ref) {
		return byID("sha256:" + ref)
	}
	if named, err := reference.ParseNormalizedNamed(ref); err == nil {
		if n, t := l.named(named); t != nil {
			return n, t, nil
		}
	} else if !isHex(strings.TrimPrefix(ref, "sha256:")) {
		return "", nil, fault.Invalidf("invalid reference format: %s", ref)
	}
	prefix := "sha256:" + strings.TrimPrefix(ref, "sha256:")
	if !isHex(strings.TrimPrefix(prefix, "sha256:")) {
		return "", nil, missing
	}
	var found string
	for id := range l.ids {
		if strings.HasPrefix(id, prefix) {
			if found != "" {
				return "", nil, fault.Invalidf("ambiguous image ID prefix: %s", ref)
			}
			found = id
		}
	}
	if found == "" {
		return "", nil, missing
	}
	return byID(found)
}

func (l *Library) named(named reference.Named) (string, *target) {
	if d, ok := named.(reference.Digested); ok {
		for name, i := range l.names {
			n, err := reference.ParseNormalizedNamed(name)
			if err != nil || n.Name() != named.Name() {
				continue
			}
			t := l.targets[i.Target.Digest]
			if i.Target.Digest == d.Digest() || t.manifest.Digest == d.Digest() {
				return name, t
			}
		}
		return "", nil
	}
	name := reference.TagNameOnly(named).String()
	i, ok := l.names[name]
	if !ok {
		return "", nil
	}
	return name, l.targets[i.Target.Digest]
}

func isHex(s string) bool { return s != "" && strings.Trim(s, "0123456789abcdef") == "" }

// familiar adds the default tag to a reference, as messages show it.
func familiar(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.FamiliarString(reference.TagNameOnly(named))
}

// Resolve finds what a container is made from. It reads no disk.
func (l *Library) Resolve(_ context.Context, ref, platform string) (container.ImageInfo, error) {
	_, t, err := l.find(ref)
	if err != nil {
		return container.ImageInfo{}, err
	}
	have := platforms.Normalize(ocispec.Platform{OS: t.spec.OS, Architecture: t.spec.Architecture, Variant: t.spec.Variant})
	if platform != "" {
		want, err := platforms.Parse(platform)
		if err != nil {
			return container.ImageInfo{}, fault.Invalidf("%w", err)
		}
		if !platforms.NewMatcher(want).Match(have) {
			return container.ImageInfo{}, fault.NotFoundf("image with reference %s was found but does not provide the specified platform (%s)", ref, platforms.FormatAll(want))
		}
	}
	return container.ImageInfo{ID: t.id, Reference: ref, Platform: platforms.Format(have), Config: imageConfig(t.spec.Config)}, nil
}

// lease keeps new content from the garbage collector until done is called.
func (l *Library) lease(ctx context.Context) (_ context.Context, done func(), err error) {
	ctx = in(ctx)
	lease, err := l.c.LeasesService().Create(ctx, leases.WithRandomID(), leases.WithExpiration(time.Hour))
	if err != nil {
		return nil, nil, err
	}
	return leases.WithLease(ctx, lease.ID), func() {
		if err := l.c.LeasesService().Delete(in(context.WithoutCancel(ctx)), lease); err != nil {
			l.o.Logger.Warn("lease not released", "error", err)
		}
	}, nil
}

// name points a name at content whose layers are unpacked and on disk. What
// the name pointed at before stays as a dangling image.
func (l *Library) name(ctx context.Context, name string, desc ocispec.Descriptor) error {
	return l.nameWith(ctx, name, desc, nil)
}

func (l *Library) nameWith(ctx context.Context, name string, desc ocispec.Descriptor, labels map[string]string) error {
	l.changing.Lock()
	defer l.changing.Unlock()
	ctx = in(ctx)
	store := l.c.ImageService()
	if name == "" {
		name = danglingPrefix + desc.Digest.String()
	}
	l.mu.RLock()
	old, had := l.names[name]
	l.mu.RUnlock()
	if had && old.Target.Digest == desc.Digest {
		return nil
	}
	now := time.Now()
	if had {
		if _, err := store.Create(ctx, images.Image{Name: danglingPrefix + old.Target.Digest.String(), Target: old.Target, CreatedAt: now, UpdatedAt: now}); err != nil && !errdefs.IsAlreadyExists(err) {
			return err
		}
		if _, err := store.Update(ctx, images.Image{Name: name, Target: desc, UpdatedAt: now, Labels: labels}, "target", "labels"); err != nil {
			return err
		}
	} else if _, err := store.Create(ctx, images.Image{Name: name, Target: desc, CreatedAt: now, UpdatedAt: now, Labels: labels}); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	if !strings.HasPrefix(name, danglingPrefix) {
		// A name makes a dangling image of the same content a named one.
		if err := store.Delete(ctx, danglingPrefix+desc.Digest.String()); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	if err := l.refresh(ctx); err != nil {
		return err
	}
	if had {
		return l.dropDuplicateDangling(ctx, old.Target.Digest)
	}
	return nil
}

// dropDuplicateDangling removes the dangling name of content that has another name.
func (l *Library) dropDuplicateDangling(ctx context.Context, d digest.Digest) error {
	l.mu.RLock()
	n := 0
	for _, i := range l.names {
		if i.Target.Digest == d {
			n++
		}
	}
	l.mu.RUnlock()
	if n < 2 {
		return nil
	}
	if err := l.c.ImageService().Delete(ctx, danglingPrefix+d.String()); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return l.refresh(ctx)
}

// unpack makes the snapshots of an image for this host, on disk when it returns.
func (l *Library) unpack(ctx context.Context, desc ocispec.Descriptor) error {
	manifest, m, err := findManifest(ctx, l.c.ContentStore(), desc)
	if err != nil {
		return err
	}
	if len(m.Layers) == 0 {
		return nil
	}
	for _, d := range m.Layers {
		if len(d.URLs) > 0 {
			return fault.Unsupportedf("layer %s is a foreign layer: its content must be fetched from elsewhere, which is not supported", d.Digest)
		}
	}
	return l.unpackManifest(ctx, manifest, nil, unpackReport{})
}

func (l *Library) publish(action, id string, attributes map[string]string) {
	if l.o.Events != nil {
		l.o.Events.Publish(event.Event{Type: "image", Action: action, ID: id, Attributes: attributes, Time: time.Now()})
	}
}

func imageConfig(c dockerspec.DockerOCIImageConfig) container.ImageConfig {
	out := container.ImageConfig{
		User: c.User, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, WorkingDir: c.WorkingDir, Labels: c.Labels,
		StopSignal: c.StopSignal, OnBuild: c.OnBuild, Shell: c.Shell,
	}
	for p := range c.ExposedPorts {
		number, proto, _ := strings.Cut(p, "/")
		var n uint16
		if _, err := fmt.Sscan(number, &n); err != nil || n == 0 {
			continue
		}
		if proto == "" {
			proto = "tcp"
		}
		out.ExposedPorts = append(out.ExposedPorts, container.Port{Number: n, Proto: proto})
	}
	slices.SortFunc(out.ExposedPorts, func(a, b container.Port) int { return int(a.Number) - int(b.Number) })
	for v := range c.Volumes {
		out.Volumes = append(out.Volumes, v)
	}
	slices.Sort(out.Volumes)
	if h := c.Healthcheck; h != nil {
		out.Health = &container.HealthCheck{Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries}
	}
	return out
}

// Close ends what the library does by itself.
func (l *Library) Close() {}
