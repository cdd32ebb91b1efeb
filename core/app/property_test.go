package app

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
)

var cases = flag.Int("cases", 300, "random pairs of projects to plan and apply")

// TestThePlanAfterAnApplyIsEmpty takes random pairs of projects: the second is
// applied over the first, with a random policy; then nothing must be left to do.
func TestThePlanAfterAnApplyIsEmpty(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	for i := range *cases {
		if err := applyTwo(seed + uint64(i)); err != nil {
			t.Fatalf("seed %d: %v", seed+uint64(i), err)
		}
	}
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
	s := w.service()
	defer s.Shutdown()
	for turn := range 2 {
		a, policy := randomApp(r), Policy{}
		if turn == 1 {
			policy = randomPolicy(r, a)
			for name := range w.images { // the world has moved on
				if r.IntN(4) == 0 {
					w.images[name] += "'"
				}
			}
			for _, c := range w.containers {
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
		if never := policy.Recreate == RecreateNever || policy.RecreateDeps == RecreateNever; never && (strings.Contains(err.Error(), "has no healthcheck") || strings.Contains(err.Error(), "cannot join a namespace")) {
			return nil // an old container that is kept cannot be what is asked of it
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
	if !left.Empty() {
		return fmt.Errorf("still to do:\n%safter:\n%s%s", left, plan, laterPlans(op))
	}
	return nil
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
	p.Compatibility = false
	if r.IntN(4) == 0 {
		p.Services = []string{chance(r, a.Project.ServiceNames()...)}
	}
	if r.IntN(4) == 0 {
		p.Scale = map[string]int{}
		name := chance(r, a.Project.ServiceNames()...)
		if a.Project.Services[name].ContainerName == "" {
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
		p.Networks[key] = types.NetworkConfig{Name: "app_" + key + chance(r, "", "", "x"), Internal: r.IntN(4) == 0}
	}
	for i := range r.IntN(3) {
		key := fmt.Sprintf("vol%d", i)
		p.Volumes[key] = types.VolumeConfig{Name: "app_" + key, Labels: chance(r, nil, nil, types.Labels{"a": "b"})}
	}
	var names []string
	for i := range 1 + r.IntN(6) {
		s := randomService(r, p, fmt.Sprintf("s%d", i), names)
		p.Services[s.Name] = s
		names = append(names, s.Name)
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
	for key := range p.Networks {
		if r.IntN(2) == 0 {
			s.Networks[key] = nil
		}
	}
	for key := range p.Volumes {
		if r.IntN(3) == 0 {
			s.Volumes = append(s.Volumes, types.ServiceVolumeConfig{Type: "volume", Source: key, Target: "/" + key})
		}
	}
	slices.SortFunc(s.Volumes, func(a, b types.ServiceVolumeConfig) int { return len(a.Source) - len(b.Source) })
	if r.IntN(4) == 0 {
		s.Volumes = append(s.Volumes, types.ServiceVolumeConfig{Type: "volume", Target: "/anonymous"})
	}
	for _, dep := range earlier {
		if r.IntN(3) > 0 {
			continue
		}
		if s.DependsOn == nil {
			s.DependsOn = types.DependsOnConfig{}
		}
		condition := types.ServiceConditionStarted
		if p.Services[dep].HealthCheck != nil && r.IntN(2) == 0 {
			condition = types.ServiceConditionHealthy
		}
		s.DependsOn[dep] = types.ServiceDependency{Condition: condition, Restart: r.IntN(3) == 0, Required: true}
		if d := p.Services[dep]; r.IntN(6) == 0 && d.GetScale() > 0 && s.NetworkMode == "" {
			s.NetworkMode, s.Networks = "service:"+dep, nil
		}
	}
	if r.IntN(3) == 0 {
		one := uint64(r.IntN(3))
		s.Deploy = &types.DeployConfig{UpdateConfig: &types.UpdateConfig{Parallelism: &one, Monitor: types.Duration(1), Order: chance(r, "", "start-first", "stop-first")}}
	}
	return s
}
