package app

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/berth-project/berth/lib/fault"
)

// Conditions of a wait.
const (
	ConditionStarted   = "started"   // every container runs, or has ended with 0
	ConditionHealthy   = "healthy"   // every container of the service says so
	ConditionCompleted = "completed" // one has ended with 0
	ConditionRunning   = "running"   // every container runs, and is healthy where it has a check
	ConditionSettled   = "settled"   // a container is healthy, or has run as long as it is watched
)

// service plans one service; those that it depends on are planned.
func (p *planner) service(s types.ServiceConfig) error {
	if s.Provider != nil {
		return fault.Unsupportedf("services.%s.provider: no provider %q is known to the daemon: start what it stands for by other means, and take the service out", s.Name, s.Provider.Type)
	}
	if len(s.Models) > 0 {
		return fault.Unsupportedf("services.%s.models: there is no runner of models: point the service at one by its environment", s.Name)
	}
	if p.later[s.Name] {
		for _, c := range p.byService[s.Name] {
			p.out.Kept = append(p.out.Kept, c.Name)
		}
		return nil
	}
	hash, err := p.hash(s)
	if err != nil {
		return err
	}
	v := &serviceView{planner: p, s: s, hash: hash, want: p.scale(s), infra: p.infra(s), beside: map[string]ObservedContainer{}}
	v.have = slices.Clone(p.byService[s.Name])
	v.why = map[string]string{}
	for _, c := range v.have {
		if why := v.obsolete(c); why != "" {
			v.why[c.ID] = why
		}
	}
	v.pair()
	// What is up to date stays before what is not, low numbers before high ones.
	slices.SortStableFunc(v.have, func(a, b ObservedContainer) int {
		oa, ob := v.why[a.ID] != "", v.why[b.ID] != ""
		switch {
		case oa && !ob:
			return 1
		case ob && !oa:
			return -1
		}
		return byNumber(a, b)
	})
	v.plan()
	return nil
}

// serviceView is one service while it is planned.
type serviceView struct {
	*planner
	s      types.ServiceConfig
	hash   string
	want   int
	have   []ObservedContainer
	why    map[string]string // container id → why it must be recreated
	infra  []string          // steps before any of its containers can be made
	starts []string          // steps that start, and what hooks follow
	ready  []string          // what must be before a start; nil until asked for
	asked  bool
	beside map[string]ObservedContainer // container id → its replacement, which an earlier walk has made
	broken []ObservedContainer          // replacements of an earlier walk that are not wanted any more
}

// pair finds the replacements that an earlier walk has left beside the old
// containers. One that is what is wanted is taken further; others go.
func (v *serviceView) pair() {
	for _, old := range slices.Clone(v.have) {
		name := tempName(old.ID, containerName(v.project.Name, v.s, old.Number, v.sep))
		at := slices.IndexFunc(v.have, func(c ObservedContainer) bool { return c.Name == name && c.ID != old.ID })
		if at < 0 {
			continue
		}
		fresh := v.have[at]
		v.have = slices.Delete(v.have, at, at+1)
		gone := !slices.ContainsFunc(v.have, func(c ObservedContainer) bool { return c.ID == old.ID })
		switch {
		case v.in.Repair: // nothing is taken away unasked
		case v.why[fresh.ID] != "" || gone:
			v.broken = append(v.broken, fresh)
		case v.why[old.ID] != "":
			v.beside[old.ID] = fresh
		case isUp(fresh) && (!isUp(old) || old.Unpublished):
			v.beside[old.ID], v.why[old.ID] = fresh, "its replacement is there"
		default:
			v.broken = append(v.broken, fresh)
		}
	}
}

// hash of the service as it would be labelled: what it refers to is resolved
// against what is there.
func (p *planner) hash(s types.ServiceConfig) (string, error) {
	resolved, err := resolve(s, func(name string) (string, bool) { return firstID(p.byService[name]) })
	if err != nil {
		resolved = s // something is missing: no hash there is can be equal
	}
	resolveImageVolumes(&resolved, p.project.Name, p.sep, func(ref string) bool { _, ok := p.in.Observed.Images[ref]; return ok })
	return ServiceHash(resolved)
}

