package app

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/network"
	"github.com/berth-project/berth/core/volume"
)

var cases = flag.Int("cases", 300, "random pairs of projects to plan and apply")
var from = flag.Uint64("from", 0, "first of their seeds; 0 takes it from the clock")

// TestThePlanAfterAnApplyIsEmpty takes random pairs of projects: the second is
// applied over the first, with a random policy; then nothing must be left to do.
func TestThePlanAfterAnApplyIsEmpty(t *testing.T) {
	first := *from
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	next := make(chan uint64)
	var work sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		work.Go(func() {
			for seed := range next {
				// A plan that never ends would hold the test without naming its seed.
				late := time.AfterFunc(time.Minute, func() { panic(fmt.Sprintf("seed %d does not end", seed)) })
				if err := applyTwo(seed); err != nil {
					t.Errorf("seed %d: %v", seed, err)
				}
				late.Stop()
			}
		})
	}
	for i := range *cases {
		if t.Failed() {
			break
		}
		next <- first + uint64(i)
	}
	close(next)
	work.Wait()
}

func FuzzPlan(f *testing.F) {
	for i := range 8 {
		f.Add(binary.LittleEndian.AppendUint64(nil, uint64(i)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var seed [8]byte
		copy(seed[:], b)
		if err := applyTwo(binary.LittleEndian.Uint64(seed[:])); err != nil {
			t.Fatal(err)
		}
	})
}

func applyTwo(seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 1))
	w := newWorld()
	for i := range 3 {
		name := fmt.Sprintf("image%d", i)
		if r.IntN(3) > 0 {
			w.images[name] = "sha256:" + name
		}
		w.pulls[name] = fmt.Sprintf("sha256:%s-%d", name, r.IntN(2))
	}
	outside(w)
	s := w.service()
	defer s.Shutdown()
	for turn := range 2 {
		a, policy := randomApp(r), Policy{}
		if turn == 1 {
			policy = randomPolicy(r, a)
			for _, name := range slices.Sorted(maps.Keys(w.images)) { // the world has moved on
				if r.IntN(4) == 0 {
					w.images[name] += "'"
				}
			}
			for _, id := range slices.Sorted(maps.Keys(w.containers)) {
				c := w.containers[id]
				switch r.IntN(8) {
				case 0:
					c.State.Status = "exited"
					rest(c)
				case 1:
					if c.State.Status == "running" {
						c.State.Status = "paused"
					}
				case 2:
					if len(c.Spec.Endpoints) > 0 {
						_ = w.Disconnect(context.Background(), string(c.ID), c.Spec.Endpoints[0].Network, true)
					}
				case 3:
					delete(w.containers, string(c.ID))
				}
			}
		}
		for _, service := range a.Project.Services {
			if isOnce(service) { // who keeps an old container that serves waits for its end, for ever
				if policy.Recreate == RecreateNever {
					policy.Recreate = ""
				}
				if policy.RecreateDeps == RecreateNever {
					policy.RecreateDeps = ""
				}
			}
		}
		if err := applyOnce(s, a, policy); err != nil {
			return fmt.Errorf("turn %d, policy %+v: %w", turn, policy, err)
		}
	}
	return nil
}

func applyOnce(s *Service, a *App, policy Policy) error {
	ctx := context.Background()
	op := newOperation(a.Project.Name, "apply", func() {})
	walk := s.walker(op, a, policy)
	o, err := s.observe(ctx, a.Project.Name, a, "-")
	if err != nil {
		return err
	}
	in := Input{App: a, Observed: o, Policy: policy}
	plan, err := MakePlan(in)
	if err != nil {
		return err
	}
	shuffled := in
	shuffled.Observed.Containers = slices.Clone(o.Containers)
	slices.Reverse(shuffled.Observed.Containers)
	if again, err := MakePlan(shuffled); err != nil || !reflect.DeepEqual(again, plan) {
		return fmt.Errorf("the plan depends on the order of what is observed: %v\n%s\n%s", err, plan, again)
	}
	if err := s.converge(ctx, walk, plan); err != nil {
		if isExcused(err, policy) {
			return nil
		}
		return fmt.Errorf("%w\n%s%s", err, plan, laterPlans(op))
	}
	// The same once more, without what is done anew each time.
	policy.Pull = "missing"
	for _, p := range []*Recreate{&policy.Recreate, &policy.RecreateDeps} {
		if *p == RecreateForce {
			*p = RecreateDiverged
		}
	}
	left, err := s.plan(ctx, a, policy, walk.fresh, nil)
	if err != nil {
		return err
	}
	left.Steps = again(s, left.Steps)
	if !left.Empty() {
		return fmt.Errorf("still to do:\n%safter:\n%s%s", left, plan, laterPlans(op))
	}
	if o, err = s.observe(ctx, a.Project.Name, a, walk.sep); err != nil {
		return err
	}
	for _, c := range o.Containers {
		if c.Unpublished && policy.Recreate != RecreateNever && policy.RecreateDeps != RecreateNever {
			return fmt.Errorf("the ports of %s do not lead to it after:\n%s%s", c.Name, plan, laterPlans(op))
		}
	}
	return nil
}

