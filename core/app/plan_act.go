package app

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/berth-project/berth/lib/fault"
)

// order knows which services depend on which: by the model where there is
// one, else by the labels of the containers.
type order map[string]map[string]types.ServiceDependency

func orderOf(o Observed, a *App) order {
	g := order{}
	for _, c := range o.Containers {
		if g[c.Service] == nil {
			g[c.Service] = map[string]types.ServiceDependency{}
		}
		for _, text := range strings.Split(c.Labels[LabelDependsOn], ",") {
			name, rest, _ := strings.Cut(text, ":")
			condition, restart, _ := strings.Cut(rest, ":")
			if name != "" {
				g[c.Service][name] = types.ServiceDependency{Condition: condition, Restart: restart == "true"}
			}
		}
	}
	if a != nil {
		for name, s := range a.Project.Services {
			g[name] = map[string]types.ServiceDependency{}
			for _, dep := range dependencies(s) {
				g[name][dep] = s.DependsOn[dep]
			}
		}
	}
	return g
}

// sorted gives the services, what is depended on first. A circle, which only
// labels of others can have, is cut.
func (g order) sorted() (list []string) {
	seen := map[string]bool{}
	var visit func(name string)
	visit = func(name string) {
		if seen[name] {
			return
		}
		seen[name] = true
		for _, dep := range slices.Sorted(maps.Keys(g[name])) {
			visit(dep)
		}
		list = append(list, name)
	}
	for _, name := range slices.Sorted(maps.Keys(g)) {
		visit(name)
	}
	return list
}

// actor plans steps on containers that are there.
type actor struct {
	planner
	g order
}

func newActor(o Observed, a *App) *actor {
	x := &actor{planner: planner{in: Input{Observed: o}, app: a, out: Plan{App: o.App}, steps: map[string]int{}, stopped: map[string]string{}}, g: orderOf(o, a)}
	x.in.Observed.sort()
	return x
}

// check refuses names that are neither of the file nor of a container.
func (x *actor) check(services []string) error {
	for _, name := range services {
		if _, ok := x.g[name]; !ok {
			return fault.NotFoundf("no such service: %s", name)
		}
	}
	return nil
}

func step(action Action, c ObservedContainer, why string, after ...string) Step {
	return Step{Action: action, Kind: KindContainer, Name: c.Name, Service: c.Service, Number: c.Number, Container: c.ID, Why: why, After: after}
}

func isUp(c ObservedContainer) bool {
	return c.State == "running" || c.State == "restarting" || c.State == "paused"
}

// MakeDown says how to take an application away. a may be nil.
func MakeDown(o Observed, a *App, r DownRequest) (Plan, error) {
	x := newActor(o, a)
	if err := x.check(r.Services); err != nil {
		return Plan{}, err
	}
	known := func(name string) bool {
		if a == nil {
			return true
		}
		_, service := a.Project.Services[name]
		_, job := a.Project.Jobs[name]
		return service || job || a.Project.DisabledServices[name].Name != ""
	}
	var removed []string
	dependents := map[string][]string{} // steps that end what depends on a service
	list := x.g.sorted()
	slices.Reverse(list)
	for _, name := range list {
		var ended []string
		for _, c := range o.Containers {
			if c.Service != name || len(r.Services) > 0 && !slices.Contains(r.Services, name) {
				continue
			}
			if !known(name) && !r.RemoveOrphans {
				x.out.Orphans = append(x.out.Orphans, c.Name)
				continue
			}
			after := slices.Clone(dependents[name])
			if isUp(c) {
				s := step(Stop, c, "it is taken down", after...)
				s.Timeout = r.Timeout
				id := x.add(s)
				ended, after = append(ended, id), []string{id}
			}
			s := step(Remove, c, "it is taken down", after...)
			s.Volumes = r.Volumes || c.OneOff || c.Hook != ""
			id := x.add(s)
			removed = append(removed, id)
			ended = append(ended, id)
		}
		for dep := range x.g[name] {
			dependents[dep] = append(dependents[dep], append(ended, dependents[name]...)...)
		}
	}
	if len(r.Services) > 0 && !r.Volumes {
		return x.out, nil
	}
	if len(r.Services) == 0 {
		for _, n := range x.in.Observed.Networks {
			if n.App == o.App {
				x.add(Step{Action: Remove, Kind: KindNetwork, Name: n.Name, Key: n.Key, Why: "it is taken down", After: removed, Optional: true})
			}
		}
	}
	if r.Volumes {
		for _, v := range x.in.Observed.Volumes {
			if v.App == o.App && (len(r.Services) == 0 || usedOnlyBy(o, v.Name, r.Services)) {
				x.add(Step{Action: Remove, Kind: KindVolume, Name: v.Name, Key: v.Key, Why: "its removal was asked for", After: removed})
			}
		}
	}
	for _, name := range imagesToRemove(a, r, o) {
		x.add(Step{Action: Remove, Kind: KindImage, Name: name, Why: "its removal was asked for", After: removed, Optional: true})
	}
	return x.out, nil
}

