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
func (s *Service) Get(_ context.Context, name string) (Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.find(name)
}

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
		return given && dangling != (len(s.users(v.Name)) == 0) || !f.Exact("driver", v.Driver) || !f.Labels("label", v.Labels) ||
			len(f["name"]) > 0 && !slices.ContainsFunc(f["name"], func(n string) bool { return strings.Contains(v.Name, n) })
	})
	slices.SortFunc(all, func(a, b Volume) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// Usage is List with sizes and reference counts.
func (s *Service) Usage(ctx context.Context) ([]Volume, error) {
	all, err := s.List(ctx, nil)
	if err != nil {
		return nil, err
	}
	for i := range all {
		all[i].RefCount = len(s.users(all[i].Name))
		d, _, err := s.driver(all[i].Driver)
		if err != nil {
			continue
		}
		if all[i].Size, err = d.Size(ctx, all[i]); err != nil {
			all[i].Size = -1
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
	all, err := s.Usage(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, v := range all {
		if v.RefCount > 0 || !every && !v.Anonymous || !f.Labels("label", v.Labels) || len(f["label!"]) > 0 && f.Labels("label!", v.Labels) {
			continue
		}
		if err := s.Remove(ctx, v.Name); err != nil {
			s.o.Logger.Warn("volume not pruned", "volume", v.Name, "error", err)
			continue
		}
		removed = append(removed, v.Name)
		reclaimed += max(v.Size, 0)
	}
	s.publish("prune", Volume{}, "reclaimed", fmt.Sprint(reclaimed))
	return removed, reclaimed, nil
}

var _ container.Volumes = (*Service)(nil)
