package containerd

import (
	"context"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/lib/fault"
)

// describe gives one image as callers see it. l.mu is held.
func (l *Library) describe(t *target) image.Image {
	i := image.Image{
		ID: t.id, Parent: t.extra.Parent, Comment: t.extra.Comment, Author: t.spec.Author,
		OS: t.spec.OS, Arch: t.spec.Architecture, Variant: t.spec.Variant, OSVersion: t.spec.OSVersion,
		Size: t.size(), SharedSize: -1, Containers: -1,
		Config: t.shown, RawConfig: t.raw,
		Manifest: descriptor(t.manifest), Target: descriptor(t.desc),
	}
	if t.spec.Created != nil {
		i.Created = *t.spec.Created
	}
	i.Layers = make([]string, len(t.spec.RootFS.DiffIDs))
	for n, d := range t.spec.RootFS.DiffIDs {
		i.Layers[n] = d.String()
	}
	for _, name := range l.ids[t.id] {
		e := l.names[name]
		if e.digest != "" && !slices.Contains(i.RepoDigests, e.digest) {
			i.RepoDigests = append(i.RepoDigests, e.digest)
		}
		if e.tag != "" {
			i.RepoTags = append(i.RepoTags, e.tag)
		}
		if (e.tag != "" || e.digest != "") && e.UpdatedAt.After(i.LastTagged) {
			i.LastTagged = e.UpdatedAt
		}
	}
	slices.Sort(i.RepoTags)
	slices.Sort(i.RepoDigests)
	return i
}

func descriptor(d ocispecDescriptor) image.Descriptor {
	out := image.Descriptor{MediaType: d.MediaType, Digest: d.Digest.String(), Size: d.Size, Annotations: d.Annotations}
	if p := d.Platform; p != nil {
		out.Platform = &image.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
	}
	return out
}

// manifests tells of every manifest of what a name points at.
func (l *Library) manifests(t *target) []image.ManifestSummary {
	var list []image.ManifestSummary
	for _, o := range append([]*target{t}, t.others...) {
		s := image.ManifestSummary{Descriptor: descriptor(o.manifest), Available: true, Kind: "image", UnpackedSize: o.size(), ContentSize: o.manifest.Size + o.config.Size}
		p := o.platform()
		s.Descriptor.Platform = &image.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
		for _, d := range o.layers {
			s.ContentSize += d.Size
		}
		for _, u := range l.users(o.id) {
			s.Containers = append(s.Containers, string(u.ID))
		}
		list = append(list, s)
	}
	for _, a := range t.absent {
		s := image.ManifestSummary{Descriptor: descriptor(a.desc), Available: a.here, Kind: "image", ContentSize: a.size}
		if a.desc.Annotations[attestationKey] == attestation {
			s.Kind = "attestation"
		}
		list = append(list, s)
	}
	return list
}

// all gives one target for each image id. l.mu is held.
func (l *Library) all() map[string]*target {
	list := make(map[string]*target, len(l.ids))
	for id, names := range l.ids {
		list[id] = l.targets[l.names[names[0]].Target.Digest]
	}
	return list
}

var listFilters = []string{"dangling", "label", "label!", "before", "since", "reference", "until"}