func usedOnlyBy(o Observed, volume string, services []string) bool {
	used := false
	for _, c := range o.Containers {
		if slices.Contains(c.Volumes, volume) {
			if !slices.Contains(services, c.Service) {
				return false
			}
			used = true
		}
	}
	return used
}

func imagesToRemove(a *App, r DownRequest, o Observed) (list []string) {
	if a == nil || r.Images == "" {
		return nil
	}
	for name, s := range a.Project.Services {
		if len(r.Services) > 0 && !slices.Contains(r.Services, name) || r.Images == "local" && s.Image != "" {
			continue
		}
		for _, sep := range []string{"-", "_"} {
			ref := ImageName(a.Project.Name, s, sep)
			if _, here := o.Images[ref]; here && !slices.Contains(list, ref) {
				list = append(list, ref)
			}
		}
	}
	slices.Sort(list)
	return list
}

// MakeAct plans one verb on containers that are there. a may be nil.
func MakeAct(o Observed, a *App, verb string, r ActRequest) (Plan, error) {
	x := newActor(o, a)
	if err := x.check(r.Services); err != nil {
		return Plan{}, err
	}
	wanted := func(name string) bool {
		if len(r.Services) > 0 {
			return slices.Contains(r.Services, name)
		}
		// What the file does not have is not meant, unless it is asked for.
		return r.Document == nil || a == nil || r.RemoveOrphans || a.Project.Services[name].Name != ""
	}
	chosen := map[string]bool{}
	for name := range x.g {
		chosen[name] = wanted(name)
	}
	list := x.g.sorted()
	if !r.NoDeps && len(r.Services) > 0 {
		x.widen(chosen, list, verb)
	}
	if verb == "stop" || verb == "kill" || verb == "rm" || verb == "pause" {
		slices.Reverse(list)
	}
	ends := map[string][]string{}
	for _, name := range list {
		if !chosen[name] {
			continue
		}
		var after []string
		switch verb {
		case "start", "restart", "unpause":
			for dep, d := range x.g[name] {
				if len(ends[dep]) > 0 {
					after = append(after, x.condition(dep, name, d, ends[dep])...)
				}
			}
		case "stop":
			for _, other := range list {
				if _, on := x.g[other][name]; on {
					after = append(after, ends[other]...)
				}
			}
		}
		for _, c := range o.Containers {
			if c.Service == name && c.Hook == "" && (!c.OneOff || verb == "kill") {
				ends[name] = append(ends[name], x.act(verb, c, r, after)...)
			}
		}
	}
	return x.out, nil
}

// widen adds what a verb takes with the named services.
func (x *actor) widen(chosen map[string]bool, list []string, verb string) {
	switch verb {
	case "start":
		for _, name := range slices.Backward(list) {
			for dep := range x.g[name] {
				chosen[dep] = chosen[dep] || chosen[name]
			}
		}
	case "restart":
		for _, name := range list {
			for dep, d := range x.g[name] {
				chosen[name] = chosen[name] || chosen[dep] && d.Restart
			}
		}
	}
}

// condition gives the steps after which a dependency is as it is needed.
func (x *actor) condition(dep, name string, d types.ServiceDependency, started []string) []string {
	condition := map[string]string{types.ServiceConditionHealthy: ConditionHealthy, types.ServiceConditionCompletedSuccessfully: ConditionCompleted}[d.Condition]
	if condition == "" || x.app == nil {
		return started
	}
	id := fmt.Sprintf("wait for %s to be %s", dep, condition)
	if _, ok := x.steps[id]; !ok {
		x.add(Step{ID: id, Action: Wait, Kind: KindService, Name: dep, Service: dep, Condition: condition, Optional: !d.Required, Why: name + " depends on it", After: started})
	}
	return []string{id}
}

// act plans the verb on one container.
func (x *actor) act(verb string, c ObservedContainer, r ActRequest, after []string) []string {
	why := verb + " was asked for"
	switch verb {
	case "start":
		if c.State == "created" || c.State == "exited" || c.State == "dead" {
			return []string{x.add(step(Start, c, why, after...))}
		}
	case "stop":
		if isUp(c) {
			s := step(Stop, c, why, after...)
			s.Timeout = r.Timeout
			return []string{x.add(s)}
		}
	case "restart":
		s := step(Restart, c, why, after...)
		s.Timeout = r.Timeout
		return []string{x.add(s)}
	case "pause":
		if c.State == "running" {
			return []string{x.add(step(Pause, c, why, after...))}
		}
	case "unpause":
		if c.State == "paused" {
			return []string{x.add(step(Unpause, c, why, after...))}
		}
	case "kill":
		if isUp(c) {
			s := step(Kill, c, why, after...)
			s.Condition = r.Signal
			return []string{x.add(s)}
		}
	case "rm":
		if isUp(c) && !r.Stop {
			return nil
		}
		if isUp(c) {
			s := step(Stop, c, why, after...)
			s.Timeout = r.Timeout
			after = []string{x.add(s)}
		}
		s := step(Remove, c, why, after...)
		s.Volumes = r.Volumes
		return []string{x.add(s)}
	}
	return nil
}
