package buildkit

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"sync"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"

	"github.com/berth-project/berth/core/build"
	"github.com/berth-project/berth/lib/fault"
)

// BuildKit finds a cache mount by an index of its records: "cache-dir:" and
// the mount's key, which is its namespace, "/" and its id; behind that ":" and
// the record of the files it began with, where it began with any.
const (
	keyCacheDir   = "cache-dir"
	indexCacheDir = keyCacheDir + ":"
)

// based tells apart a key and the record of its base.
var based = regexp.MustCompile(`^(.+):([a-z0-9]{25})$`)

// imported stands in an index for the base of a mount that came from another
// engine: the first step that wants one with its key takes it.
const imported = "imported"

// mountStore is BuildKit's cache with two additions for cache mounts: who
// looks for one waits while it is being copied, and finds those that were
// imported.
type mountStore struct {
	cache.Manager

	mu   sync.Mutex
	held map[string]chan struct{} // by key; closed when let go
}

// Search is what BuildKit looks for records with.
func (s *mountStore) Search(ctx context.Context, index string, prefix bool) ([]cache.RefMetadata, error) {
	key, ok := strings.CutPrefix(index, indexCacheDir)
	if !ok || prefix {
		return s.Manager.Search(ctx, index, prefix)
	}
	m := based.FindStringSubmatch(key)
	plain := key
	if m != nil {
		plain = m[1]
	}
	if err := s.wait(ctx, plain); err != nil {
		return nil, err
	}
	found, err := s.Manager.Search(ctx, index, false)
	if err != nil || len(found) > 0 || m == nil {
		return found, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	waiting, err := s.Manager.Search(ctx, indexCacheDir+plain+":"+imported, false)
	if err != nil || len(waiting) == 0 {
		return nil, err
	}
	if err := setKey(waiting[0], key); err != nil {
		return nil, err
	}
	return waiting[:1], nil
}

// setKey makes a record be found by a key alone; "" by none.
func setKey(r cache.RefMetadata, key string) error {
	if err := r.ClearValueAndIndex(keyCacheDir, indexCacheDir); err != nil || key == "" {
		return err
	}
	return r.SetString(keyCacheDir, key, indexCacheDir+key)
}

func (s *mountStore) wait(ctx context.Context, key string) error {
	for {
		s.mu.Lock()
		c := s.held[key]
		s.mu.Unlock()
		if c == nil {
			return nil
		}
		select {
		case <-c:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// hold keeps steps from the mounts of a key until release is called.
func (s *mountStore) hold(ctx context.Context, key string) (release func(), err error) {
	for {
		if err := s.wait(ctx, key); err != nil {
			return nil, err
		}
		s.mu.Lock()
		if s.held[key] == nil {
			break
		}
		s.mu.Unlock()
	}
	defer s.mu.Unlock()
	if s.held == nil {
		s.held = map[string]chan struct{}{}
	}
	c := make(chan struct{})
	s.held[key] = c
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.held, key)
		close(c)
	}, nil
}

// CacheMounts lists the cache mounts.
func (b *Builder) CacheMounts(ctx context.Context) ([]build.CacheMount, error) {
	if !b.used() {
		return nil, nil
	}
	r, err := b.start()
	if err != nil {
		return nil, err
	}
	return r.worker.mounts.list(quiet(ctx))
}

func (s *mountStore) list(ctx context.Context) ([]build.CacheMount, error) {
	records, err := s.Search(ctx, indexCacheDir, true)
	if err != nil {
		return nil, err
	}
	keys, about := map[string]string{}, map[string]string{}
	for _, r := range records {
		if key := r.GetString(keyCacheDir); key != "" {
			keys[r.ID()], about[r.ID()] = key, r.GetDescription()
		}
	}
	usage, err := s.DiskUsage(ctx, client.DiskUsageInfo{Filter: []string{"type==" + string(client.UsageRecordTypeCacheMount)}})
	if err != nil {
		return nil, err
	}
	list := []build.CacheMount{}
	for _, u := range usage {
		key := keys[u.ID]
		if key == "" {
			continue // nobody finds it again: the next prune takes it
		}
		m := build.CacheMount{
			Key: key, Record: u.ID, Target: targetOf(about[u.ID]), Size: u.Size, InUse: u.InUse, Shared: u.Shared, Created: u.CreatedAt, LastUsed: u.LastUsedAt, Uses: u.UsageCount,
		}
		if part := based.FindStringSubmatch(key); part != nil {
			m.Key, m.HasBase = part[1], true
		} else if plain, ok := strings.CutSuffix(key, ":"+imported); ok {
			m.Key, m.HasBase = plain, true
		}
		m.ID = strings.TrimPrefix(m.Key, "/")
		list = append(list, m)
	}
	return list, nil
}

// describe words a mount as BuildKit does, so that both show alike.
func describe(target, key string) string {
	if target == "" {
		target = "/"
	}
	return "cached mount " + target + " from an import with id \"" + key + "\""
}

// targetOf reads a description of BuildKit: where a step had the mount.
func targetOf(description string) string {
	rest, ok := strings.CutPrefix(description, "cached mount ")
	if !ok {
		return ""
	}
	target, _, ok := strings.Cut(rest, " from ")
	if !ok || target == "/" {
		return ""
	}
	return target
}

// choose gives the mounts of ids, or of records; all where none is given.
func choose(all []build.CacheMount, ids []string) ([]build.CacheMount, error) {
	if len(ids) == 0 {
		return all, nil
	}
	var out []build.CacheMount
	taken := map[string]bool{}
	for _, id := range ids {
		var found []build.CacheMount
		for _, m := range all {
			if m.ID == id || m.Record == id {
				found = append(found, m)
			}
		}
		switch {
		case len(found) == 0:
			return nil, fault.NotFoundf("no such cache mount: %s (berth builder cache ls lists them)", id)
		case len(found) > 1:
			var records []string
			for _, m := range found {
				records = append(records, m.Record)
			}
			return nil, fault.Conflictf("%d cache mounts have the id %s: name one by its record: %s", len(found), id, strings.Join(records, ", "))
		}
		if !taken[found[0].Record] {
			taken[found[0].Record] = true
			out = append(out, found[0])
		}
	}
	return out, nil
}

// lock takes a mount that nobody uses.
func (s *mountStore) lock(ctx context.Context, m build.CacheMount) (cache.MutableRef, error) {
	ref, err := s.GetMutable(ctx, m.Record, cache.NoUpdateLastUsed)
	switch {
	case errors.Is(err, cache.ErrLocked):
		return nil, fault.Conflictf("the cache mount %s is in use by a build: try again when that has ended", m.ID)
	case cache.IsNotFound(err):
		return nil, fault.NotFoundf("no such cache mount: %s", m.ID)
	}
	return ref, err
}
