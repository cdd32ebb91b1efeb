package containerd

import (
	"context"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/image-spec/identity"

	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/lib/fault"
)

// describe gives one image as callers see it. l.mu is held.
func (l *Library) describe(t *target) image.Image {
	i := image.Image{
		ID: t.id, Parent: t.extra.Parent, Comment: t.extra.Comment, Author: t.spec.Author,
		OS: t.spec.OS, Arch: t.spec.Architecture, Variant: t.spec.Variant, OSVersion: t.spec.OSVersion,
		Size: t.size, SharedSize: -1, Containers: -1,
		Config: imageConfig(t.spec.Config), RawConfig: t.raw,
		Manifest: image.Descriptor{MediaType: t.manifest.MediaType, Digest: t.manifest.Digest.String(), Size: t.manifest.Size},
		Target:   image.Descriptor{MediaType: t.desc.MediaType, Digest: t.desc.Digest.String(), Size: t.desc.Size},
	}
	if t.spec.Created != nil {
		i.Created = *t.spec.Created
	}
	for _, d := range t.spec.RootFS.DiffIDs {
		i.Layers = append(i.Layers, d.String())
	}
	for _, name := range l.ids[t.id] {
		if strings.HasPrefix(name, danglingPrefix) {
			continue
		}
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			i.RepoTags = append(i.RepoTags, name)
			continue
		}
		target := l.names[name].Target.Digest.String()
		digested := reference.FamiliarName(named) + "@" + target
		if !slices.Contains(i.RepoDigests, digested) {
			i.RepoDigests = append(i.RepoDigests, digested)
		}
		if _, ok := named.(reference.Digested); !ok {
			i.RepoTags = append(i.RepoTags, reference.FamiliarString(named))
		}
		if at := l.names[name].UpdatedAt; at.After(i.LastTagged) {
			i.LastTagged = at
		}
	}
	slices.Sort(i.RepoTags)
	slices.Sort(i.RepoDigests)
	return i
}

var listFilters = []string{"dangling", "label", "label!", "before", "since", "reference", "until"}

// List gives the images that pass the filters, newest first.
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
	until, err := untilOf(o.Filters["until"])
	if err != nil {
		return nil, err
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	list := []image.Image{}
	for id, names := range l.ids {
		t := l.targets[l.names[names[0]].Target.Digest]
		i := l.describe(t)
		i.ID = id
		switch {
		case given && dangling != (len(i.RepoTags) == 0):
		case !o.Filters.Labels("label", i.Config.Labels):
		case len(o.Filters["label!"]) > 0 && o.Filters.Labels("label!", i.Config.Labels):
		case !before.IsZero() && !i.Created.Before(before):
		case !since.IsZero() && !i.Created.After(since):
		case !until.IsZero() && i.Created.After(until):
		default:
			if refs := o.Filters["reference"]; len(refs) > 0 {
				match := func(tag string) bool {
					return slices.ContainsFunc(refs, func(p string) bool { return matches(p, tag) })
				}
				i.RepoTags = slices.DeleteFunc(i.RepoTags, func(tag string) bool { return !match(tag) })
				i.RepoDigests = slices.DeleteFunc(i.RepoDigests, func(d string) bool { return !match(d) })
				if len(i.RepoTags) == 0 && len(i.RepoDigests) == 0 {
					continue
				}
			}
			if o.SharedSize {
				i.SharedSize = l.shared(t)
			}
			list = append(list, i)
		}
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

func untilOf(values []string) (time.Time, error) {
	if len(values) == 0 {
		return time.Time{}, nil
	}
	v := values[0]
	if d, err := time.ParseDuration(v); err == nil {
		return time.Now().Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, v, time.Local); err == nil {
			return t, nil
		}
	}
	var seconds float64
	if _, err := parseFloat(v, &seconds); err == nil {
		return time.Unix(0, int64(seconds*1e9)), nil
	}
	return time.Time{}, fault.Invalidf("invalid value for until: %q", v)
}

// shared counts the bytes of layers that other images have too. l.mu is held.
func (l *Library) shared(t *target) (size int64) {
	uses := map[string]int{}
	for _, names := range l.ids {
		o := l.targets[l.names[names[0]].Target.Digest]
		for i := range o.spec.RootFS.DiffIDs {
			uses[identity.ChainID(o.spec.RootFS.DiffIDs[:i+1]).String()]++
		}
	}
	for i := range t.spec.RootFS.DiffIDs {
		chain := identity.ChainID(t.spec.RootFS.DiffIDs[:i+1]).String()
		if uses[chain] > 1 {
			if u, err := l.c.SnapshotService(l.sn).Usage(in(context.Background()), chain); err == nil {
				size += u.Size
			}
		}
	}
	return size
}

// Get describes one image.
func (l *Library) Get(ctx context.Context, ref, platform string, _ bool) (image.Image, error) {
	if _, err := l.Resolve(ctx, ref, platform); err != nil {
		return image.Image{}, err
	}
	_, t, err := l.find(ref)
	if err != nil {
		return image.Image{}, err
	}
	l.mu.RLock()
	i := l.describe(t)
	l.mu.RUnlock()
	i.Layer = l.layerPaths(ctx, t)
	return i, nil
}

// History tells the steps of an image's making, the last first.
func (l *Library) History(ctx context.Context, ref, _ string) ([]image.HistoryItem, error) {
	_, t, err := l.find(ref)
	if err != nil {
		return nil, err
	}
	l.mu.RLock()
	tags := l.describe(t).RepoTags
	l.mu.RUnlock()
	var items []image.HistoryItem
	layer := 0
	for _, h := range t.spec.History {
		item := image.HistoryItem{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			item.Created = *h.Created
		}
		if !h.EmptyLayer && layer < len(t.spec.RootFS.DiffIDs) {
			layer++
			u, err := l.c.SnapshotService(l.sn).Usage(in(ctx), identity.ChainID(t.spec.RootFS.DiffIDs[:layer]).String())
			if err == nil {
				item.Size = u.Size
			}
		}
		items = append(items, item)
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
	chains, used := map[string]bool{}, map[string]bool{}
	l.mu.RLock()
	defer l.mu.RUnlock()
	for n := range list {
		i := &out.Images[n]
		i.Containers = len(l.users(i.ID))
		t := l.targets[l.names[l.ids[i.ID][0]].Target.Digest]
		for k := range t.spec.RootFS.DiffIDs {
			chain := identity.ChainID(t.spec.RootFS.DiffIDs[:k+1]).String()
			chains[chain] = true
			if i.Containers > 0 {
				used[chain] = true
			}
		}
	}
	for chain := range chains {
		u, err := l.c.SnapshotService(l.sn).Usage(in(ctx), chain)
		if err != nil {
			continue
		}
		out.LayersSize += u.Size
		if !used[chain] {
			out.Reclaimable += u.Size
		}
	}
	return out, nil
}