// List gives all images that filters let pass, the newest first.
func (l *Library) List(_ context.Context, o image.ListOptions) ([]image.Image, error) {
	if err := o.Filters.Check(listFilters...); err != nil {
		return nil, err
	}
	dangling, given, err := o.Filters.Bool("dangling")
	if err != nil {
		return nil, err
	}
	bound := func(name string) (at time.Time, err error) {
		for _, ref := range o.Filters[name] {
			_, t, err := l.find(ref)
			if err != nil {
				return at, err
			}
			if t.spec.Created != nil {
				at = *t.spec.Created
			}
		}
		return at, nil
	}
	before, err := bound("before")
	if err != nil {
		return nil, err
	}
	since, err := bound("since")
	if err != nil {
		return nil, err
	}
	until, err := o.Filters.Until("until")
	if err != nil {
		return nil, err
	}
	for _, p := range o.Filters["reference"] {
		if _, err := path.Match(p, ""); err != nil {
			return nil, fault.Invalidf("invalid filter 'reference=%s': %w", p, err)
		}
	}
	l.mu.RLock()
	users := make(map[string]int, len(l.ids))
	for id := range l.ids {
		users[id] = 0
	}
	l.mu.RUnlock()
	for id := range users { // without mu: the answer may take other locks
		users[id] = len(l.users(id))
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	list := make([]image.Image, 0, len(l.ids))
	uses := map[digest.Digest]int{}
	all := l.all()
	if o.SharedSize {
		for _, t := range all {
			for _, c := range t.chains {
				uses[c]++
			}
		}
	}
	for _, t := range all {
		switch {
		case !o.Filters.Labels("label", t.shown.Labels):
			continue
		case len(o.Filters["label!"]) > 0 && o.Filters.Labels("label!", t.shown.Labels):
			continue
		}
		i := l.describe(t)
		i.Containers = users[t.id]
		switch {
		case given && dangling && len(i.RepoTags) > 0, given && !dangling && len(i.RepoTags) == 0 && len(i.RepoDigests) == 0:
			continue
		case !before.IsZero() && !i.Created.Before(before), !since.IsZero() && !i.Created.After(since), !until.IsZero() && i.Created.After(until):
			continue
		}
		if refs := o.Filters["reference"]; len(refs) > 0 {
			other := func(ref string) bool {
				return !slices.ContainsFunc(refs, func(p string) bool { return matches(p, ref) })
			}
			i.RepoTags, i.RepoDigests = slices.DeleteFunc(i.RepoTags, other), slices.DeleteFunc(i.RepoDigests, other)
			if len(i.RepoTags) == 0 && len(i.RepoDigests) == 0 {
				continue
			}
		}
		if o.SharedSize {
			i.SharedSize = 0
			for n, c := range t.chains {
				if uses[c] > 1 {
					i.SharedSize += (*t.sizes.Load())[n]
				}
			}
		}
		if o.Manifests {
			i.Manifests = l.manifests(t)
		}
		list = append(list, i)
	}
	slices.SortFunc(list, func(a, b image.Image) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list, nil
}

// matches tells whether a pattern (path.Match) fits a reference, with or
// without its tag.
func matches(pattern, ref string) bool {
	name, _, _ := strings.Cut(ref, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	whole, _ := path.Match(pattern, ref)
	short, _ := path.Match(pattern, name)
	return whole || short
}

// Get describes one image, of a platform where one is asked for.
func (l *Library) Get(ctx context.Context, ref, platform string, manifests bool) (image.Image, error) {
	_, whole, err := l.find(ref)
	if err != nil {
		return image.Image{}, err
	}
	t, err := whole.pick(ref, platform)
	if err != nil {
		return image.Image{}, err
	}
	l.mu.RLock()
	i := l.describe(t)
	if t != whole { // tags belong to the whole index
		w := l.describe(whole)
		i.RepoTags, i.RepoDigests, i.LastTagged = w.RepoTags, w.RepoDigests, w.LastTagged
	}
	l.mu.RUnlock()
	if manifests {
		i.Manifests = l.manifests(whole)
	}
	i.Layer = l.layerPaths(ctx, t)
	return i, nil
}

// History tells the steps of an image's making, the last first.
func (l *Library) History(_ context.Context, ref, platform string) ([]image.HistoryItem, error) {
	_, t, err := l.find(ref)
	if err != nil {
		return nil, err
	}
	l.mu.RLock()
	tags := l.describe(t).RepoTags
	l.mu.RUnlock()
	if t, err = t.pick(ref, platform); err != nil {
		return nil, err
	}
	sizes := *t.sizes.Load()
	items := make([]image.HistoryItem, 0, len(t.spec.History))
	layer := 0
	for _, h := range t.spec.History {
		item := image.HistoryItem{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			item.Created = *h.Created
		}
		if !h.EmptyLayer && layer < len(sizes) {
			item.Size = sizes[layer]
			layer++
		}
		items = append(items, item)
	}
	for ; layer < len(sizes); layer++ { // layers of which the history says nothing
		items = append(items, image.HistoryItem{ID: "<missing>", Size: sizes[layer]})
	}
	slices.Reverse(items)
	if len(items) > 0 {
		items[0].ID, items[0].Tags = t.id, tags
	}
	return items, nil
}

// Usage tells the images' part of the disk; layers that images share count once.
func (l *Library) Usage(ctx context.Context) (image.Usage, error) {
	list, err := l.List(ctx, image.ListOptions{SharedSize: true})
	if err != nil {
		return image.Usage{}, err
	}
	out := image.Usage{Images: list}
	l.mu.RLock()
	defer l.mu.RUnlock()
	sizes, used := map[digest.Digest]int64{}, map[digest.Digest]bool{}
	count := func(t *target, busy bool) {
		for n, c := range t.chains {
			sizes[c] = (*t.sizes.Load())[n]
			used[c] = used[c] || busy
		}
	}
	all := l.all()
	for n := range list {
		i := &out.Images[n]
		t := all[i.ID]
		if t == nil {
			continue // removed meanwhile
		}
		count(t, i.Containers > 0)
		for _, o := range t.others {
			count(o, false)
		}
	}
	for c, size := range sizes {
		out.LayersSize += size
		if !used[c] {
			out.Reclaimable += size
		}
	}
	return out, nil
}