// firstID gives the id of the container whose name is the first.
func firstID(list []ObservedContainer) (string, bool) {
	if len(list) == 0 {
		return "", false
	}
	return slices.MinFunc(list, func(a, b ObservedContainer) int { return strings.Compare(a.Name, b.Name) }).ID, true
}

// resolve replaces references to services by ids of containers.
func resolve(s types.ServiceConfig, first func(service string) (id string, ok bool)) (types.ServiceConfig, error) {
	s.VolumesFrom = slices.Clone(s.VolumesFrom)
	for i, v := range s.VolumesFrom {
		parts := strings.Split(v, ":")
		if parts[0] == "container" && len(parts) > 1 {
			s.VolumesFrom[i] = strings.Join(parts[1:], ":")
			continue
		}
		id, ok := first(parts[0])
		if !ok {
			return s, fault.Conflictf("service %s takes volumes from %s, which has no container", s.Name, parts[0])
		}
		// docker compose loses the mode of what it resolves; the hash needs the same text.
		s.VolumesFrom[i] = id
	}
	for _, mode := range []*string{&s.NetworkMode, &s.Ipc, &s.Pid} {
		name, ok := strings.CutPrefix(*mode, types.ServicePrefix)
		if !ok {
			continue
		}
		id, ok := first(name)
		if !ok {
			return s, fault.Conflictf("service %s shares a namespace of %s, which has no container", s.Name, name)
		}
		*mode = types.ContainerPrefix + id
	}
	return s, nil
}

// resolveImageVolumes names the images that are mounted: a source may be a service.
func resolveImageVolumes(s *types.ServiceConfig, app, sep string, here func(ref string) bool) {
	s.Volumes = slices.Clone(s.Volumes)
	for i, v := range s.Volumes {
		if v.Type != types.VolumeTypeImage || here(v.Source) {
			continue
		}
		if own := ImageName(app, types.ServiceConfig{Name: v.Source}, sep); here(own) {
			s.Volumes[i].Source = own
		}
	}
}

