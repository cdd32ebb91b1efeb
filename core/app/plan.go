package app

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/berth-project/berth/lib/fault"
)

// Input is all that a plan is made from.
type Input struct {
	App      *App
	Observed Observed
	Policy   Policy
	Fresh    map[string]bool // images that this operation has fetched or built already
	Settled  map[string]bool // containers (ids) that this operation has made, where all are recreated
	Apart    []Apart         // containers to be put back on networks
	Now      time.Time       // for pull policies that look at the age of an image
	Repair   bool            // only what is missing: what has ended stays so
}

// MakePlan says how to come from what is observed to what is wanted. It is
// pure: it reads nothing but its input, and equal inputs give equal plans.
func MakePlan(in Input) (Plan, error) {
	p := &planner{in: in, app: in.App, project: in.App.Project, sep: separator(in.Policy.Compatibility), out: Plan{App: in.App.Project.Name},
		networks: map[string]netState{}, volumes: map[string]volState{}, byService: map[string][]ObservedContainer{}, hooks: map[string][]ObservedContainer{},
		selected: map[string]bool{}, explicit: map[string]bool{}, ends: map[string][]string{}, waits: map[string]string{}, images: map[string]string{},
		later: map[string]bool{}, recreated: map[string]bool{}, stopped: map[string]string{}, steps: map[string]int{}, active: map[string]bool{}, gone: map[string][]string{}, freed: map[string]string{}, leaving: map[string][]string{}, joins: map[string][]string{}}
	p.in.Observed = in.Observed
	p.in.Observed.Containers, p.in.Observed.Networks, p.in.Observed.Volumes = slices.Clone(in.Observed.Containers), slices.Clone(in.Observed.Networks), slices.Clone(in.Observed.Volumes)
	p.in.Observed.sort()
	if err := p.make(); err != nil {
		return Plan{}, err
	}
	return p.out, nil
}

type netState struct {
	id, name string
	step     string // that makes it
}

type volState struct {
	name string
	step string
}

// planner holds a plan in the making. Its maps are by service unless said.
type planner struct {
	in      Input
	app     *App
	project *types.Project
	sep     string
	out     Plan
	steps   map[string]int // step's id → its place in out.Steps

	order     []string // services, what is depended on first
	selected  map[string]bool
	explicit  map[string]bool // named by the person, not only depended on
	byService map[string][]ObservedContainer
	hooks     map[string][]ObservedContainer // runners left over
	networks  map[string]netState            // by key
	volumes   map[string]volState            // by key
	images    map[string]string              // image name → step that brings it
	ends      map[string][]string            // steps after which the service has started
	active    map[string]bool                // something of it runs after the plan
	waits     map[string]string              // "service/condition" → step
	later     map[string]bool                // its image comes first: the next plan goes on
	recreated map[string]bool
	stopped   map[string]string   // container id → step that stops it
	gone      map[string][]string // container id → steps that touch it before its removal
	leaving   map[string][]string // steps that remove what is not replaced, or not beside
	freed     map[string]string   // name of a container → step that removes it
	joins     map[string][]string // container id → keys of the networks that it is put on again
}

func (p *planner) add(s Step) string {
	s.After = slices.DeleteFunc(s.After, func(id string) bool { return id == "" })
	slices.Sort(s.After)
	s.After = slices.Compact(s.After)
	if s.ID == "" {
		s.ID = fmt.Sprintf("%s %s %s", s.Action, s.Kind, s.Name)
	}
	for base, n := s.ID, 2; ; n++ {
		if _, taken := p.steps[s.ID]; !taken {
			break
		}
		s.ID = fmt.Sprintf("%s (%d)", base, n)
	}
	p.steps[s.ID] = len(p.out.Steps)
	p.out.Steps = append(p.out.Steps, s)
	return s.ID
}

func (p *planner) warn(format string, args ...any) {
	p.out.Warnings = append(p.out.Warnings, fmt.Sprintf(format, args...))
}

