package containerd

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

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
// truth, and whatever changes there, by whose hand ever, is read again.
type Library struct {
	o  LibraryOptions
	c  *client.Client
	sn string

	// users tells which containers are made of an image; set once by whoever joins the parts.
	users func(imageID string) []User

	mu       sync.RWMutex
	names    map[string]*entry         // by name in containerd's store
	targets  map[digest.Digest]*target // by what a name points at
	ids      map[string][]string       // image id → names, sorted
	variants map[string]*target        // image id → image of a further platform of some index

	changing sync.Mutex // one change of names at a time

	reg     atomic.Pointer[registries]
	working locks // what is being fetched or unpacked

	stop    context.CancelFunc
	watcher chan struct{} // closed when watch has ended
	views   views
}

// User is a container that was made of an image.
type User struct {
	ID      container.ID
	Name    string
	Image   string // the reference it was made with
	Running bool
}

// entry is one name, with all that lists show of it.
type entry struct {
	images.Image
	repo   string // "docker.io/library/redis"; "" where the name is no reference
	tag    string // "redis:7"; "" for a digest or a dangling name
	digest string // "redis@sha256:…"; "" for a dangling name
}

func newEntry(i images.Image) *entry {
	e := &entry{Image: i}
	if strings.HasPrefix(i.Name, danglingPrefix) {
		return e
	}
	named, err := reference.ParseNormalizedNamed(i.Name)
	if err != nil {
		e.tag = i.Name
		return e
	}
	from := i.Target.Digest.String()
	if d := i.Labels[digestLabel]; d != "" {
		from = d
	}
	e.repo, e.digest = named.Name(), reference.FamiliarName(named)+"@"+from
	if _, digested := named.(reference.Digested); !digested {
		e.tag = reference.FamiliarString(named)
	}
	return e
}

// NewLibrary reads all images that are there. Close it.
func NewLibrary(ctx context.Context, o LibraryOptions) (*Library, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Snapshotter == "" {
		o.Snapshotter = "overlayfs"
	}
	reg, err := newRegistries(o.Registry)
	if err != nil {
		return nil, err
	}
	l := &Library{
		o: o, c: o.Engine.client, sn: o.Snapshotter, users: func(string) []User { return nil },
		names: map[string]*entry{}, targets: map[digest.Digest]*target{}, ids: map[string][]string{}, variants: map[string]*target{},
		watcher: make(chan struct{}),
	}
	l.reg.Store(reg)
	list, err := l.c.ImageService().List(in(ctx))
	if err != nil {
		return nil, err
	}
	for _, i := range list {
		l.keep(in(ctx), i)
	}
	watching, stop := context.WithCancel(in(context.WithoutCancel(ctx)))
	l.stop = stop
	go l.watch(watching)
	return l, nil
}

// Close ends what the library does by itself.
func (l *Library) Close() {
	l.stop()
	<-l.watcher
}

// watch reads again what others change on containerd's socket.
func (l *Library) watch(ctx context.Context) {
	defer close(l.watcher)
	events, failed := l.c.EventService().Subscribe(ctx, `topic~="^/images/"`)
	for {
		select {
		case e := <-events:
			named, ok := eventName(e)
			if !ok || e.Namespace != Namespace {
				continue
			}
			l.changing.Lock()
			err := l.reload(ctx, named)
			l.changing.Unlock()
			if err != nil {
				l.o.Logger.Warn("image not read again", "image", named, "error", err)
			}
		case err := <-failed:
			if err != nil && ctx.Err() == nil {
				l.o.Logger.Warn("images changed by others are not seen", "error", err)
			}
			return
		case <-ctx.Done():
			return
		}
	}
}

// SetRegistries changes how registries are reached; what is being fetched goes
// on as it began.
func (l *Library) SetRegistries(o RegistryOptions) error {
	reg, err := newRegistries(o)
	if err == nil {
		l.reg.Store(reg)
	}
	return err
}

