package app

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/berth-project/berth/core/container"
)

// bring applies an application as a client would, and gives how that ended.
func bring(t *testing.T, s *Service, a *App, p Policy) Result {
	t.Helper()
	d, err := NewDocument(a)
	if err != nil {
		t.Fatal(err)
	}
	id, err := s.Apply(context.Background(), ApplyRequest{Document: d, Policy: p})
	if err != nil {
		t.Fatal(err)
	}
	return result(s, id)
}

func result(s *Service, id string) (r Result) {
	_ = s.Follow(context.Background(), id, 0, func(p Progress) error {
		if p.Result != nil {
			r = *p.Result
		}
		return nil
	})
	return r
}

// picture gives what there is, and the plans that led to it.
func picture(s *Service, list []container.Container) (text string) {
	for _, c := range list {
		text += fmt.Sprintln(c.Name, c.State.Status, c.Spec.Env, c.State.Ports)
	}
	for _, o := range s.Operations() {
		_ = s.Follow(context.Background(), o.ID, 0, func(p Progress) error {
			if p.Plan != nil {
				text += p.Plan.String()
			}
			return nil
		})
	}
	return text
}

// webApp has a service with a network of its own, replaced by turns.
func webApp(internal bool) *App {
	return &App{Project: &types.Project{
		Name: "app", Networks: types.Networks{"net": {Name: "app_net", Internal: internal}},
		Services: types.Services{
			"web":  {Name: "web", ContainerSpec: types.ContainerSpec{Image: "image0", Networks: map[string]*types.ServiceNetworkConfig{"net": nil}}},
			"side": {Name: "side", ContainerSpec: types.ContainerSpec{Image: "image0", Networks: map[string]*types.ServiceNetworkConfig{"net": nil}}},
		},
	}}
}

// Whoever is taken off a network that is made anew comes back to it, also who
// is no service's and whom no plan would know.
func TestAKillWhileANetworkIsMadeAnewLeavesNobodyOff(t *testing.T) {
	for fuse := 1; ; fuse++ {
		w := newWorld()
		w.images["image0"] = "sha256:0"
		s := w.service()
		if r := bring(t, s, webApp(false), Policy{}); r.Error != "" {
			t.Fatal(r.Error)
		}
		labels := map[string]string{LabelApp: "app", LabelService: "web", LabelOneOff: "True"}
		id, _, err := w.Create(context.Background(), container.Spec{Image: "image0", Labels: labels, NetworkMode: "app_net", Endpoints: []container.EndpointSpec{{Network: "app_net"}}}, container.CreateOptions{Name: "app-web-run-1"})
		if err != nil || w.Start(context.Background(), string(id)) != nil {
			t.Fatal(err)
		}
		w.fuse = fuse
		// Only web is wanted: side is on the network all the same.
		bring(t, s, webApp(true), Policy{Services: []string{"web"}, NoDeps: true})
		survived := w.fuse > 0
		s.Shutdown()
		s = w.reborn()
		if errs := settle(s); len(errs) > 0 {
			t.Fatalf("fuse %d: %v", fuse, errs)
		}
		for _, c := range w.All() {
			if len(c.Spec.Endpoints) != 1 || c.State.Status != container.Running || len(c.State.Endpoints) != 1 {
				t.Fatalf("killed at change %d, %s is %s on %v", fuse, c.Name, c.State.Status, c.State.Endpoints)
			}
			if _, err := w.network(c.State.Endpoints[0].NetworkID); err != nil {
				t.Fatalf("killed at change %d, %s is on a network that is gone", fuse, c.Name)
			}
		}
		if r, _ := s.record("app"); len(r.Apart) > 0 || r.Journal != nil {
			t.Fatalf("killed at change %d, still noted: %+v", fuse, r)
		}
		s.Shutdown()
		if survived {
			return
		}
	}
}

// rolling is an application of one published service, replaced one by one.
func rolling(env, order string, replicas int, ports bool) *App {
	one := uint64(1)
	s := types.ServiceConfig{Name: "web", ContainerSpec: types.ContainerSpec{Image: "image0", Environment: types.MappingWithEquals{"N": &env}}, Scale: &replicas,
		Deploy: &types.DeployConfig{UpdateConfig: &types.UpdateConfig{Parallelism: &one, Monitor: types.Duration(1), Order: order}}}
	s.HealthCheck = &types.HealthCheckConfig{Test: []string{"CMD", "true"}}
	if ports {
		s.Ports = []types.ServicePortConfig{{Target: 80, Published: "8080", Protocol: "tcp", Mode: "ingress"}}
	}
	return &App{Project: &types.Project{Name: "app", Services: types.Services{"web": s}}}
}

