package containerd

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/berth-project/berth/core/event"
	"github.com/berth-project/berth/core/filter"
	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/lib/fault"
)

// parseTag reads a reference that is to be given to an image.
func parseTag(ref string) (string, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", fault.Invalidf("invalid reference format: %w", err)
	}
	if _, ok := named.(reference.Digested); ok {
		return "", fault.Invalidf("refusing to create a tag with a digest reference")
	}
	return reference.TagNameOnly(named).String(), nil
}

// Tag gives an image one more name.
func (l *Library) Tag(ctx context.Context, source, to string) error {
	name, err := parseTag(to)
	if err != nil {
		return err
	}
	_, t, err := l.find(source)
	if err != nil {
		return err
	}
	if err := l.name(ctx, name, t.nameable(), nil); err != nil {
		return err
	}
	l.publish("tag", t.id, t, familiar(name))
	return nil
}

// nameable is what a new name of a target points at: what its own name does,
// or its manifest alone where it is a further platform of an index.
func (t *target) nameable() ocispecDescriptor {
	d := t.desc
	if t.variant {
		d = t.manifest
	}
	d.Annotations, d.Platform = nil, nil
	return d
}

// single tells whether names are at most one tag, with digests of its repository.
func (l *Library) single(names []string) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	tags, repos := 0, map[string]bool{}
	for _, n := range names {
		e := l.names[n]
		if e == nil || e.tag == "" && e.digest == "" {
			continue
		}
		if repos[e.repo] = true; e.tag != "" {
			tags++
		}
	}
	return tags < 2 && len(repos) < 2
}

// Remove takes a name away, and the image with its last name. Without force
// an image that containers use stays, and one of several names does not go by
// its id.
func (l *Library) Remove(ctx context.Context, ref string, force, _ bool, platforms []string) ([]image.RemoveResult, error) {
	if len(platforms) > 0 {
		return l.removePlatforms(ctx, ref, force, platforms)
	}
	name, t, err := l.find(ref)
	if err != nil {
		return nil, err
	}
	ctx = in(ctx)
	l.mu.RLock()
	names := slices.Clone(l.ids[t.id])
	l.mu.RUnlock()
	users := l.usersOf(t)
	short := short(digest.Digest(t.id))
	single := l.single(names)
	if name != "" {
		if !force && single && len(users) > 0 {
			return nil, fault.Conflictf("conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s", ref, users[0].ID.Short(), short)
		}
		gone := []string{name}
		if single {
			gone = names
		}
		// Of a used image only the name goes: its containers can be committed and listed still.
		return l.remove(ctx, t, gone, len(users) > 0)
	}
	if n := slices.IndexFunc(users, func(u User) bool { return u.Running }); n >= 0 {
		return nil, fault.Conflictf("conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", short, users[n].ID.Short())
	}
	switch {
	case force:
	case !single:
		return nil, fault.Conflictf("conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", short)
	case len(users) > 0:
		return nil, fault.Conflictf("conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", short, users[0].ID.Short())
	}
	return l.remove(ctx, t, names, false)
}

// usersOf lists containers of an image, of any platform of its index.
func (l *Library) usersOf(t *target) []User {
	users := l.users(t.id)
	for _, o := range t.others {
		users = append(users, l.users(o.id)...)
	}
	return users
}

// remove deletes names. Where those were the last, the image goes with them,
// or stays without a name where keep is true.
func (l *Library) remove(ctx context.Context, t *target, names []string, keep bool) ([]image.RemoveResult, error) {
	results, gone, err := l.untag(ctx, t, names, keep)
	if err != nil || !gone {
		return results, err
	}
	results = append(results, image.RemoveResult{Deleted: t.id})
	l.publish("delete", t.id, t, t.id)
	for _, c := range l.unshared(t) {
		results = append(results, image.RemoveResult{Deleted: c.String()})
	}
	return results, l.collect(ctx)
}