// SetUsers tells the library who asks which containers use an image.
func (l *Library) SetUsers(users func(imageID string) []User) { l.users = users }

// reload reads names again. l.changing is held.
func (l *Library) reload(ctx context.Context, names ...string) error {
	for _, name := range names {
		i, err := l.c.ImageService().Get(ctx, name)
		switch {
		case errdefs.IsNotFound(err):
			l.mu.Lock()
			l.drop(name)
			l.mu.Unlock()
		case err != nil:
			return err
		default:
			l.keep(ctx, i)
		}
	}
	return nil
}

// keep puts one name into the index. What a name points at never changes, so
// it is read once.
func (l *Library) keep(ctx context.Context, i images.Image) {
	l.mu.RLock()
	t := l.targets[i.Target.Digest]
	l.mu.RUnlock()
	if t == nil {
		var err error
		if t, err = l.resolve(ctx, i.Target); err != nil {
			l.o.Logger.Warn("image not readable", "image", i.Name, "error", err)
			return
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(i.Name)
	l.put(newEntry(i), t)
}

// put notes what a new name points at. l.mu is held.
func (l *Library) put(e *entry, t *target) {
	l.names[e.Name], l.targets[e.Target.Digest] = e, t
	list := l.ids[t.id]
	at, _ := slices.BinarySearch(list, e.Name)
	l.ids[t.id] = slices.Insert(slices.Clone(list), at, e.Name)
	for _, v := range t.others {
		l.variants[v.id] = v
	}
}

// drop takes one name out of the index. l.mu is held.
func (l *Library) drop(name string) {
	e := l.names[name]
	if e == nil {
		return
	}
	delete(l.names, name)
	t := l.targets[e.Target.Digest]
	rest := slices.DeleteFunc(slices.Clone(l.ids[t.id]), func(n string) bool { return n == name })
	if len(rest) == 0 {
		delete(l.ids, t.id)
	} else {
		l.ids[t.id] = rest
	}
	if !slices.ContainsFunc(rest, func(n string) bool { return l.names[n].Target.Digest == e.Target.Digest }) {
		delete(l.targets, e.Target.Digest)
		for _, v := range t.others {
			delete(l.variants, v.id)
		}
	}
}

// find looks an image up: by reference, by id, or by the beginning of an id.
// name is the one that the reference meant, "" for an id.
func (l *Library) find(ref string) (name string, t *target, err error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	missing := &fault.Error{Class: fault.ErrNotFound, Noun: "image", ID: ref, Msg: "No such image: " + familiar(ref)}
	byID := func(id string) (string, *target, error) {
		if n := l.ids[id]; len(n) > 0 {
			return "", l.targets[l.names[n[0]].Target.Digest], nil
		}
		if v := l.variants[id]; v != nil {
			return "", v, nil
		}
		// Some clients name an image by its manifest or index.
		if t := l.targets[digest.Digest(id)]; t != nil {
			return "", t, nil
		}
		return "", nil, missing
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

// named finds what a reference means. l.mu is held.
func (l *Library) named(named reference.Named) (string, *target) {
	d, digested := named.(reference.Digested)
	if !digested {
		name := reference.TagNameOnly(named).String()
		e, ok := l.names[name]
		if !ok {
			return "", nil
		}
		return name, l.targets[e.Target.Digest]
	}
	if e := l.names[reference.TrimNamed(named).Name()+"@"+d.Digest().String()]; e != nil {
		return e.Name, l.targets[e.Target.Digest]
	}
	for _, name := range slices.Sorted(maps.Keys(l.names)) {
		e := l.names[name]
		if e.repo != named.Name() {
			continue
		}
		t := l.targets[e.Target.Digest]
		if e.Target.Digest == d.Digest() || t.manifest.Digest == d.Digest() || e.Labels[digestLabel] == d.Digest().String() {
			return name, t
		}
	}
	return "", nil
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

// Resolve finds what a container is made from. It reads no disk where the
// image is unpacked.
func (l *Library) Resolve(ctx context.Context, ref, platform string) (container.ImageInfo, error) {
	_, t, err := l.find(ref)
	if err != nil {
		return container.ImageInfo{}, err
	}
	if t, err = t.pick(ref, platform); err != nil {
		return container.ImageInfo{}, err
	}
	if err := l.ready(ctx, t); err != nil {
		return container.ImageInfo{}, err
	}
	return container.ImageInfo{ID: t.id, Reference: ref, Platform: platforms.Format(t.platform()), Config: imageConfig(t.spec.Config)}, nil
}

// ready unpacks an image whose content came without: by another's hand, or as
// a further platform of an index.
func (l *Library) ready(ctx context.Context, t *target) error {
	if t.unpacked.Load() {
		return nil
	}
	ctx, done, err := l.lease(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := l.unpackManifest(ctx, t.manifest, nil, unpackReport{}); err != nil {
		return fmt.Errorf("unpack image: %w", err)
	}
	return l.measure(ctx, t)
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
func (l *Library) name(ctx context.Context, name string, desc ocispec.Descriptor, labels map[string]string) error {
	l.changing.Lock()
	defer l.changing.Unlock()
	ctx = in(ctx)
	store := l.c.ImageService()
	if name == "" {
		l.mu.RLock()
		_, named := l.targets[desc.Digest]
		l.mu.RUnlock()
		if named {
			return nil // it has a name, or is dangling already
		}
		name = danglingPrefix + desc.Digest.String()
	}
	l.mu.RLock()
	old := l.names[name]
	l.mu.RUnlock()
	now := time.Now()
	changed := []string{name}
	switch {
	case old == nil:
		if _, err := store.Create(ctx, images.Image{Name: name, Target: desc, Labels: labels, CreatedAt: now, UpdatedAt: now}); err != nil && !errdefs.IsAlreadyExists(err) {
			return err
		}
	case old.Target.Digest == desc.Digest && maps.Equal(old.Labels, labels):
		return nil
	default:
		if old.Target.Digest != desc.Digest {
			orphan, err := l.orphan(ctx, old)
			if err != nil {
				return err
			}
			changed = append(changed, orphan)
		}
		if _, err := store.Update(ctx, images.Image{Name: name, Target: desc, UpdatedAt: now, Labels: labels}, "target", "labels"); err != nil {
			return err
		}
	}
	if !strings.HasPrefix(name, danglingPrefix) {
		// A name makes a dangling image of the same content a named one.
		dangling := danglingPrefix + desc.Digest.String()
		l.mu.RLock()
		was := l.names[dangling] != nil
		l.mu.RUnlock()
		if was {
			if err := store.Delete(ctx, dangling); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
			changed = append(changed, dangling)
		}
	}
	return l.reload(ctx, changed...)
}

// orphan keeps what a name points at where that is its only name.
func (l *Library) orphan(ctx context.Context, e *entry) (string, error) {
	dangling := danglingPrefix + e.Target.Digest.String()
	l.mu.RLock()
	t := l.targets[e.Target.Digest]
	last := len(l.ids[t.id]) < 2
	l.mu.RUnlock()
	if !last {
		return dangling, nil
	}
	now := time.Now()
	_, err := l.c.ImageService().Create(ctx, images.Image{Name: dangling, Target: e.Target, CreatedAt: now, UpdatedAt: now})
	if errdefs.IsAlreadyExists(err) {
		err = nil
	}
	return dangling, err
}

// publish tells of an image: labels of the image and what else is given.
func (l *Library) publish(action, id string, t *target, name string) {
	if l.o.Events == nil {
		return
	}
	attributes := map[string]string{}
	if t != nil {
		maps.Copy(attributes, t.spec.Config.Labels)
	}
	attributes["name"] = name
	l.o.Events.Publish(event.Event{Type: "image", Action: action, ID: id, Attributes: attributes, Time: time.Now()})
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
