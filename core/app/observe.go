package app

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// observe looks at what there is of an application. a says which names count
// besides those with labels; it may be nil.
func (s *Service) observe(ctx context.Context, name string, a *App, sep string) (Observed, error) {
	o := Observed{App: name, Images: map[string]Image{}}
	networks, err := s.o.Networks.List(ctx, nil)
	if err != nil {
		return o, err
	}
	ids := map[string]string{} // of networks, by name and by id
	for _, n := range networks {
		ids[n.Name], ids[n.ID] = n.ID, n.ID
	}
	for _, c := range s.o.Containers.All() {
		if c.Spec.Labels[LabelApp] == name && c.State.Status != container.Removing {
			o.Containers = append(o.Containers, observed(c, ids))
		}
	}
	wanted := map[string]bool{}
	if a != nil {
		for _, n := range a.Project.Networks {
			wanted[n.Name] = true
		}
	}
	for _, n := range networks {
		if n.Labels[LabelApp] == name || wanted[n.Name] || wanted[n.ID] {
			one := ObservedNetwork{ID: n.ID, Name: n.Name, Key: n.Labels[LabelNetwork], App: n.Labels[LabelApp]}
			if one.App == name {
				one.Hash = n.Labels[LabelHash]
			}
			if wanted[n.ID] && !wanted[n.Name] {
				one.Name = n.ID // the file names it by its id
			}
			o.Networks = append(o.Networks, one)
		}
	}
	volumes, err := s.o.Volumes.List(ctx, nil)
	if err != nil {
		return o, err
	}
	clear(wanted)
	if a != nil {
		for _, v := range a.Project.Volumes {
			wanted[v.Name] = true
		}
	}
	for _, v := range volumes {
		if v.Labels[LabelApp] == name || wanted[v.Name] {
			one := ObservedVolume{Name: v.Name, Key: v.Labels[LabelVolume], App: v.Labels[LabelApp]}
			if one.App == name {
				one.Hash = v.Labels[LabelHash]
			}
			o.Volumes = append(o.Volumes, one)
		}
	}
	if a != nil {
		if err := s.observeImages(ctx, a, sep, o.Images); err != nil {
			return o, err
		}
	}
	o.sort()
	return o, nil
}

