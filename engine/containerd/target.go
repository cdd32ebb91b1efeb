package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// target is what a name points at: one image, that of this host's platform
// where an index has several.
type target struct {
	id       string // image id: the digest of the configuration
	desc     ocispec.Descriptor
	manifest ocispec.Descriptor
	config   ocispec.Descriptor
	spec     dockerspec.DockerOCIImage
	shown    container.ImageConfig // never handed to those who change it
	raw      []byte                // configuration's "config" object
	extra    dockerExtra
	chains   []digest.Digest // of each layer
	layers   []ocispec.Descriptor
	others   []*target // of the same index, for other platforms
	absent   []absentManifest
	variant  bool // one of the others of an index

	mu   sync.Mutex
	keys []string // snapshot of each chain: its own id, or where a build has left the tree

	unpacked atomic.Bool
	paths    atomic.Pointer[map[string]string] // of its layers, once asked for
	sizes    atomic.Pointer[[]int64]           // bytes of each unpacked layer
}

// absentManifest is what an index names and is not here, or is no image.
type absentManifest struct {
	desc ocispec.Descriptor
	here bool
	size int64 // of its content that is here
}

// dockerExtra are the fields of a configuration that only Docker writes.
type dockerExtra struct {
	Parent  string `json:"parent"`
	Comment string `json:"comment"`
}

// resolve reads what a name points at.
func (l *Library) resolve(ctx context.Context, desc ocispec.Descriptor) (*target, error) {
	cs := l.c.ContentStore()
	if images.IsManifestType(desc.MediaType) {
		return l.resolveOne(ctx, desc, desc)
	}
	if !images.IsIndexType(desc.MediaType) {
		return nil, fault.Invalidf("media type %q is no image", desc.MediaType)
	}
	list, err := flatten(ctx, cs, desc, 0)
	if err != nil {
		return nil, err
	}
	var found []*target
	var absent []absentManifest
	for _, d := range list {
		if d.Annotations[attestationKey] == attestation {
			a := absentManifest{desc: d, here: complete(ctx, cs, d)}
			if a.here {
				a.size = contentSize(ctx, cs, d)
			}
			absent = append(absent, a)
			continue
		}
		t, err := l.resolveOne(ctx, desc, d)
		if err != nil {
			absent = append(absent, absentManifest{desc: d})
			continue
		}
		found = append(found, t)
	}
	if len(found) == 0 {
		return nil, fault.NotFoundf("the index holds no image")
	}
	host := platforms.Default()
	slices.SortStableFunc(found, func(a, b *target) int {
		pa, pb := a.platform(), b.platform()
		switch {
		case host.Match(pa) && !host.Match(pb), host.Less(pa, pb):
			return -1
		case host.Match(pb) && !host.Match(pa), host.Less(pb, pa):
			return 1
		}
		return 0
	})
	found[0].others, found[0].absent = found[1:], absent
	for _, o := range found[1:] {
		o.variant = true
	}
	return found[0], nil
}

// flatten lists the manifests of an index and of those in it.
func flatten(ctx context.Context, cs content.Store, desc ocispec.Descriptor, depth int) ([]ocispec.Descriptor, error) {
	if depth > 2 {
		return nil, fault.Invalidf("index %s is nested too deep", desc.Digest)
	}
	b, err := readBlob(ctx, cs, desc)
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, fmt.Errorf("index %s: %w", desc.Digest, err)
	}
	var list []ocispec.Descriptor
	for _, d := range index.Manifests {
		if !images.IsIndexType(d.MediaType) {
			list = append(list, d)
			continue
		}
		below, err := flatten(ctx, cs, d, depth+1)
		if err == nil {
			list = append(list, below...)
		}
		if len(list) > maxManifests {
			return nil, fault.Invalidf("index %s names too many manifests", desc.Digest)
		}
	}
	return list, nil
}

// resolveOne reads one image.
func (l *Library) resolveOne(ctx context.Context, desc, manifest ocispec.Descriptor) (*target, error) {
	cs := l.c.ContentStore()
	b, err := readBlob(ctx, cs, manifest)
	if err != nil {
		return nil, err
	}
	m, err := readManifest(b, manifest.MediaType)
	if err != nil {
		return nil, err
	}
	if err := imageLayers(m); err != nil {
		return nil, err
	}
	if b, err = readBlob(ctx, cs, m.Config); err != nil {
		return nil, err
	}
	t := &target{id: m.Config.Digest.String(), desc: desc, manifest: manifest, config: m.Config, layers: m.Layers}
	if t.spec, err = readConfig(b, m); err != nil {
		return nil, err
	}
	var whole struct {
		dockerExtra
		Config json.RawMessage `json:"config"`
	}
	if err := json.Unmarshal(b, &whole); err != nil {
		return nil, err
	}
	t.extra, t.raw, t.shown = whole.dockerExtra, whole.Config, imageConfig(t.spec.Config)
	t.chains = identity.ChainIDs(slices.Clone(t.spec.RootFS.DiffIDs))
	return t, l.measure(ctx, t)
}