// again drops the steps of what runs to its end, which each up runs again.
func again(s *Service, steps []Step) []Step {
	return slices.DeleteFunc(steps, func(st Step) bool {
		once := slices.ContainsFunc(s.o.Containers.All(), func(c container.Container) bool {
			return c.Spec.Labels[LabelService] == st.Service && slices.Equal(c.Spec.Cmd, []string{"once"})
		})
		return once && (st.Action == Start || st.Action == Hook) || st.Action == Wait
	})
}

// isExcused tells of failures that the policy asked for.
func isExcused(err error, p Policy) bool {
	text := err.Error()
	if p.Recreate == RecreateNever || p.RecreateDeps == RecreateNever {
		// An old container that is kept cannot be what is asked of it.
		for _, part := range []string{"has no healthcheck", "cannot join a namespace", "didn't complete", "is taken by", "is not healthy"} {
			if strings.Contains(text, part) {
				return true
			}
		}
	}
	// Alone, it does not find what it stands on.
	return p.NoDeps && (strings.Contains(text, "has no container") || strings.Contains(text, "cannot join a namespace"))
}

func isOnce(s types.ServiceConfig) bool { return slices.Equal(s.Command, []string{"once"}) }

// outside makes what projects may call external.
func outside(w *world) {
	w.networks["nx"], w.volumes["outside"] = network.Network{ID: "nx", Name: "outside"}, volume.Volume{Name: "outside"}
}

// laterPlans are those after the first.
func laterPlans(op *operation) (text string) {
	for _, l := range op.lines {
		if l.Plan != nil {
			text += "then:\n" + l.Plan.String()
		}
	}
	return text
}