func (s *Service) observeImages(ctx context.Context, a *App, sep string, into map[string]Image) error {
	look := func(ref, platform string) error {
		if _, done := into[ref]; done || ref == "" {
			return nil
		}
		i, err := s.o.Images.Get(ctx, ref, platform, false)
		switch {
		case errors.Is(err, fault.ErrNotFound):
			return nil
		case err != nil:
			return fmt.Errorf("look for the image %s: %w", ref, err)
		}
		into[ref] = imageOf(i)
		return nil
	}
	for _, name := range a.Project.ServiceNames() {
		v := a.Project.Services[name]
		if err := look(ImageName(a.Project.Name, v, sep), a.platform(v.Platform)); err != nil {
			return err
		}
		for _, m := range v.Volumes {
			if m.Type == container.MountImage {
				if err := look(m.Source, ""); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (a *App) platform(own string) string {
	if own != "" {
		return own
	}
	return a.Project.Environment["DOCKER_DEFAULT_PLATFORM"]
}

func observed(c container.Container, networks map[string]string) ObservedContainer {
	l := c.Spec.Labels
	o := ObservedContainer{
		ID: string(c.ID), Name: c.Name, Service: l[LabelService], OneOff: l[LabelOneOff] == "True", Hook: l[LabelHook], Hash: l[LabelHash], Image: l[LabelImage], ImageID: c.ImageID, ImageVolumes: l[LabelImageVolumes],
		State: string(c.State.Status), ExitCode: c.State.ExitCode, Created: c.Created, Labels: l,
	}
	o.Number, _ = strconv.Atoi(l[LabelNumber])
	if c.State.Health != nil {
		o.Health = c.State.Health.Status
	}
	if live := isUp(o); live && c.State.Status != container.Restarting {
		for _, e := range c.State.Endpoints {
			o.Networks = append(o.Networks, e.NetworkID)
		}
		o.Unpublished = slices.ContainsFunc(c.Spec.Publish, func(p container.Publish) bool { return !leadsTo(c, p) })
	} else {
		wanted := c.Spec.Endpoints
		if len(wanted) == 0 && !c.Spec.OffNetworks {
			wanted = []container.EndpointSpec{{Network: c.Spec.NetworkMode}}
		}
		for _, e := range wanted {
			if id, ok := networks[e.Network]; ok {
				o.Networks = append(o.Networks, id)
			}
		}
	}
	for _, m := range c.Mounts {
		if m.Type == container.MountVolume {
			o.Volumes = append(o.Volumes, m.Name)
		}
	}
	for _, p := range c.Spec.Publish {
		o.Ports = append(o.Ports, fmt.Sprintf("%s:%d/%s", p.HostIPText, p.HostPort, p.Proto))
	}
	return o
}

// leadsTo tells whether a port that was asked for is published.
func leadsTo(c container.Container, p container.Publish) bool {
	return slices.ContainsFunc(c.State.Ports, func(b container.Binding) bool {
		return b.Port == p.Port && (p.HostPort == 0 || b.HostPort >= p.HostPort && b.HostPort <= max(p.HostPort, p.HostPortEnd))
	})
}

// List gives all applications there are, or that are wanted.
func (s *Service) List(ctx context.Context) ([]Summary, error) {
	all := map[string]*Summary{}
	get := func(name string) *Summary {
		if all[name] == nil {
			all[name] = &Summary{Name: name, Status: map[string]int{}}
		}
		return all[name]
	}
	for _, c := range s.o.Containers.All() {
		name := c.Spec.Labels[LabelApp]
		if name == "" || c.Spec.Labels[LabelOneOff] == "True" {
			continue
		}
		v := get(name)
		v.Status[string(c.State.Status)]++
		v.WorkingDir = c.Spec.Labels[LabelWorkingDir]
		for _, f := range strings.Split(c.Spec.Labels[LabelConfigFiles], ",") {
			if f != "" && !slices.Contains(v.ConfigFiles, f) {
				v.ConfigFiles = append(v.ConfigFiles, f)
			}
		}
	}
	s.mu.Lock()
	for name, r := range s.records {
		if r.Current > 0 {
			v := get(name)
			v.Managed, v.Revision = true, r.Current
		}
	}
	for _, o := range s.operations {
		if v := all[o.App]; v != nil && o.running() {
			v.Operation = o.ID
		}
	}
	s.mu.Unlock()
	list := make([]Summary, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		slices.Sort(all[name].ConfigFiles)
		list = append(list, *all[name])
	}
	return list, ctx.Err()
}

// Inspect gives one application: what is wanted and what there is.
func (s *Service) Inspect(ctx context.Context, name string) (Details, error) {
	d := Details{Summary: Summary{Name: name, Status: map[string]int{}}}
	list, err := s.List(ctx)
	if err != nil {
		return d, err
	}
	at := slices.IndexFunc(list, func(v Summary) bool { return v.Name == name })
	if at >= 0 {
		d.Summary = list[at]
	}
	r, known := s.record(name)
	var a *App
	if known && r.Current > 0 {
		rev, err := s.revision(ctx, name, r.Current)
		if err != nil {
			return d, err
		}
		d.Document = rev.Document
		if a, err = rev.Document.App(); err != nil {
			return d, err
		}
	}
	o, err := s.observe(ctx, name, a, separator(r.Compatibility))
	if err != nil {
		return d, err
	}
	if at < 0 && !known && len(o.Networks)+len(o.Volumes) == 0 {
		return d, fault.NotFoundf("no such application: %s (see `berth compose ls --all`)", name)
	}
	d.Observed = &o
	if a != nil {
		drift, err := MakePlan(Input{App: a, Observed: o, Policy: Policy{Services: existing(a, r.Services), Compatibility: r.Compatibility}, Apart: r.Apart, Now: time.Now(), Repair: true})
		if err == nil && !drift.Empty() {
			d.Drift = &drift
		}
		d.Jobs = s.jobStates(a)
	}
	return d, nil
}

// existing keeps the names that are services.
func existing(a *App, names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { _, ok := a.Project.Services[n]; return !ok })
}