// The port leads somewhere as soon as the next daemon has gone on, and to the
// container that stays.
func TestAKillInARollingReplacementLosesNoPort(t *testing.T) {
	for _, order := range []string{"start-first", "stop-first"} {
		for fuse, survived := 1, false; !survived; fuse++ {
			w := newWorld()
			w.images["image0"] = "sha256:0"
			s := w.service()
			if r := bring(t, s, rolling("1", order, 1, true), Policy{}); r.Error != "" {
				t.Fatal(r.Error)
			}
			w.fuse = fuse
			bring(t, s, rolling("2", order, 1, true), Policy{})
			survived = w.fuse > 0
			s.Shutdown()
			s = w.reborn()
			if errs := settle(s); len(errs) > 0 {
				t.Fatalf("%s, fuse %d: %v", order, fuse, errs)
			}
			list := w.All()
			if len(list) != 1 || list[0].Name != "app-web-1" || list[0].State.Status != container.Running || len(list[0].State.Ports) != 1 {
				t.Fatalf("%s, killed at change %d: %s", order, fuse, picture(s, list))
			}
			if survived && !slices.Contains(list[0].Spec.Env, "N=2") {
				t.Fatal("nothing was replaced")
			}
			s.Shutdown()
		}
	}
}

// A person who changes the mind after a kill gets what is wanted last.
func TestAKilledReplacementThatIsNotWantedAnyMoreGoes(t *testing.T) {
	for _, last := range []string{"1", "3"} {
		for fuse, survived := 1, false; !survived; fuse++ {
			w := newWorld()
			w.images["image0"] = "sha256:0"
			s := w.service()
			bring(t, s, rolling("1", "start-first", 1, true), Policy{})
			w.fuse = fuse
			bring(t, s, rolling("2", "start-first", 1, true), Policy{})
			survived = w.fuse > 0
			s.Shutdown()
			w.dead, w.fuse = false, 0
			clear(w.heirs)
			s = w.service() // before it has gone on, the next wish comes
			if r := bring(t, s, rolling(last, "start-first", 1, true), Policy{}); r.Error != "" {
				t.Fatalf("to %s, killed at change %d: %s", last, fuse, r.Error)
			}
			list := w.All()
			if len(list) != 1 || list[0].Name != "app-web-1" || len(list[0].State.Ports) != 1 || !slices.Contains(list[0].Spec.Env, "N="+last) {
				t.Fatalf("to %s, killed at change %d: %s", last, fuse, picture(s, list))
			}
			s.Shutdown()
		}
	}
}

// TestAKilledDaemonConverges kills at a random change of a random pair of
// projects; the next daemon must come to where nothing is left to do.
func TestAKilledDaemonConverges(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	for i := range *cases / 3 {
		if err := killOnce(seed + uint64(i)); err != nil {
			t.Fatalf("seed %d: %v", seed+uint64(i), err)
		}
	}
}

func killOnce(seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 2))
	w := newWorld()
	for i := range 3 {
		name := fmt.Sprintf("image%d", i)
		w.images[name], w.pulls[name] = "sha256:"+name, fmt.Sprintf("sha256:%s-%d", name, r.IntN(2))
	}
	outside(w)
	s := w.service()
	var before Plan
	var policy Policy
	for turn := range 2 {
		a := randomApp(r)
		if turn == 1 {
			policy = randomPolicy(r, a)
			policy.Recreate, policy.RecreateDeps, policy.NoStart, policy.Pull, policy.Services = "", "", false, "missing", nil
			before, _ = s.plan(context.Background(), a, policy, nil, nil)
			w.fuse = 1 + r.IntN(80)
		}
		d, err := NewDocument(a)
		if err != nil {
			return err
		}
		id, err := s.Apply(context.Background(), ApplyRequest{Document: d, Policy: policy})
		if err != nil {
			return err
		}
		if res := result(s, id); res.Error != "" && !w.dead {
			return fmt.Errorf("turn %d: %s", turn, res.Error)
		}
	}
	s.Shutdown()
	s = w.reborn()
	defer s.Shutdown()
	if errs := settle(s); len(errs) > 0 {
		return fmt.Errorf("after the kill: %v\n%s", errs, before)
	}
	rec, _ := s.record("app")
	rev, err := s.revision(context.Background(), "app", rec.Current)
	if err != nil {
		return err
	}
	a, err := rev.Document.App()
	if err != nil {
		return err
	}
	if rec.Current == 1 { // it died before the wish was on disk
		policy = Policy{}
	}
	policy.ReplaceVolume, policy.Scale, policy.Pull = false, nil, "missing"
	left, err := s.plan(context.Background(), a, policy, nil, nil)
	if err != nil {
		return err
	}
	left.Steps = again(s, left.Steps)
	if !left.Empty() || len(rec.Apart) > 0 || rec.Journal != nil {
		return fmt.Errorf("still to do:\n%sapart %v, journal %v; before:\n%s", left, rec.Apart, rec.Journal, before)
	}
	for _, c := range w.All() {
		if strings.Contains(c.Name, "_app-") || strings.Contains(c.Name, "_own-") {
			return fmt.Errorf("%s is left of:\n%s", c.Name, before)
		}
		for _, p := range c.Spec.Publish {
			if c.State.Status == container.Running && !leadsTo(*w.containers[string(c.ID)], p) {
				return fmt.Errorf("port %d does not lead to %s, which was made by:\n%s", p.HostPort, c.Name, before)
			}
		}
	}
	return nil
}
