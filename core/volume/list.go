package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/filter"
	"github.com/berth-project/berth/lib/fault"
)

// Volumes is the Docker door's view of the service: Remove has a force there.
type Volumes struct{ *Service }

// Remove takes a volume away; with force one that is not there is no error.
func (v Volumes) Remove(ctx context.Context, name string, force bool) error {
	err := v.Service.Remove(ctx, name)
	if force && errors.Is(err, fault.ErrNotFound) {
		return nil
	}
	return err
}

// Get gives one volume.
func (s *Service) Get(_ context.Context, name string) (Volume, error) { return s.find(name) }

// List gives the volumes that pass the filters, by name.
func (s *Service) List(_ context.Context, f filter.Args) ([]Volume, error) {
	if err := f.Check("dangling", "driver", "label", "name"); err != nil {
		return nil, err
	}
	dangling, given, err := f.Bool("dangling")
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	all := make([]Volume, 0, len(s.byName))
	for _, v := range s.byName {
		all = append(all, v)
	}
	s.mu.Unlock()
	all = slices.DeleteFunc(all, func(v Volume) bool {
		return !f.Exact("driver", v.Driver) || !f.Labels("label", v.Labels) || !f.Match("name", v.Name) ||
			given && dangling != (len(s.usersOf(v.Name)) == 0)
	})
	slices.SortFunc(all, func(a, b Volume) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// size fills in a volume's bytes; -1 where they cannot be known.
func (s *Service) size(ctx context.Context, v *Volume) error {
	v.Size = -1
	d, err := s.driver(v.Driver)
	if err != nil {
		return nil
	}
	n, err := d.Size(ctx, *v)
	if err == nil {
		v.Size = n
	}
	return ctx.Err()
}

// Usage is List with sizes and reference counts.
func (s *Service) Usage(ctx context.Context) ([]Volume, error) {
	all, err := s.List(ctx, nil)
	if err != nil {
		return nil, err
	}
	for i := range all {
		all[i].RefCount = len(s.usersOf(all[i].Name))
		if err := s.size(ctx, &all[i]); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Prune removes volumes that nobody uses: anonymous ones, or with the filter all=true every one.
func (s *Service) Prune(ctx context.Context, f filter.Args) (removed []string, reclaimed int64, err error) {
	if err := f.Check("label", "label!", "all"); err != nil {
		return nil, 0, err
	}
	every, _, err := f.Bool("all")
	if err != nil {
		return nil, 0, err
	}
	all, err := s.List(ctx, nil)
	if err != nil {
		return nil, 0, err
	}
	for _, v := range all {
		if !every && !v.Anonymous || !f.Labels("label", v.Labels) || len(f["label!"]) > 0 && f.Labels("label!", v.Labels) || len(s.usersOf(v.Name)) > 0 {
			continue
		}
		if err := s.size(ctx, &v); err != nil {
			return removed, reclaimed, err
		}
		if err := s.Remove(ctx, v.Name); err != nil {
			if !errors.Is(err, fault.ErrConflict) && !errors.Is(err, fault.ErrNotFound) {
				s.o.Logger.Warn("volume not pruned", "volume", v.Name, "error", err)
			}
			continue
		}
		removed = append(removed, v.Name)
		reclaimed += max(v.Size, 0)
	}
	s.publish("prune", Volume{}, "reclaimed", fmt.Sprint(reclaimed))
	return removed, reclaimed, nil
}

var _ container.Volumes = (*Service)(nil)