func (p *planner) make() error {
	if err := p.choose(); err != nil {
		return err
	}
	for _, c := range p.in.Observed.Containers {
		switch {
		case c.Hook != "":
			p.hooks[c.Service] = append(p.hooks[c.Service], c)
		case !c.OneOff:
			p.byService[c.Service] = append(p.byService[c.Service], c)
		}
	}
	if err := p.names(); err != nil {
		return err
	}
	p.fetch()
	images := len(p.out.Steps)
	if err := p.planNetworks(); err != nil {
		return err
	}
	if err := p.planVolumes(); err != nil {
		return err
	}
	if len(p.later) > 0 && slices.ContainsFunc(p.out.Steps[images:], func(s Step) bool { return s.Action == Remove }) {
		// What is made anew takes containers along whose images are on their way:
		// all that is the next plan's.
		p.out.Steps = p.out.Steps[:images]
		return nil
	}
	p.orphans()
	for _, name := range p.order {
		if err := p.service(p.project.Services[name]); err != nil {
			return err
		}
	}
	return nil
}

// choose finds the services to work on, and their order.
func (p *planner) choose() error {
	named := p.in.Policy.Services
	for _, name := range named {
		if _, ok := p.project.Services[name]; !ok {
			return p.noService(name)
		}
	}
	for name, n := range p.in.Policy.Scale {
		s, ok := p.project.Services[name]
		if !ok {
			return p.noService(name)
		}
		if n < 0 || n > maxReplicas {
			return fault.Invalidf("scale %s=%d: 0 to %d", name, n, maxReplicas)
		}
		if n > 1 && s.ContainerName != "" {
			return fault.Invalidf("service %s has container_name %s: there can be only one container of that name; remove it to scale", name, s.ContainerName)
		}
	}
	if len(named) == 0 {
		named = p.project.ServiceNames()
	}
	const fresh, open, done = 0, 1, 2
	state := map[string]int{}
	var path []string
	var visit func(name string) error
	visit = func(name string) error {
		s, ok := p.project.Services[name]
		if !ok {
			return nil
		}
		switch state[name] {
		case done:
			return nil
		case open:
			at := slices.Index(path, name)
			return fault.Invalidf("services depend on one another in a circle: %s", strings.Join(append(slices.Clone(path[at:]), name), " -> "))
		}
		state[name], path = open, append(path, name)
		for _, dep := range dependencies(s) {
			if _, ok := p.project.Services[dep]; !ok {
				if d, named := s.DependsOn[dep]; named && !d.Required || p.isDisabled(dep) {
					continue
				}
				return fault.Invalidf("service %s depends on %s, which is no service of %s", name, dep, p.project.Name)
			}
			if err := visit(dep); err != nil {
				return err
			}
		}
		state[name], path = done, path[:len(path)-1]
		p.order = append(p.order, name)
		return nil
	}
	for _, name := range p.project.ServiceNames() {
		if err := visit(name); err != nil {
			return err
		}
	}
	var take func(name string)
	take = func(name string) {
		if p.selected[name] {
			return
		}
		p.selected[name] = true
		if p.in.Policy.NoDeps {
			return
		}
		for _, dep := range dependencies(p.project.Services[name]) {
			if _, ok := p.project.Services[dep]; ok {
				take(dep)
			}
		}
	}
	for _, name := range named {
		p.explicit[name] = true
		take(name)
	}
	p.order = slices.DeleteFunc(p.order, func(name string) bool { return !p.selected[name] })
	return nil
}

func (p *planner) isDisabled(name string) bool { _, ok := p.project.DisabledServices[name]; return ok }

func (p *planner) noService(name string) error {
	if p.isDisabled(name) {
		return fault.Invalidf("service %s is switched off by its profiles: name one with --profile", name)
	}
	return fault.NotFoundf("no such service: %s (there are %s)", name, strings.Join(p.project.ServiceNames(), ", "))
}

// dependencies are the services that one cannot be without, sorted.
func dependencies(s types.ServiceConfig) []string {
	set := map[string]bool{}
	for name := range s.DependsOn {
		set[name] = true
	}
	for _, mode := range []string{s.NetworkMode, s.Ipc, s.Pid} {
		if name, ok := strings.CutPrefix(mode, types.ServicePrefix); ok {
			set[name] = true
		}
	}
	for _, v := range s.VolumesFrom {
		if !strings.HasPrefix(v, types.ContainerPrefix) {
			name, _, _ := strings.Cut(v, ":")
			set[name] = true
		}
	}
	for _, l := range s.Links {
		name, _, _ := strings.Cut(l, ":")
		set[name] = true
	}
	delete(set, s.Name)
	return slices.Sorted(maps.Keys(set))
}