func chance[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func randomPolicy(r *rand.Rand, a *App) (p Policy) {
	p.Recreate, p.RecreateDeps = chance(r, "", "", RecreateForce, RecreateNever), chance(r, "", "", RecreateForce, RecreateNever)
	p.RemoveOrphans, p.NoStart, p.RenewVolumes, p.NoRoll = r.IntN(2) == 0, r.IntN(8) == 0, r.IntN(4) == 0, r.IntN(3) == 0
	p.ReplaceVolume = true
	p.Pull = chance(r, "", "", "always", "missing")
	p.Compatibility, p.Rollback = false, r.IntN(4) == 0
	if r.IntN(4) == 0 {
		for range 1 + r.IntN(2) {
			p.Services = append(p.Services, chance(r, a.Project.ServiceNames()...))
		}
		p.NoDeps = r.IntN(4) == 0
	}
	if r.IntN(4) == 0 {
		p.Scale = map[string]int{}
		name := chance(r, a.Project.ServiceNames()...)
		if v := a.Project.Services[name]; v.ContainerName == "" && len(v.Ports) == 0 {
			p.Scale[name] = 1 + r.IntN(3)
		}
	}
	return p
}

// randomApp makes a project whose services depend only on earlier ones.
func randomApp(r *rand.Rand) *App {
	p := &types.Project{Name: "app", Services: types.Services{}, Networks: types.Networks{}, Volumes: types.Volumes{}}
	for i := range 1 + r.IntN(2) {
		key := fmt.Sprintf("net%d", i)
		p.Networks[key] = types.NetworkConfig{Name: "app_" + key + chance(r, "", "", "x"), Internal: r.IntN(4) == 0, Labels: chance(r, nil, nil, types.Labels{"a": "b"})}
	}
	if r.IntN(6) == 0 {
		p.Networks["outside"] = types.NetworkConfig{Name: "outside", External: true}
	}
	if r.IntN(6) == 0 {
		p.Volumes["outside"] = types.VolumeConfig{Name: "outside", External: true}
	}
	if r.IntN(4) == 0 {
		p.Secrets = types.Secrets{"word": {Name: "word", Content: chance(r, "a", "b")}}
	}
	for i := range r.IntN(3) {
		key := fmt.Sprintf("vol%d", i)
		p.Volumes[key] = types.VolumeConfig{Name: "app_" + key + chance(r, "", "", "", "y"), Labels: chance(r, nil, nil, types.Labels{"a": "b"})}
	}
	var names []string
	for i := range 1 + r.IntN(6) {
		if r.IntN(12) == 0 {
			name := fmt.Sprintf("s%d", i)
			if p.DisabledServices == nil {
				p.DisabledServices = types.Services{}
			}
			p.DisabledServices[name] = types.ServiceConfig{Name: name}
			continue
		}
		s := randomService(r, p, fmt.Sprintf("s%d", i), names)
		p.Services[s.Name] = s
		names = append(names, s.Name)
	}
	if len(names) == 0 {
		s := randomService(r, p, "s9", nil)
		p.Services[s.Name] = s
	}
	return &App{Project: p}
}

func randomService(r *rand.Rand, p *types.Project, name string, earlier []string) types.ServiceConfig {
	s := types.ServiceConfig{Name: name}
	s.Image = fmt.Sprintf("image%d", r.IntN(3))
	s.Environment = types.MappingWithEquals{"N": new(string)}
	*s.Environment["N"] = fmt.Sprint(r.IntN(3))
	s.HealthCheck = chance(r, nil, &types.HealthCheckConfig{Test: []string{"CMD", "true"}})
	s.PullPolicy = chance(r, "", "", "always", "missing", "never")
	if s.PullPolicy == "never" {
		s.PullPolicy = "missing" // an image that never comes is another test's
	}
	if n := r.IntN(4); r.IntN(3) == 0 {
		s.Scale = &n
	} else if r.IntN(8) == 0 {
		s.ContainerName = "own-" + name
	}
	s.Networks = map[string]*types.ServiceNetworkConfig{}
	for _, key := range slices.Sorted(maps.Keys(p.Networks)) {
		if r.IntN(2) == 0 {
			s.Networks[key] = nil
		}
	}
	for _, key := range slices.Sorted(maps.Keys(p.Volumes)) {
		if r.IntN(3) == 0 {
			s.Volumes = append(s.Volumes, types.ServiceVolumeConfig{Type: "volume", Source: key, Target: "/" + key})
		}
	}
	slices.SortFunc(s.Volumes, func(a, b types.ServiceVolumeConfig) int { return len(a.Source) - len(b.Source) })
	if r.IntN(4) == 0 {
		s.Volumes = append(s.Volumes, types.ServiceVolumeConfig{Type: "volume", Target: "/anonymous"})
	}
	decorate(r, p, &s)
	for _, dep := range earlier {
		if r.IntN(3) > 0 {
			continue
		}
		d := p.Services[dep]
		if s.DependsOn == nil {
			s.DependsOn = types.DependsOnConfig{}
		}
		condition := types.ServiceConditionStarted
		switch {
		case isOnce(d) && r.IntN(2) == 0:
			condition = types.ServiceConditionCompletedSuccessfully
		case d.HealthCheck != nil && !isOnce(d) && r.IntN(2) == 0:
			condition = types.ServiceConditionHealthy
		}
		s.DependsOn[dep] = types.ServiceDependency{Condition: condition, Restart: r.IntN(3) == 0, Required: r.IntN(6) > 0}
		if d.GetScale() == 0 || isOnce(d) {
			continue
		}
		switch r.IntN(16) {
		case 0, 1:
			if s.NetworkMode == "" && len(s.Ports) == 0 {
				s.NetworkMode, s.Networks = "service:"+dep, nil
			}
		case 2:
			s.Pid = "service:" + dep
		case 3:
			s.Ipc = "service:" + dep
		case 4:
			s.VolumesFrom = append(s.VolumesFrom, dep+chance(r, "", ":ro"))
		case 5:
			s.Links = append(s.Links, dep+chance(r, "", ":other"))
		}
	}
	if r.IntN(3) == 0 {
		update := func() *types.UpdateConfig {
			parallel := uint64(r.IntN(3))
			return &types.UpdateConfig{Parallelism: &parallel, Monitor: types.Duration(1), Delay: types.Duration(r.IntN(2)), Order: chance(r, "", "start-first", "stop-first"), FailureAction: chance(r, "", "pause", "continue"), MaxFailureRatio: float32(r.IntN(2))}
		}
		s.Deploy = &types.DeployConfig{UpdateConfig: update(), Mode: chance(r, "", "", "replicated", "global")}
		if r.IntN(3) == 0 {
			s.Deploy.RollbackConfig = update()
		}
	}
	return s
}

// decorate adds attributes that say little of other services.
func decorate(r *rand.Rand, p *types.Project, s *types.ServiceConfig) {
	few := func() bool { return r.IntN(5) == 0 }
	if few() && s.Scale == nil {
		var at int
		_, _ = fmt.Sscanf(s.Name, "s%d", &at)
		s.Ports = []types.ServicePortConfig{{Target: 80, Published: fmt.Sprint(8000 + at), Protocol: "tcp", Mode: "ingress"}}
	}
	if few() {
		s.Command = types.ShellCommand{chance(r, "once", "serve", "work")}
	}
	if isOnce(*s) {
		s.HealthCheck, s.Ports = nil, nil
	}
	if few() {
		s.Labels = types.Labels{"l": chance(r, "1", "2")}
	}
	if few() {
		s.Restart = chance(r, "no", "always", "unless-stopped", "on-failure:3")
	}
	if few() {
		s.User, s.WorkingDir, s.ReadOnly = chance(r, "", "1"), chance(r, "", "/w"), r.IntN(2) == 0
	}
	if few() {
		s.CapAdd, s.Tmpfs, s.StopSignal = []string{"NET_ADMIN"}, types.StringList{"/t"}, chance(r, "", "QUIT")
	}
	if few() {
		s.MemLimit, s.CPUS, s.PidsLimit = types.UnitBytes(64<<20*(1+r.IntN(2))), 0.5, 100
	}
	if few() {
		s.ExtraHosts, s.DNS, s.Sysctls = types.HostsList{"x": {"1.2.3.4"}}, types.StringList{"9.9.9.9"}, types.Mapping{"net.core.somaxconn": "1"}
	}
	if few() {
		grace := types.Duration(time.Second)
		s.StopGracePeriod, s.Hostname, s.Init = &grace, chance(r, "", "h"), new(bool)
	}
	if few() && len(p.Secrets) > 0 && !s.ReadOnly {
		s.Secrets = []types.ServiceSecretConfig{{Source: "word"}}
	}
	if few() {
		s.PostStart = []types.ServiceHook{{Command: types.ShellCommand{"p"}}}
	}
	if few() {
		s.PreStop = []types.ServiceHook{{Command: types.ShellCommand{"q"}}}
	}
	if few() {
		s.PreStart = []types.PreStartHook{{ContainerSpec: types.ContainerSpec{Command: types.ShellCommand{"before"}}}}
	}
	for _, key := range slices.Sorted(maps.Keys(s.Networks)) {
		if few() {
			s.Networks[key] = &types.ServiceNetworkConfig{Aliases: []string{chance(r, "x", "y")}, Priority: r.IntN(3)}
		}
	}
	if few() && s.Networks != nil {
		s.NetworkMode, s.Networks = chance(r, "none", "bridge", "host"), nil
		if s.NetworkMode != "bridge" {
			s.Ports = nil
		}
	}
	if few() {
		s.Volumes = append(s.Volumes, types.ServiceVolumeConfig{Type: types.VolumeTypeTmpfs, Target: "/tmpfs"}, types.ServiceVolumeConfig{Type: types.VolumeTypeBind, Source: chance(r, "/srv", "/opt"), Target: "/b"})
	}
	if few() {
		s.Volumes = append(s.Volumes, types.ServiceVolumeConfig{Type: types.VolumeTypeImage, Source: fmt.Sprintf("image%d", r.IntN(3)), Target: "/i"})
	}
}