// imageVolumes is the label that tells which images were mounted.
func imageVolumes(s types.ServiceConfig, images map[string]Image) string {
	var list []string
	for _, v := range s.Volumes {
		if i, ok := images[v.Source]; ok && v.Type == types.VolumeTypeImage {
			list = append(list, v.Target+"="+i.label())
		}
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

// sharesWith are the services whose containers this one's refer to by id.
func sharesWith(s types.ServiceConfig) []string {
	return dependencies(types.ServiceConfig{Name: s.Name, ContainerSpec: types.ContainerSpec{NetworkMode: s.NetworkMode, Ipc: s.Ipc, Pid: s.Pid, VolumesFrom: s.VolumesFrom}, Links: s.Links})
}

// infra are the steps that must be before a container can be made.
func (p *planner) infra(s types.ServiceConfig) (after []string) {
	for key := range s.Networks {
		after = append(after, p.networks[key].step)
	}
	for _, v := range s.Volumes {
		if v.Type == types.VolumeTypeVolume {
			after = append(after, p.volumes[v.Source].step)
		}
		if v.Type == types.VolumeTypeImage {
			after = append(after, p.images[v.Source])
		}
	}
	after = append(after, p.images[p.imageName(s)])
	for _, other := range sharesWith(s) {
		for _, step := range p.out.Steps {
			if step.Service == other && step.Kind == KindContainer && (step.Action == Create || step.Action == Rename || step.Action == Remove) {
				after = append(after, step.ID)
			}
		}
	}
	return after
}

// obsolete says why a container must give way to a new one; "" is not.
func (v *serviceView) obsolete(c ObservedContainer) string {
	policy := v.in.Policy.RecreateDeps
	if v.explicit[v.s.Name] {
		policy = v.in.Policy.Recreate
	}
	switch {
	case v.in.Settled[c.ID]:
		return ""
	case policy == RecreateNever || v.in.Repair:
		return ""
	case policy == RecreateForce:
		return "recreation was asked for"
	}
	for _, other := range sharesWith(types.ServiceConfig{Name: v.s.Name, ContainerSpec: v.s.ContainerSpec}) {
		if v.recreated[other] {
			return "it shares something with " + other + ", which is recreated"
		}
	}
	if c.Hash != v.hash {
		return "the configuration has changed"
	}
	if image, ok := v.in.Observed.Images[v.imageName(v.s)]; ok && !image.is(c) {
		return "the image " + v.imageName(v.s) + " has changed"
	}
	resolved := v.s
	resolveImageVolumes(&resolved, v.project.Name, v.sep, func(ref string) bool { _, ok := v.in.Observed.Images[ref]; return ok })
	if c.ImageVolumes != imageVolumes(resolved, v.in.Observed.Images) {
		return "an image that it mounts has changed"
	}
	for _, key := range slices.Sorted(maps.Keys(v.s.Networks)) {
		if n := v.networks[key]; n.id != "" && !slices.Contains(c.Networks, n.id) && !slices.Contains(v.joins[c.ID], key) {
			return "it is not on the network " + n.name
		}
	}
	for _, m := range v.s.Volumes {
		if vol, ok := v.volumes[m.Source]; m.Type == types.VolumeTypeVolume && m.Source != "" && ok && !slices.Contains(c.Volumes, vol.name) {
			return "it does not hold the volume " + vol.name
		}
	}
	return ""
}

func (v *serviceView) step(action Action, c ObservedContainer, why string, after ...string) Step {
	return Step{Action: action, Kind: KindContainer, Name: c.Name, Service: v.s.Name, Number: c.Number, Container: c.ID, Why: why, After: after}
}

func (v *serviceView) plan() {
	running := false
	for i, c := range v.have {
		if fresh, ok := v.beside[c.ID]; ok {
			c = fresh
		}
		if i < v.want && v.why[c.ID] == "" && isUp(c) && v.stopped[c.ID] == "" {
			running = true
		}
	}
	if !running && v.want > 0 && len(v.s.PreStart) > 0 && !v.in.Policy.NoStart {
		v.preStart()
	}
	for _, c := range v.broken {
		v.giveBack(c)
		v.remove(c, "it was to replace another, which is not wanted any more")
	}
	for _, c := range v.have[min(v.want, len(v.have)):] {
		why := fmt.Sprintf("%d of %s are wanted", v.want, v.s.Name)
		v.remove(c, why)
		if fresh, ok := v.beside[c.ID]; ok {
			v.remove(fresh, why)
		}
	}
	var replace []ObservedContainer
	for _, c := range v.have[:min(v.want, len(v.have))] {
		if v.why[c.ID] != "" {
			replace = append(replace, c)
			continue
		}
		v.keep(c)
	}
	slices.SortFunc(replace, byNumber)
	if len(replace) > 0 {
		v.recreated[v.s.Name] = true
	}
	v.replace(replace)
	next := 1
	for _, c := range v.byService[v.s.Name] {
		next = max(next, c.Number+1)
	}
	for i := len(v.have); i < v.want; i++ {
		v.create(next + i - len(v.have))
	}
	// Who waits for the service must not see what is on its way out.
	v.ends[v.s.Name] = append(v.starts, v.leaving[v.s.Name]...)
	v.active[v.s.Name] = v.want > 0
}

// giveBack plans that the ports which a replacement has taken over lead to the
// container that stays.
func (v *serviceView) giveBack(fresh ObservedContainer) {
	for _, old := range v.have {
		if old.Number == fresh.Number && old.Unpublished && isUp(fresh) && v.stopped[old.ID] == "" {
			sw := v.step(Switch, old, "its ports come back from "+fresh.Name)
			sw.Replaces = fresh.ID
			v.gone[fresh.ID] = append(v.gone[fresh.ID], v.add(sw))
		}
	}
}

func (v *serviceView) remove(c ObservedContainer, why string) {
	stop := v.stop(c, why, v.gone[c.ID])
	removed := v.add(v.step(Remove, c, why, append(slices.Clone(v.gone[c.ID]), stop)...))
	v.freed[c.Name] = removed
	v.leaving[v.s.Name] = append(v.leaving[v.s.Name], removed)
}

// keep leaves a container as it is, and sees that it runs.
func (v *serviceView) keep(c ObservedContainer) {
	after := slices.Clone(v.gone[c.ID])
	final := containerName(v.project.Name, v.s, c.Number, v.sep)
	if strings.HasSuffix(c.Name, "_"+final) && c.Name == tempName(strings.TrimSuffix(c.Name, "_"+final), final) {
		holder := slices.IndexFunc(v.in.Observed.Containers, func(o ObservedContainer) bool { return o.Name == final })
		if gone, ok := v.freed[final]; ok || holder < 0 {
			rename := v.step(Rename, c, "its replacement of another was not finished", append(after, v.leads(c, gone))...)
			rename.Final = final
			after = append(after, v.add(rename))
			c.Name = final
		}
	}
	stop := v.stopped[c.ID]
	after = append(after, v.leaving[v.s.Name]...) // a port may come free by it
	switch {
	case v.in.Policy.NoStart, v.in.Repair && c.State == "exited" && stop == "":
		v.out.Kept = append(v.out.Kept, c.Name)
	case stop != "":
		v.start(c, "what it depends on has changed", append(after, stop)...)
	case c.State == "running" || c.State == "restarting":
		v.out.Kept = append(v.out.Kept, c.Name)
	case c.State == "paused":
		v.starts = append(v.starts, v.add(v.step(Unpause, c, "it is paused", after...)))
	default:
		v.start(c, "it is "+c.State, after...)
	}
}

// tempName is what a replacement is called until the old container is gone.
func tempName(id, final string) string {
	return id[:min(12, len(id))] + "_" + final
}

// create plans a new container and its start.
func (v *serviceView) create(number int) {
	c := ObservedContainer{Name: containerName(v.project.Name, v.s, number, v.sep), Number: number}
	after := append(slices.Clone(v.infra), v.freed[c.Name])
	after = append(after, v.leaving[v.s.Name]...)
	made := v.add(v.step(Create, c, fmt.Sprintf("there are %d of %d", len(v.have), v.want), after...))
	if !v.in.Policy.NoStart {
		v.start(c, "it is new", made)
	}
}

// replace plans new containers in the place of obsolete ones: at once, or as
// update_config wants it.
func (v *serviceView) replace(list []ObservedContainer) {
	roll := rollOf(v.s, v.in.Policy)
	if roll == nil || len(list) == 0 || v.in.Policy.NoStart {
		for _, c := range list {
			v.replaceOne(c)
		}
		return
	}
	// What an earlier walk has begun comes first.
	slices.SortStableFunc(list, func(a, b ObservedContainer) int {
		_, begunA := v.beside[a.ID]
		_, begunB := v.beside[b.ID]
		switch {
		case begunA && !begunB:
			return -1
		case begunB && !begunA:
			return 1
		}
		return 0
	})
	var before []string // what the batch waits for
	for n := 0; n < len(list); n += roll.parallel {
		var settled []string
		for _, c := range list[n:min(n+roll.parallel, len(list))] {
			settled = append(settled, v.rollOne(c, roll, before))
			v.starts = append(v.starts, settled[len(settled)-1])
		}
		before = settled
	}
}

// replaceOne makes the new container beside the old one, so that a new one
// that cannot be made leaves the old one as it was.
func (v *serviceView) replaceOne(c ObservedContainer) {
	why := v.why[c.ID]
	final := containerName(v.project.Name, v.s, c.Number, v.sep)
	fresh, made := v.makeBeside(c, final, why, nil, "")
	stop := v.stop(c, why, append(v.stopDependents(), made...))
	gone := v.add(v.step(Remove, c, why, append(append(slices.Clone(v.gone[c.ID]), stop), made...)...))
	rename := v.step(Rename, fresh, why, v.leads(fresh, gone), v.freed[final])
	rename.Final = final
	fresh.Name = final
	named := v.add(rename)
	switch {
	case fresh.State == "paused":
		v.starts = append(v.starts, v.add(v.step(Unpause, fresh, "it is paused", named)))
	case !isUp(fresh) && !v.in.Policy.NoStart:
		v.start(fresh, why, named)
	}
}

// leads plans that the ports lead to a container which was started beside the
// one that had them. Its name is the mark by which a later plan knows that this
// may be still to do, so it is renamed after.
func (v *serviceView) leads(c ObservedContainer, after string) string {
	if len(v.s.Ports) == 0 || !isUp(c) || !c.Unpublished {
		return after
	}
	return v.add(v.step(Switch, c, "its ports are free", after))
}

// makeBeside plans the replacement of a container under another name, where it
// is not there yet; it gives the steps after which it may be started.
func (v *serviceView) makeBeside(c ObservedContainer, final, why string, after []string, roll string) (ObservedContainer, []string) {
	if fresh, ok := v.beside[c.ID]; ok {
		return fresh, append(slices.Clone(v.gone[fresh.ID]), after...)
	}
	fresh := ObservedContainer{Name: tempName(c.ID, final), Number: c.Number}
	s := v.step(Create, fresh, why, append(slices.Clone(v.infra), append(after, v.freed[fresh.Name])...)...)
	s.Final, s.Roll = final, roll
	s.Replaces = c.ID
	s.Volumes = v.in.Policy.RenewVolumes
	return fresh, []string{v.add(s)}
}

// stopDependents stops what is to be restarted with this service.
func (v *serviceView) stopDependents() (steps []string) {
	for _, name := range v.order {
		d, ok := v.project.Services[name].DependsOn[v.s.Name]
		if !ok || !d.Restart || v.later[name] {
			continue
		}
		for _, c := range v.byService[name] {
			steps = append(steps, v.stop(c, v.s.Name+" is recreated, and it is to be restarted with it", nil))
		}
	}
	return steps
}

// start plans the start of a container, after what it depends on.
func (v *serviceView) start(c ObservedContainer, why string, after ...string) string {
	step := v.add(v.step(Start, c, why, append(after, v.dependedOn()...)...))
	for i := range v.s.PostStart {
		h := v.step(Hook, c, "post_start", step)
		h.Hook, h.ID, h.Condition = i, fmt.Sprintf("run post_start %d in %s", i+1, c.Name), "post_start"
		step = v.add(h)
	}
	v.starts = append(v.starts, step)
	return step
}

// dependedOn are the steps after which the conditions of depends_on hold.
func (v *serviceView) dependedOn() []string {
	if v.asked {
		return v.ready
	}
	v.asked = true
	for _, name := range dependencies(v.s) {
		d, conditional := v.s.DependsOn[name]
		if !v.selected[name] || !v.active[name] {
			continue
		}
		condition := ""
		switch d.Condition {
		case types.ServiceConditionHealthy:
			condition = ConditionHealthy
		case types.ServiceConditionCompletedSuccessfully:
			condition = ConditionCompleted
		}
		if !conditional || condition == "" {
			v.ready = append(v.ready, v.ends[name]...)
			continue
		}
		v.ready = append(v.ready, v.wait(name, condition, !d.Required))
	}
	return v.ready
}

func (v *serviceView) wait(name, condition string, optional bool) string {
	key := fmt.Sprint(name, "/", condition, "/", optional)
	if id, ok := v.waits[key]; ok {
		return id
	}
	s := Step{Action: Wait, Kind: KindService, Name: name, Service: name, Condition: condition, Optional: optional, Why: v.s.Name + " depends on it", After: slices.Clone(v.ends[name])}
	s.ID = fmt.Sprintf("wait for %s to be %s", name, condition)
	if optional {
		s.ID += " if it can"
	}
	v.waits[key] = v.add(s)
	return v.waits[key]
}

// preStart plans the hooks that run before the service has any container.
func (v *serviceView) preStart() {
	ready := v.dependedOn()
	for i := range v.s.PreStart {
		s := Step{Action: Hook, Kind: KindService, Name: v.s.Name, Service: v.s.Name, Hook: i, Condition: "pre_start", Why: "pre_start", After: append(slices.Clone(v.infra), ready...)}
		s.ID = fmt.Sprintf("run pre_start %d of %s", i+1, v.s.Name)
		ready = []string{v.add(s)}
	}
	v.ready = ready
}

// roll is how a service's containers are replaced one after the other.
type roll struct {
	parallel   int
	startFirst bool
	delay      time.Duration
	monitor    time.Duration
	failure    string // pause, continue, rollback
	ratio      float32
}

// rollOf reads update_config, or on the way back rollback_config where there
// is one; nil is all at once.
func rollOf(s types.ServiceConfig, p Policy) *roll {
	if s.Deploy == nil || p.NoRoll {
		return nil
	}
	u := s.Deploy.UpdateConfig
	if back := s.Deploy.RollbackConfig; p.Rollback && back != nil {
		u = back
	}
	if u == nil {
		return nil
	}
	r := &roll{parallel: 1, delay: time.Duration(u.Delay), monitor: time.Duration(u.Monitor), failure: u.FailureAction, ratio: u.MaxFailureRatio}
	if u.Parallelism != nil {
		r.parallel = int(min(*u.Parallelism, maxReplicas))
		if r.parallel == 0 {
			r.parallel = maxReplicas
		}
	}
	if r.failure == "" || p.Rollback && r.failure == "rollback" {
		r.failure = "pause"
	}
	if r.monitor == 0 {
		r.monitor = 5 * time.Second
	}
	// Where nobody says which, a published port is not left without a listener.
	r.startFirst = u.Order == "start-first" || u.Order == "" && len(s.Ports) > 0
	for _, n := range s.Networks {
		if n != nil && (n.Ipv4Address != "" || n.Ipv6Address != "" || n.MacAddress != "") {
			r.startFirst = false // two containers cannot have one address
		}
	}
	if s.NetworkMode != "" && len(s.Ports) == 0 && s.NetworkMode == "host" && u.Order == "" {
		r.startFirst = false
	}
	return r
}

// rollOne replaces one container and watches the new one; it gives the step
// after which the next may begin.
func (v *serviceView) rollOne(c ObservedContainer, r *roll, before []string) string {
	why, name := v.why[c.ID], v.s.Name
	final := containerName(v.project.Name, v.s, c.Number, v.sep)
	mark := func(id string) string {
		v.out.Steps[v.steps[id]].Roll = name
		return id
	}
	fresh, made := v.makeBeside(c, final, why, before, name)
	// up plans that the new container runs, and is watched.
	up := func(after []string) string {
		ready := after
		switch {
		case fresh.State == "paused":
			ready = []string{mark(v.add(v.step(Unpause, fresh, "it is paused", after...)))}
		case !isUp(fresh):
			first := len(v.out.Steps)
			ready = []string{v.start(fresh, why, after...)}
			for i := first; i < len(v.out.Steps); i++ {
				if v.out.Steps[i].Name == fresh.Name { // and its hooks
					v.out.Steps[i].Roll = name
				}
			}
		}
		s := Step{Action: Wait, Kind: KindContainer, Name: fresh.Name, Service: name, Number: c.Number, Container: fresh.ID, Condition: ConditionSettled, Roll: name, Why: why, After: ready}
		s.ID = fmt.Sprintf("wait for %s to settle", fresh.Name)
		return v.add(s)
	}
	end := func(after []string) string {
		stop := v.stop(c, why, append(v.stopDependents(), after...))
		if stop != "" {
			mark(stop)
		}
		gone := mark(v.add(v.step(Remove, c, why, append(append(slices.Clone(v.gone[c.ID]), stop), after...)...)))
		if !r.startFirst {
			gone = v.leads(fresh, gone)
		}
		rename := v.step(Rename, fresh, why, gone, v.freed[final])
		rename.Final, rename.Roll = final, name
		return v.add(rename)
	}
	if !r.startFirst {
		named := end(made)
		fresh.Name = final
		return up([]string{named})
	}
	settled := up(made)
	if m := v.s.NetworkMode; len(v.s.Ports) > 0 && (m == "" || m == "bridge" || m == "default") {
		sw := v.step(Switch, fresh, "its ports come from "+c.Name, settled)
		sw.Replaces, sw.Roll = c.ID, name
		settled = v.add(sw)
	}
	return end([]string{settled})
}