// names refuses two services with one container's name.
func (p *planner) names() error {
	by := map[string]string{}
	for _, name := range p.order {
		s := p.project.Services[name]
		if s.ContainerName == "" {
			continue
		}
		if other, ok := by[s.ContainerName]; ok {
			return fault.Invalidf("services %s and %s want the same container_name %s", other, name, s.ContainerName)
		}
		by[s.ContainerName] = name
		if p.scale(s) > 1 {
			return fault.Invalidf("service %s has container_name %s: there can be only one container of that name; remove it to scale", name, s.ContainerName)
		}
	}
	return nil
}

func (p *planner) scale(s types.ServiceConfig) int {
	if n, ok := p.in.Policy.Scale[s.Name]; ok {
		return n
	}
	if global(s) && s.Scale == nil { // a scale that somebody asked for stays
		return 1
	}
	return s.GetScale()
}

// global tells of deploy.mode global: one a machine, and this is one machine.
func global(s types.ServiceConfig) bool {
	return s.Deploy != nil && strings.HasPrefix(s.Deploy.Mode, "global")
}

func (p *planner) imageName(s types.ServiceConfig) string { return ImageName(p.project.Name, s, p.sep) }

// pullPolicy of a service, with what the person said over it.
func (p *planner) pullPolicy(s types.ServiceConfig) (policy string, age time.Duration) {
	if said := p.in.Policy.Pull; said != "" && said != "policy" {
		return said, 0
	}
	policy, age, err := servicePull(s)
	if err != nil {
		return types.PullPolicyMissing, 0 // validated when translated
	}
	return policy, age
}

// servicePull is what a service says itself: pull_refresh_after is the age of
// its `refresh`.
func servicePull(s types.ServiceConfig) (policy string, age time.Duration, err error) {
	if s.PullRefreshAfter != "" && (s.PullPolicy == "" || s.PullPolicy == types.PullPolicyRefresh) {
		s.PullPolicy = "every_" + s.PullRefreshAfter
	}
	return s.GetPullPolicy()
}

// fetch plans what brings images here. A service with containers waits for the
// next plan when its image may change: then it is known what to do with them.
func (p *planner) fetch() {
	for _, name := range p.order {
		s := p.project.Services[name]
		if s.Provider != nil || p.scale(s) == 0 {
			continue
		}
		image := p.imageName(s)
		have, here := p.in.Observed.Images[image]
		step, planned := p.images[image]
		if !planned && !p.in.Fresh[image] && !p.in.Repair {
			policy, age := p.pullPolicy(s)
			build := s.Build != nil && !p.in.Policy.NoBuild
			switch {
			case build && (p.in.Policy.Build || policy == types.PullPolicyBuild || !here && (policy != types.PullPolicyAlways || s.Image == "")):
				why := "to be built"
				if !here {
					why = "image " + image + " is not here"
				}
				step = p.add(Step{Action: Build, Kind: KindImage, Name: image, Service: name, Why: why})
			case s.Image == "" && s.Build != nil:
			case policy == types.PullPolicyAlways:
				step = p.add(Step{Action: Pull, Kind: KindImage, Name: image, Service: name, Why: "pull policy always", Optional: build})
			case policy == types.PullPolicyRefresh && here && p.in.Now.Sub(have.Tagged) > age:
				step = p.add(Step{Action: Pull, Kind: KindImage, Name: image, Service: name, Why: fmt.Sprintf("older than %s", age)})
			case policy != types.PullPolicyNever && policy != types.PullPolicyBuild && !here:
				step = p.add(Step{Action: Pull, Kind: KindImage, Name: image, Service: name, Why: "not here"})
			}
			p.images[image] = step
		}
		if step != "" && len(p.byService[name]) > 0 {
			p.later[name] = true
		}
		for _, v := range s.Volumes {
			source := v.Source
			if _, planned := p.images[source]; v.Type != types.VolumeTypeImage || planned || p.in.Fresh[source] || p.in.Repair {
				continue
			}
			if _, here := p.in.Observed.Images[source]; !here && p.in.Policy.Pull != types.PullPolicyNever {
				if _, own := p.project.Services[source]; !own {
					p.images[source] = p.add(Step{Action: Pull, Kind: KindImage, Name: source, Service: name, Why: "mounted by " + name + ", not here"})
				}
			}
		}
	}
	// What depends on such a service may have to be made anew with it.
	for _, name := range p.order {
		for _, dep := range dependencies(p.project.Services[name]) {
			if p.later[dep] {
				p.later[name] = true
			}
		}
	}
}