// snapshotKeys finds the snapshot of each layer. Layers that were built here
// lie where their steps ran, as the labels of the configuration say.
func (l *Library) snapshotKeys(ctx context.Context, t *target) ([]string, error) {
	info, err := l.c.ContentStore().Info(ctx, t.config.Digest)
	if err != nil {
		return nil, err
	}
	keys := make([]string, len(t.chains))
	for i, c := range t.chains {
		keys[i] = c.String()
		if k := info.Labels[l.builtLabel(c)]; k != "" {
			keys[i] = k
		}
	}
	return keys, nil
}

// builtLabel holds the snapshot of a chain, and holds it from the garbage
// collector, on the configuration of an image that was built here.
func (l *Library) builtLabel(chain digest.Digest) string {
	return "containerd.io/gc.ref.snapshot." + l.sn + "/" + chain.String()
}

// measure learns whether an image is unpacked, and the sizes of its layers.
func (l *Library) measure(ctx context.Context, t *target) error {
	sn := l.c.SnapshotService(l.sn)
	keys, err := l.snapshotKeys(ctx, t)
	if err != nil {
		return err
	}
	sizes := make([]int64, len(t.chains))
	whole := true
	for i := range t.chains {
		u, err := sn.Usage(ctx, keys[i])
		if errdefs.IsNotFound(err) && keys[i] != t.chains[i].String() {
			keys[i] = t.chains[i].String()
			u, err = sn.Usage(ctx, keys[i])
		}
		if errdefs.IsNotFound(err) {
			whole = false
			continue
		}
		if err != nil {
			return err
		}
		sizes[i] = u.Size
	}
	t.mu.Lock()
	t.keys = keys
	t.mu.Unlock()
	t.sizes.Store(&sizes)
	t.unpacked.Store(whole)
	return nil
}

// size gives the bytes of all unpacked layers.
func (t *target) size() (sum int64) {
	for _, n := range *t.sizes.Load() {
		sum += n
	}
	return sum
}

// top is the snapshot that containers stand on, "" for an empty image.
func (t *target) top() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.keys) == 0 {
		return ""
	}
	return t.keys[len(t.keys)-1]
}

func (t *target) platform() ocispec.Platform {
	return platforms.Normalize(ocispec.Platform{OS: t.spec.OS, Architecture: t.spec.Architecture, Variant: t.spec.Variant, OSVersion: t.spec.OSVersion})
}

// pick chooses by platform ("": this host's) among the images of an index.
func (t *target) pick(ref, platform string) (*target, error) {
	if platform == "" {
		return t, nil
	}
	want, err := platforms.Parse(platform)
	if err != nil {
		return nil, fault.Invalidf("%w", err)
	}
	matcher := platforms.Only(want)
	var best *target
	for _, o := range append([]*target{t}, t.others...) {
		if matcher.Match(o.platform()) && (best == nil || matcher.Less(o.platform(), best.platform())) {
			best = o
		}
	}
	if best == nil {
		return nil, fault.NotFoundf("image with reference %s was found but does not provide the specified platform (%s)", ref, platforms.FormatAll(want))
	}
	return best, nil
}

func readBlob(ctx context.Context, cs content.Provider, d ocispec.Descriptor) ([]byte, error) {
	if d.Size > maxConfig {
		return nil, fault.Invalidf("%s of %d bytes exceeds the limit of %d", d.MediaType, d.Size, maxConfig)
	}
	return content.ReadBlob(ctx, cs, d)
}

// complete tells whether all content of a manifest is here.
func complete(ctx context.Context, cs content.Store, d ocispec.Descriptor) bool {
	b, err := readBlob(ctx, cs, d)
	if err != nil {
		return false
	}
	var m ocispec.Manifest
	if json.Unmarshal(b, &m) != nil {
		return false
	}
	for _, c := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if i, err := cs.Info(ctx, c.Digest); err != nil || i.Size != c.Size {
			return false
		}
	}
	return true
}

// contentSize sums what a manifest names.
func contentSize(ctx context.Context, cs content.Store, d ocispec.Descriptor) int64 {
	sum := d.Size
	b, err := readBlob(ctx, cs, d)
	if err != nil {
		return sum
	}
	var m ocispec.Manifest
	if json.Unmarshal(b, &m) != nil {
		return sum
	}
	for _, c := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		sum += c.Size
	}
	return sum
}
