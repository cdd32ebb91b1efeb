package containerd

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"

	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/lib/fault"
)

// Words of attestations (BuildKit, "Image attestation storage").
const (
	attestationFor = "vnd.docker.reference.digest" // annotation: the manifest it speaks of
	predicateType  = "in-toto.io/predicate-type"   // annotation of a statement
)

// exact finds the image of one platform among those of an index.
func (t *target) exact(ref, platform string) (*target, error) {
	want, err := platforms.Parse(platform)
	if err != nil {
		return nil, fault.Invalidf("%w", err)
	}
	matcher := platforms.OnlyStrict(want)
	for _, o := range append([]*target{t}, t.others...) {
		if matcher.Match(o.platform()) {
			return o, nil
		}
	}
	return nil, fault.NotFoundf("image with reference %s was found but does not provide the specified platform (%s)", ref, platforms.FormatAll(want))
}

// removePlatforms deletes what an index has for some platforms. The name stays
// with the rest; with the last platform the whole image goes.
func (l *Library) removePlatforms(ctx context.Context, ref string, force bool, wanted []string) ([]image.RemoveResult, error) {
	_, whole, err := l.find(ref)
	if err != nil {
		return nil, err
	}
	var list []*target
	for _, p := range wanted {
		t, err := whole.exact(ref, p)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(list, t) {
			list = append(list, t)
		}
	}
	if len(list) == 1+len(whole.others) {
		return l.Remove(ctx, ref, force, true, nil)
	}
	for _, t := range list {
		for _, u := range l.users(t.id) {
			if u.Running || !force {
				return nil, fault.Conflictf("conflict: unable to delete platform %s of %s - container %s is using it", platforms.FormatAll(t.platform()), ref, u.ID.Short())
			}
		}
		if other := l.sharer(whole, t.manifest.Digest); other != "" {
			return nil, fault.Conflictf("conflict: unable to delete platform %s of %s - image %s has the same content", platforms.FormatAll(t.platform()), ref, other)
		}
	}
	ctx = in(ctx)
	results, err := l.dropManifests(ctx, whole, list)
	if err != nil {
		return results, err
	}
	return results, l.collect(ctx)
}

func (l *Library) dropManifests(ctx context.Context, whole *target, list []*target) (results []image.RemoveResult, err error) {
	l.changing.Lock()
	defer l.changing.Unlock()
	for _, t := range list {
		// The rest of it is found by the collector: nothing else names it.
		if err := l.c.ContentStore().Delete(ctx, t.manifest.Digest); err != nil && !errdefs.IsNotFound(err) {
			return results, err
		}
		results = append(results, image.RemoveResult{Deleted: t.manifest.Digest.String()})
		l.publish("delete", t.id, t, t.id)
	}
	rest, err := l.resolve(ctx, whole.desc)
	if err != nil {
		return results, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range slices.Clone(l.ids[whole.id]) {
		if e := l.names[name]; e.Target.Digest == whole.desc.Digest {
			l.drop(name)
			defer l.put(e, rest) // once all are dropped: the target goes with its last name
		}
	}
	return results, nil
}

// sharer names another image that has a manifest too, "" where none has.
func (l *Library) sharer(whole *target, manifest digest.Digest) string {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, t := range l.targets {
		if t.desc.Digest == whole.desc.Digest {
			continue
		}
		for _, o := range append([]*target{t}, t.others...) {
			if o.manifest.Digest == manifest {
				return short(digest.Digest(t.id))
			}
		}
	}
	return ""
}

// Attestations lists the in-toto statements that came with an image of a
// platform ("": this host's), of the predicate types asked for (none: all).
// Their texts are read where whole is true.
func (l *Library) Attestations(ctx context.Context, ref, platform string, types []string, whole bool) ([]image.Attestation, error) {
	_, index, err := l.find(ref)
	if err != nil {
		return nil, err
	}
	t, err := index.pick(ref, platform)
	if err != nil {
		return nil, err
	}
	ctx = in(ctx)
	cs := l.c.ContentStore()
	list := []image.Attestation{}
	for _, a := range index.absent {
		if !a.here || a.desc.Annotations[attestationFor] != t.manifest.Digest.String() {
			continue
		}
		b, err := readBlob(ctx, cs, a.desc)
		if err != nil {
			return nil, err
		}
		m, err := readManifest(b, a.desc.MediaType)
		if err != nil {
			return nil, err
		}
		for _, d := range m.Layers {
			one := image.Attestation{Descriptor: descriptor(d), PredicateType: d.Annotations[predicateType]}
			if one.PredicateType == "" || len(types) > 0 && !slices.Contains(types, one.PredicateType) {
				continue
			}
			if whole {
				if one.Statement, err = readBlob(ctx, cs, d); err != nil {
					return nil, err
				}
				if !json.Valid(one.Statement) {
					return nil, fault.Invalidf("attestation %s of %s is not JSON", d.Digest, ref)
				}
			}
			list = append(list, one)
		}
	}
	return list, nil
}