// pick gives the live network of a key: that of the wanted name, else the first.
func pick[T any](list []T, key, name string, keyOf, nameOf, appOf func(T) string, app string) (found T, ok bool) {
	for _, v := range list {
		if nameOf(v) == name {
			return v, true
		}
	}
	for _, v := range list {
		if keyOf(v) == key && appOf(v) == app {
			return v, true
		}
	}
	return found, false
}

// wantedNetworks are those that selected services use.
func (p *planner) wantedNetworks() []string {
	set := map[string]bool{}
	for _, name := range p.order {
		for key := range p.project.Services[name].Networks {
			set[key] = true
		}
	}
	if len(p.in.Policy.Services) == 0 {
		for key := range p.project.Networks {
			set[key] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

func (p *planner) planNetworks() error {
	for _, key := range p.wantedNetworks() {
		want, ok := p.project.Networks[key]
		if !ok {
			return fault.Invalidf("the network %s is used and not declared", key)
		}
		have, found := pick(p.in.Observed.Networks, key, want.Name, func(n ObservedNetwork) string { return n.Key }, func(n ObservedNetwork) string { return n.Name }, func(n ObservedNetwork) string { return n.App }, p.project.Name)
		switch {
		case bool(want.External) && !found:
			return fault.NotFoundf("network %s declared as external, but could not be found: create it with `docker network create %s`", want.Name, want.Name)
		case bool(want.External):
			p.networks[key] = netState{have.ID, have.Name, ""}
			continue
		case !found:
			step := p.add(Step{Action: Create, Kind: KindNetwork, Name: want.Name, Key: key, Why: "not there"})
			p.networks[key] = netState{"", want.Name, step}
			continue
		}
		if have.App != p.project.Name {
			p.warn("the network %s was not made for %s: say `external: true` if it is meant", have.Name, p.project.Name)
			p.networks[key] = netState{have.ID, have.Name, ""}
			continue
		}
		hash, err := NetworkHash(want)
		if err != nil {
			return err
		}
		keep := p.in.Policy.Recreate == RecreateNever || p.in.Repair
		switch {
		case have.Hash == "" || have.Hash == hash || keep && have.Name == want.Name:
			p.networks[key] = netState{have.ID, have.Name, ""}
			continue
		case keep:
			p.networks[key] = netState{"", want.Name, p.add(Step{Action: Create, Kind: KindNetwork, Name: want.Name, Key: key, Why: "renamed: " + have.Name + " stays as it is"})}
			continue
		}
		p.replaceNetwork(key, want, have)
	}
	p.rejoin()
	return nil
}

// rejoin puts containers back on networks that an earlier walk has taken them off.
func (p *planner) rejoin() {
	for _, a := range p.in.Apart {
		n, wanted := p.networks[a.Network]
		at := slices.IndexFunc(p.in.Observed.Containers, func(c ObservedContainer) bool { return c.ID == a.Container })
		if !wanted || at < 0 || slices.Contains(p.joins[a.Container], a.Network) {
			continue
		}
		c := p.in.Observed.Containers[at]
		if n.id != "" && slices.Contains(c.Networks, n.id) {
			continue
		}
		if s, ours := p.project.Services[c.Service]; ours && !c.OneOff && c.Hook == "" {
			if _, on := s.Networks[a.Network]; !on {
				continue // it gives way to one that is not on it
			}
		}
		p.join(c, a.Network, n.name, n.step)
	}
}

func (p *planner) join(c ObservedContainer, key, network, after string) {
	id := p.add(Step{Action: Connect, Kind: KindContainer, Name: c.Name, Service: c.Service, Number: c.Number, Container: c.ID, Key: key, Why: "the network " + network + " was made anew", After: []string{after}})
	p.gone[c.ID] = append(p.gone[c.ID], id)
	p.joins[c.ID] = append(p.joins[c.ID], key)
}

// replaceNetwork makes a network anew: who is on it is stopped, taken off,
// put on the new one and started again. What is of no service changes over
// while it runs.
func (p *planner) replaceNetwork(key string, want types.NetworkConfig, have ObservedNetwork) {
	on := slices.DeleteFunc(slices.Clone(p.in.Observed.Containers), func(c ObservedContainer) bool { return !slices.Contains(c.Networks, have.ID) })
	var off []string
	for _, c := range on {
		stop := ""
		if _, ours := p.project.Services[c.Service]; ours && p.selected[c.Service] && !c.OneOff && c.Hook == "" {
			stop = p.stop(c, "the network "+want.Name+" is made anew", nil)
		}
		off = append(off, p.add(Step{Action: Disconnect, Kind: KindContainer, Name: c.Name, Service: c.Service, Number: c.Number, Container: c.ID, Key: have.ID, Why: "the network " + have.Name + " is made anew", After: []string{stop}}))
	}
	remove := p.add(Step{Action: Remove, Kind: KindNetwork, Name: have.Name, Key: key, Why: "its configuration has changed", After: off, Optional: have.Name != want.Name})
	step := p.add(Step{Action: Create, Kind: KindNetwork, Name: want.Name, Key: key, Why: "its configuration has changed", After: []string{remove}})
	p.networks[key] = netState{"", want.Name, step}
	for _, c := range on {
		p.join(c, key, want.Name, step)
	}
}

func (p *planner) wantedVolumes() []string {
	set := map[string]bool{}
	for _, name := range p.order {
		for _, v := range p.project.Services[name].Volumes {
			if _, ok := p.project.Volumes[v.Source]; ok && v.Type == types.VolumeTypeVolume {
				set[v.Source] = true
			}
		}
	}
	if len(p.in.Policy.Services) == 0 {
		for key := range p.project.Volumes {
			set[key] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

func (p *planner) planVolumes() error {
	for _, key := range p.wantedVolumes() {
		want := p.project.Volumes[key]
		have, found := pick(p.in.Observed.Volumes, key, want.Name, func(v ObservedVolume) string { return v.Key }, func(v ObservedVolume) string { return v.Name }, func(v ObservedVolume) string { return v.App }, p.project.Name)
		switch {
		case bool(want.External) && !found:
			return fault.NotFoundf("external volume %q not found: create it with `docker volume create %s`", want.Name, want.Name)
		case !found || have.Name != want.Name:
			why := "not there"
			if found {
				why = "renamed: " + have.Name + " stays as it is"
			}
			p.volumes[key] = volState{want.Name, p.add(Step{Action: Create, Kind: KindVolume, Name: want.Name, Key: key, Why: why})}
			continue
		}
		p.volumes[key] = volState{have.Name, ""}
		if want.External || want.Labels[LabelScope] == ScopeMachine {
			continue
		}
		if have.App != p.project.Name {
			p.warn("the volume %s was not made for %s: say `external: true` if it is meant", have.Name, p.project.Name)
			continue
		}
		hash, err := VolumeHash(want)
		if err != nil {
			return err
		}
		if have.Hash == "" || have.Hash == hash || p.in.Repair {
			continue
		}
		if !p.in.Policy.ReplaceVolume {
			p.warn("the volume %s exists with another configuration and is kept: remove it, or ask for its replacement; its data would be lost", have.Name)
			continue
		}
		p.replaceVolume(key, want)
	}
	return nil
}

// replaceVolume makes a volume anew, and with it all containers that hold it.
func (p *planner) replaceVolume(key string, want types.VolumeConfig) {
	var gone []string
	for _, c := range p.in.Observed.Containers {
		if !slices.Contains(c.Volumes, want.Name) {
			continue
		}
		stop := p.stop(c, "the volume "+want.Name+" is made anew", nil)
		id, planned := p.freed[c.Name]
		if !planned {
			id = p.add(Step{Action: Remove, Kind: KindContainer, Name: c.Name, Service: c.Service, Number: c.Number, Container: c.ID, Why: "the volume " + want.Name + " is made anew", After: append(slices.Clone(p.gone[c.ID]), stop)})
			p.freed[c.Name] = id
			p.leaving[c.Service] = append(p.leaving[c.Service], id)
		}
		gone = append(gone, id)
		p.byService[c.Service] = slices.DeleteFunc(slices.Clone(p.byService[c.Service]), func(o ObservedContainer) bool { return o.ID == c.ID })
		p.recreated[c.Service] = true
	}
	remove := p.add(Step{Action: Remove, Kind: KindVolume, Name: want.Name, Key: key, Why: "its configuration has changed", After: gone})
	p.volumes[key] = volState{want.Name, p.add(Step{Action: Create, Kind: KindVolume, Name: want.Name, Key: key, Why: "its configuration has changed", After: []string{remove}})}
}

// stop plans the end of a container once; "" where it does not run.
func (p *planner) stop(c ObservedContainer, why string, after []string) string {
	if id, ok := p.stopped[c.ID]; ok {
		return id
	}
	if c.State != "running" && c.State != "restarting" && c.State != "paused" {
		return ""
	}
	id := p.add(Step{Action: Stop, Kind: KindContainer, Name: c.Name, Service: c.Service, Number: c.Number, Container: c.ID, Timeout: p.in.Policy.Timeout, Why: why, After: after})
	p.stopped[c.ID] = id
	return id
}

func (p *planner) orphans() {
	names := map[string]bool{}
	for name := range p.project.Services {
		names[name] = true
	}
	for name := range p.project.DisabledServices {
		names[name] = true
	}
	for name := range p.project.Jobs {
		names[name] = true
	}
	for _, c := range p.in.Observed.Containers {
		if _, gone := p.freed[c.Name]; names[c.Service] || c.OneOff || c.Hook != "" || gone {
			continue
		}
		if !p.in.Policy.RemoveOrphans {
			p.out.Orphans = append(p.out.Orphans, c.Name)
			continue
		}
		stop := p.stop(c, "the service "+c.Service+" is not in the file any more", p.gone[c.ID])
		p.freed[c.Name] = p.add(Step{Action: Remove, Kind: KindContainer, Name: c.Name, Service: c.Service, Number: c.Number, Container: c.ID, Why: "the service " + c.Service + " is not in the file any more", After: append(slices.Clone(p.gone[c.ID]), stop)})
	}
}

// String words a plan for people: what happens, and why.
func (p Plan) String() string {
	var b strings.Builder
	if len(p.Steps) == 0 {
		fmt.Fprintf(&b, "%s is as it should be: nothing to do.\n", p.App)
	}
	number := map[string]int{}
	for i, s := range p.Steps {
		number[s.ID] = i + 1
		fmt.Fprintf(&b, "%3d  %-42s %s", i+1, s.ID, s.Why)
		if len(s.After) > 0 {
			list := make([]int, 0, len(s.After))
			for _, id := range s.After {
				list = append(list, number[id])
			}
			slices.Sort(list)
			fmt.Fprintf(&b, "  (after %s)", strings.Trim(strings.ReplaceAll(fmt.Sprint(list), " ", ", "), "[]"))
		}
		b.WriteByte('\n')
	}
	for _, w := range p.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", w)
	}
	if len(p.Orphans) > 0 {
		fmt.Fprintf(&b, "left alone, of no service: %s\n", strings.Join(p.Orphans, ", "))
	}
	return b.String()
}

// Empty tells that there is nothing to do.
func (p Plan) Empty() bool { return len(p.Steps) == 0 }

func byNumber(a, b ObservedContainer) int {
	return cmp.Or(cmp.Compare(a.Number, b.Number), a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
}
