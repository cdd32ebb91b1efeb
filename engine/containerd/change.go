package containerd

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"

	"github.com/berth-project/berth/core/filter"
	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/lib/fault"
)

func parseFloat(s string, to *float64) (int, error) {
	v, err := strconv.ParseFloat(s, 64)
	*to = v
	return 0, err
}

// parseTag reads a reference that is to be given to an image.
func parseTag(ref string) (string, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", fault.Invalidf("%w", err)
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
	if err := l.name(ctx, name, t.desc); err != nil {
		return err
	}
	l.publish("tag", t.id, map[string]string{"name": familiar(name)})
	return nil
}

// Remove takes a name away, and the image with its last name. Without force
// an image that containers use stays, as does one of several names asked for by id.
func (l *Library) Remove(ctx context.Context, ref string, force, prune bool, platforms []string) ([]image.RemoveResult, error) {
	if len(platforms) > 0 {
		return nil, fault.Unsupportedf("removing single platforms of an image is not supported")
	}
	name, t, err := l.find(ref)
	if err != nil {
		return nil, err
	}
	l.mu.RLock()
	names := slices.Clone(l.ids[t.id])
	l.mu.RUnlock()
	users := l.users(t.id)
	short := strings.TrimPrefix(t.id, "sha256:")[:12]
	running := slices.IndexFunc(users, func(u User) bool { return u.Running })

	if name != "" {
		if len(names) == 1 && len(users) > 0 {
			if running >= 0 && force || !force {
				u := users[max(running, 0)]
				verb := "is using"
				if u.Running {
					if force {
						return nil, fault.Conflictf("conflict: unable to remove repository reference %q (cannot be forced) - container %s %s its referenced image %s", familiar(ref), u.ID.Short(), verb, short)
					}
				}
				return nil, fault.Conflictf("conflict: unable to remove repository reference %q (must force) - container %s %s its referenced image %s", familiar(ref), u.ID.Short(), verb, short)
			}
		}
		return l.remove(ctx, t, []string{name}, len(names) == 1 && len(users) == 0, force && len(names) == 1)
	}
	tagged := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return strings.HasPrefix(n, danglingPrefix) })
	if running >= 0 {
		return nil, fault.Conflictf("conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", short, users[running].ID.Short())
	}
	if !force {
		repos := map[string]bool{}
		for _, n := range tagged {
			if named, err := reference.ParseNormalizedNamed(n); err == nil {
				repos[named.Name()] = true
			}
		}
		if len(repos) > 1 {
			return nil, fault.Conflictf("conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", short)
		}
		if len(users) > 0 {
			return nil, fault.Conflictf("conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", short, users[0].ID.Short())
		}
	}
	return l.remove(ctx, t, names, true, true)
}

// remove deletes names; last says that the image goes with them.
func (l *Library) remove(ctx context.Context, t *target, names []string, last, keepNone bool) ([]image.RemoveResult, error) {
	l.changing.Lock()
	defer l.changing.Unlock()
	ctx = in(ctx)
	l.mu.RLock()
	all := len(l.ids[t.id])
	l.mu.RUnlock()
	gone := last && all == len(names)
	if all == len(names) && !gone && !keepNone {
		gone = true
	}
	var results []image.RemoveResult
	for i, n := range names {
		var opts []images.DeleteOpt
		if gone && i == len(names)-1 {
			opts = append(opts, images.SynchronousDelete()) // the space is free when the answer comes
		}
		if err := l.c.ImageService().Delete(ctx, n, opts...); err != nil && !errdefs.IsNotFound(err) {
			return results, err
		}
		if !strings.HasPrefix(n, danglingPrefix) {
			results = append(results, image.RemoveResult{Untagged: familiar(n)})
			l.publish("untag", t.id, map[string]string{"name": familiar(n)})
		}
	}
	if err := l.refresh(ctx); err != nil {
		return results, err
	}
	l.mu.RLock()
	left := len(l.ids[t.id])
	l.mu.RUnlock()
	if left == 0 {
		results = append(results, image.RemoveResult{Deleted: t.id})
		l.publish("delete", t.id, map[string]string{"name": t.id})
	}
	return results, nil
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
	var all []image.RemoveResult
	for _, i := range list {
		if ctx.Err() != nil {
			return all, 0, ctx.Err()
		}
		if (!given || only) && len(i.RepoTags) > 0 || len(l.users(i.ID)) > 0 {
			continue
		}
		results, err := l.Remove(ctx, i.ID, true, true, nil)
		if err != nil {
			l.o.Logger.Warn("image not pruned", "image", i.ID, "error", err)
			continue
		}
		all = append(all, results...)
	}
	after, err := l.Usage(ctx)
	if err != nil {
		return all, 0, err
	}
	l.publish("prune", "", map[string]string{"reclaimed": fmt.Sprint(before.LayersSize - after.LayersSize)})
	return all, before.LayersSize - after.LayersSize, nil
}