func (l *Library) untag(ctx context.Context, t *target, names []string, keep bool) (results []image.RemoveResult, gone bool, err error) {
	l.changing.Lock()
	defer l.changing.Unlock()
	l.mu.RLock()
	last := len(l.ids[t.id]) <= len(names)
	entries := make([]*entry, 0, len(names))
	for _, n := range names {
		if e := l.names[n]; e != nil {
			entries = append(entries, e)
		}
	}
	l.mu.RUnlock()
	for n, e := range entries {
		if keep && last && n == len(entries)-1 && (e.tag != "" || e.digest != "") {
			orphan, err := l.orphan(ctx, e)
			if err != nil {
				return results, false, err
			}
			if err := l.reload(ctx, orphan); err != nil {
				return results, false, err
			}
		}
		if err := l.c.ImageService().Delete(ctx, e.Name); err != nil && !errdefs.IsNotFound(err) {
			return results, false, err
		}
		if err := l.reload(ctx, e.Name); err != nil {
			return results, false, err
		}
		shown := e.tag
		if shown == "" {
			shown = e.digest
		}
		if shown != "" {
			results = append(results, image.RemoveResult{Untagged: shown})
			l.publish("untag", t.id, t, shown)
		}
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	return results, len(l.ids[t.id]) == 0, nil
}

// unshared lists the layers, topmost first, that no image has now.
func (l *Library) unshared(t *target) []digest.Digest {
	l.mu.RLock()
	defer l.mu.RUnlock()
	kept := map[digest.Digest]bool{}
	for _, o := range l.all() {
		for _, c := range o.chains {
			kept[c] = true
		}
	}
	list := slices.DeleteFunc(slices.Clone(t.chains), func(c digest.Digest) bool { return kept[c] })
	slices.Reverse(list)
	return list
}

// collect frees what nothing names any more, so that the space is there when
// the answer comes: containerd collects before a lease's removal returns.
func (l *Library) collect(ctx context.Context) error {
	ctx = in(context.WithoutCancel(ctx))
	service := l.c.LeasesService()
	lease, err := service.Create(ctx, leases.WithRandomID())
	if err != nil {
		return err
	}
	return service.Delete(ctx, lease, leases.SynchronousDelete)
}

// Prune removes images that no container uses: those without a name, or with
// the filter dangling=false all of them.
func (l *Library) Prune(ctx context.Context, f filter.Args) ([]image.RemoveResult, int64, error) {
	if err := f.Check("dangling", "label", "label!", "until"); err != nil {
		return nil, 0, err
	}
	only, given, err := f.Bool("dangling")
	if err != nil {
		return nil, 0, err
	}
	rest := filter.Args{}
	for k, v := range f {
		if k != "dangling" {
			rest[k] = v
		}
	}
	list, err := l.List(ctx, image.ListOptions{Filters: rest})
	if err != nil {
		return nil, 0, err
	}
	before, err := l.Usage(ctx)
	if err != nil {
		return nil, 0, err
	}
	ctx = in(ctx)
	all := []image.RemoveResult{}
	for _, i := range list {
		if ctx.Err() != nil {
			return all, 0, ctx.Err()
		}
		_, t, err := l.find(i.ID)
		if err != nil || (!given || only) && len(i.RepoTags)+len(i.RepoDigests) > 0 || len(l.usersOf(t)) > 0 {
			continue
		}
		l.mu.RLock()
		names := slices.Clone(l.ids[i.ID])
		l.mu.RUnlock()
		results, gone, err := l.untag(ctx, t, names, false)
		all = append(all, results...)
		if err != nil {
			l.o.Logger.Warn("image not pruned", "image", i.ID, "error", err)
			continue
		}
		if gone {
			all = append(all, image.RemoveResult{Deleted: t.id})
			l.publish("delete", t.id, t, t.id)
			for _, c := range l.unshared(t) {
				all = append(all, image.RemoveResult{Deleted: c.String()})
			}
		}
	}
	if err := l.collect(ctx); err != nil {
		return all, 0, err
	}
	after, err := l.Usage(ctx)
	if err != nil {
		return all, 0, err
	}
	freed := max(0, before.LayersSize-after.LayersSize) // others may have added some meanwhile
	if l.o.Events != nil {
		l.o.Events.Publish(event.Event{Type: "image", Action: "prune", Attributes: map[string]string{"reclaimed": fmt.Sprint(freed)}})
	}
	return all, freed, nil
}

// referenceOf gives a name as people write it, "" for a dangling one.
func referenceOf(name string) string {
	if strings.HasPrefix(name, danglingPrefix) {
		return ""
	}
	return familiar(name)
}
