package container

import (
	"context"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth/core/filter"
	"github.com/berth-project/berth/lib/fault"
)

var listFilters = []string{
	"ancestor", "annotation", "before", "expose", "exited", "health", "id", "is-task", "isolation", "label", "name", "network", "publish", "since", "status", "volume",
}

// List gives the containers that pass the filters, newest first.
func (s *Service) List(ctx context.Context, o ListOptions) ([]Summary, error) {
	match, err := s.matcher(ctx, o.Filters)
	if err != nil {
		return nil, err
	}
	all := o.All || o.Limit > 0 || len(o.Filters["status"]) > 0 || len(o.Filters["exited"]) > 0
	s.mu.RLock()
	list := make([]*Container, 0, len(s.byID)) // not copied: of many only some are wanted
	for _, e := range s.byID {
		list = append(list, e.snap.Load())
	}
	s.mu.RUnlock()
	slices.SortFunc(list, func(a, b *Container) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(string(a.ID), string(b.ID))
	})
	list = slices.DeleteFunc(list, func(c *Container) bool { return !all && !c.isRunning() || !match(*c) })
	out := make([]Summary, 0, len(list))
	for _, c := range list {
		one := Summary{Container: *c, SizeRw: -1, SizeRootFs: -1}
		if o.Size {
			if one.SizeRw, one.SizeRootFs, err = s.o.RootFS.Usage(ctx, c.ID); err != nil {
				continue // it went away
			}
		}
		out = append(out, one)
		if o.Limit > 0 && len(out) == o.Limit {
			break
		}
	}
	return out, nil
}

// matcher reads the filters once.
func (s *Service) matcher(ctx context.Context, f filter.Args) (func(Container) bool, error) {
	if err := f.Check(listFilters...); err != nil {
		return nil, err
	}
	for _, v := range f["status"] {
		switch Status(v) {
		case Created, Running, Paused, Restarting, Removing, Exited, Dead:
		default:
			return nil, fault.Invalidf("invalid filter 'status=%s'", v)
		}
	}
	var codes []int
	for _, v := range f["exited"] {
		n, err := strconv.Atoi(v)
		if err != nil {
			return nil, fault.Invalidf("invalid filter 'exited=%s'", v)
		}
		codes = append(codes, n)
	}
	for _, v := range f["health"] {
		if !slices.Contains([]string{"none", "starting", "healthy", "unhealthy"}, v) {
			return nil, fault.Invalidf("invalid filter 'health=%s'", v)
		}
	}
	task, isTask, err := f.Bool("is-task")
	if err != nil {
		return nil, err
	}
	bound := func(name string) (at time.Time, err error) {
		for _, ref := range f[name] {
			e, err := s.find(ref)
			if err != nil {
				return at, err
			}
			at = e.snap.Load().Created
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
	ancestors := s.ancestors(ctx, f["ancestor"])
	ports := map[string][]portRange{}
	for _, name := range []string{"publish", "expose"} {
		for _, v := range f[name] {
			r, err := parsePortRange(v)
			if err != nil {
				return nil, err
			}
			ports[name] = append(ports[name], r)
		}
	}
	names, err := patterns(f["name"])
	if err != nil {
		return nil, err
	}
	return func(c Container) bool {
		health := "none"
		if c.State.Health != nil {
			health = c.State.Health.Status
		}
		switch {
		case !f.Prefix("id", string(c.ID)), !f.Labels("label", c.Spec.Labels), !f.Labels("annotation", c.Spec.Annotations), !f.Exact("status", string(c.State.Status)), !f.Exact("health", health),
			len(codes) > 0 && (c.State.Status != Exited && c.State.Status != Dead || !slices.Contains(codes, c.State.ExitCode)),
			isTask && task, !before.IsZero() && !c.Created.Before(before), !since.IsZero() && !c.Created.After(since),
			len(names) > 0 && !slices.ContainsFunc(names, func(r *regexp.Regexp) bool {
				return r.MatchString("/"+c.Name) || r.MatchString(c.Name)
			}),
			len(f["ancestor"]) > 0 && !ancestors[c.ImageID] && !slices.Contains(f["ancestor"], c.Spec.Image),
			len(f["volume"]) > 0 && !slices.ContainsFunc(f["volume"], func(v string) bool { return usesVolume(c, v) }),
			len(f["network"]) > 0 && !slices.ContainsFunc(f["network"], func(v string) bool { return onNetwork(c, v) }),
			len(ports["publish"]) > 0 && !slices.ContainsFunc(c.State.Ports, func(b Binding) bool {
				return slices.ContainsFunc(ports["publish"], func(r portRange) bool {
					return r.has(b.Port.Number, b.Proto) || r.has(b.HostPort, b.Proto)
				})
			}),
			len(ports["expose"]) > 0 && !slices.ContainsFunc(c.Spec.Expose, func(p Port) bool {
				return slices.ContainsFunc(ports["expose"], func(r portRange) bool { return r.has(p.Number, p.Proto) })
			}):
			return false
		}
		return true
	}, nil
}

func patterns(values []string) ([]*regexp.Regexp, error) {
	var list []*regexp.Regexp
	for _, v := range values {
		r, err := regexp.Compile(v)
		if err != nil {
			r = regexp.MustCompile(regexp.QuoteMeta(v))
		}
		list = append(list, r)
	}
	return list, nil
}

func (s *Service) ancestors(ctx context.Context, refs []string) map[string]bool {
	found := map[string]bool{}
	for _, ref := range refs {
		if i, err := s.o.Images.Resolve(ctx, ref, ""); err == nil {
			found[i.ID] = true
		}
	}
	return found
}

func usesVolume(c Container, v string) bool {
	return slices.ContainsFunc(c.Mounts, func(m MountPoint) bool {
		return m.Name == v || m.Destination == v || m.Type == MountBind && m.Source == v
	})
}

func onNetwork(c Container, v string) bool {
	if slices.ContainsFunc(c.State.Endpoints, func(e Endpoint) bool { return e.NetworkName == v || strings.HasPrefix(e.NetworkID, v) }) {
		return true
	}
	mode := c.Spec.NetworkMode
	if mode == "default" {
		mode = "bridge"
	}
	return mode == v || slices.ContainsFunc(c.Spec.Endpoints, func(e EndpointSpec) bool { return e.Network == v })
}

type portRange struct {
	first, last uint16
	proto       string
}

func (r portRange) has(n uint16, proto string) bool {
	return n >= r.first && n <= r.last && (r.proto == "" || r.proto == proto)
}

func parsePortRange(text string) (r portRange, err error) {
	ports, proto, _ := strings.Cut(text, "/")
	first, last, ranged := strings.Cut(ports, "-")
	if !ranged {
		last = first
	}
	a, err1 := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || b < a {
		return r, fault.Invalidf("invalid port specification: %s", text)
	}
	return portRange{uint16(a), uint16(b), proto}, nil
}
