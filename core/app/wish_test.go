package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/test/kit"
)

func act(t *testing.T, s *Service, verb string, r ActRequest) Result {
	t.Helper()
	id, err := s.Act(context.Background(), "app", verb, r)
	if err != nil {
		t.Fatal(err)
	}
	return result(s, id)
}

func TestOnlyASignalThatEndsCountsAsAStop(t *testing.T) {
	stop := "QUIT"
	for _, c := range []struct {
		signal, own string
		want        bool
	}{
		{"HUP", "", false}, {"USR1", "", false}, {"", "", true}, {"KILL", "", true}, {"9", "", true}, {"TERM", "", true},
		{"TERM", stop, false}, {"QUIT", stop, true}, {"SIGQUIT", stop, true}, {"KILL", stop, true},
	} {
		w := newWorld()
		w.images["image0"] = "sha256:0"
		s := w.service()
		a := webApp(false)
		for name, v := range a.Project.Services {
			v.StopSignal = c.own
			a.Project.Services[name] = v
		}
		bring(t, s, a, Policy{})
		if r := act(t, s, "kill", ActRequest{Signal: c.signal}); r.Error != "" {
			t.Fatal(r.Error)
		}
		if r, _ := s.record("app"); r.Stopped != c.want {
			t.Errorf("after kill -s %q of containers that stop by %q, stopped is %t", c.signal, c.own, r.Stopped)
		}
		s.Shutdown()
	}
}

// What a person removes is not made again by the next daemon; the rest goes on.
func TestARemovalLeavesTheRestWanted(t *testing.T) {
	w := newWorld()
	w.images["image0"] = "sha256:0"
	s := w.service()
	bring(t, s, webApp(false), Policy{})
	if r := act(t, s, "rm", ActRequest{}); r.Error != "" {
		t.Fatal(r.Error)
	}
	if r, _ := s.record("app"); r.Stopped || r.Current != 1 || r.Services != nil {
		t.Fatalf("a removal of nothing changed the wish: %+v", r)
	}
	if r := act(t, s, "rm", ActRequest{Services: []string{"web"}, Stop: true}); r.Error != "" {
		t.Fatal(r.Error)
	}
	if r, _ := s.record("app"); r.Stopped || !slices.Equal(r.Services, []string{"side"}) {
		t.Fatalf("the wish is %+v", r)
	}
	s.Shutdown()
	s = w.reborn()
	defer s.Shutdown()
	settle(s)
	if list := w.All(); len(list) != 1 || list[0].Name != "app-side-1" || list[0].State.Status != container.Running {
		t.Fatalf("there is %s", picture(s, list))
	}
}

// One revision is read where one is needed, however many there are.
func TestAnUpReadsNoOtherRevisions(t *testing.T) {
	w := newWorld()
	w.images["image0"] = "sha256:0"
	s := w.service()
	defer s.Shutdown()
	for i := range 20 {
		bring(t, s, rolling(fmt.Sprint(i), "", 1, false), Policy{})
	}
	w.decoded = 0
	bring(t, s, rolling("19", "", 1, false), Policy{})
	if w.decoded > 2 {
		t.Errorf("an up without change read %d revisions", w.decoded)
	}
	w.decoded = 0
	bring(t, s, rolling("20", "", 1, false), Policy{})
	if w.decoded > 3 {
		t.Errorf("an up with a change read %d revisions", w.decoded)
	}
}

// back gives an application whose way back is described apart: the new one
// cannot be started, as its image is of a server that never gets well.
func back(env string, sick bool, rollback *types.UpdateConfig) *App {
	a := rolling(env, "start-first", 4, false)
	v := a.Project.Services["web"]
	v.Deploy.UpdateConfig.FailureAction = "rollback"
	v.Deploy.RollbackConfig = rollback
	if sick {
		v.Command = types.ShellCommand{"broken"}
	}
	a.Project.Services["web"] = v
	return a
}

func TestTheWayBackFollowsRollbackConfig(t *testing.T) {
	two := uint64(2)
	w := newWorld()
	w.images["image0"] = "sha256:0"
	s := w.service()
	defer s.Shutdown()
	config := &types.UpdateConfig{Parallelism: &two, Order: "stop-first", Monitor: types.Duration(1), Delay: types.Duration(1)}
	if r := bring(t, s, back("1", false, config), Policy{}); r.Error != "" {
		t.Fatal(r.Error)
	}
	if r := bring(t, s, back("2", false, config), Policy{}); r.Error != "" {
		t.Fatal(r.Error)
	}
	// An asked-for rollback: two at a time, each stopped before the next starts.
	id, err := s.Rollback(context.Background(), "app", RollbackRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r := result(s, id); r.Error != "" {
		t.Fatal(r.Error)
	}
	checkBack(t, s, "stop-first", 2)

	// One after a failed update.
	r := bring(t, s, back("3", true, config), Policy{})
	if r.Error == "" || !slices.Equal(r.RolledBack, []string{"web"}) {
		t.Fatalf("the update did not go back: %+v", r)
	}
	list := w.All()
	if len(list) != 4 || slices.ContainsFunc(list, func(c container.Container) bool {
		return c.State.Status != container.Running || !slices.Contains(c.Spec.Env, "N=1")
	}) {
		t.Fatalf("after the way back there is\n%s", picture(s, list))
	}
	h, err := s.History(context.Background(), "app", false)
	if err != nil || !strings.HasPrefix(h[1].Outcome, "failed: ") || h[0].Outcome != "applied" || h[0].Verb != "rollback" {
		t.Errorf("history is %+v, %v", h, err)
	}
}

// checkBack looks at the last plan that replaces.
func checkBack(t *testing.T, s *Service, order string, parallel int) {
	t.Helper()
	var last *Plan
	for _, o := range s.Operations() {
		_ = s.Follow(context.Background(), o.ID, 0, func(p Progress) error {
			if p.Plan != nil && !p.Plan.Empty() {
				last = p.Plan
			}
			return nil
		})
	}
	first, at := 0, map[string]int{}
	for i, st := range last.Steps {
		at[st.ID] = i
		if st.Action == Create && !slices.ContainsFunc(st.After, func(id string) bool { return strings.Contains(id, "settle") || strings.Contains(id, "rename") }) {
			first++
		}
	}
	if first != parallel {
		t.Errorf("%d are replaced at a time, want %d:\n%s", first, parallel, last)
	}
	for _, st := range last.Steps {
		if st.Action != Stop {
			continue
		}
		if stopFirst := !slices.ContainsFunc(st.After, func(id string) bool { return strings.Contains(id, "settle") || strings.Contains(id, "switch") }); stopFirst != (order == "stop-first") {
			t.Errorf("%s is not %s:\n%s", st.ID, order, last)
		}
	}
}

// A daemon that dies on the way back leaves one that goes on with it, and not
// one that tries again what has failed.
func TestAKillOnTheWayBackGoesOnBack(t *testing.T) {
	for i, survived := 2, false; !survived || i%2 > 0; i++ {
		fuse, order := i/2, []string{"start-first", "stop-first"}[i%2]
		w := newWorld()
		w.images["image0"] = "sha256:0"
		s := w.service()
		with := func(a *App) *App {
			a.Project.Services["web"].Deploy.UpdateConfig.Order = order
			return a
		}
		bring(t, s, with(back("1", false, nil)), Policy{})
		w.fuse = fuse
		bring(t, s, with(back("2", true, nil)), Policy{})
		survived = w.fuse > 0
		s.Shutdown()
		s = w.reborn()
		settle(s)
		rec, _ := s.record("app")
		list := w.All()
		if len(list) != 4 || rec.Journal != nil || slices.ContainsFunc(list, func(c container.Container) bool {
			return c.State.Status != container.Running || !slices.Contains(c.Spec.Env, "N=1")
		}) {
			t.Fatalf("%s, killed at change %d: %+v\n%s", order, fuse, rec, picture(s, list))
		}
		s.Shutdown()
	}
}

func TestAWayBackTakesItsNetworksAlong(t *testing.T) {
	w := newWorld()
	w.images["image0"] = "sha256:0"
	s := w.service()
	defer s.Shutdown()
	first := back("1", false, nil)
	v := first.Project.Services["web"]
	v.Networks = map[string]*types.ServiceNetworkConfig{"old": nil}
	first.Project.Services["web"], first.Project.Networks = v, types.Networks{"old": {Name: "app_old"}}
	bring(t, s, first, Policy{})
	r := bring(t, s, back("2", true, nil), Policy{})
	if r.Error == "" || strings.Contains(r.Error, "go back") {
		t.Fatalf("%+v", r)
	}
	if c := w.All(); len(c) != 4 || len(c[0].State.Endpoints) != 1 {
		t.Fatal(picture(s, c))
	}
}

func TestUnknownWaysOfReplacingAreRefused(t *testing.T) {
	s := newWorld().service()
	defer s.Shutdown()
	for _, c := range []struct {
		update, back *types.UpdateConfig
		want         string
	}{
		{&types.UpdateConfig{Order: "both"}, nil, "deploy.update_config"},
		{&types.UpdateConfig{FailureAction: "cry"}, nil, "deploy.update_config"},
		{nil, &types.UpdateConfig{FailureAction: "rollback"}, "deploy.rollback_config"},
	} {
		a := rolling("1", "", 1, false)
		v := a.Project.Services["web"]
		v.Deploy.UpdateConfig, v.Deploy.RollbackConfig = c.update, c.back
		a.Project.Services["web"] = v
		if err := s.checkAll(a, Policy{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v %+v: %v", c.update, c.back, err)
		}
	}
}

// jobApp has one job and one service.
func jobApp(concurrency, missed string, on types.DependsOnConfig) *App {
	a := webApp(false)
	a.Project.Jobs = types.Jobs{"copy": {
		Name: "copy", ContainerSpec: types.ContainerSpec{Image: "image0"}, WorkloadSpec: types.WorkloadSpec{DependsOn: on},
		Triggers: &types.TriggerConfig{Schedule: []types.ScheduleConfig{{Cron: "0 * * * *", Concurrency: concurrency, MissedFires: missed}}},
	}}
	return a
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if err := kit.Until(20*time.Second, func() error {
		if !ok() {
			return errors.New(what)
		}
		return nil
	}); err != nil {
		t.Fatalf("it did not come to this: %v", err)
	}
}

func jobState(s *Service, a *App) JobState { return s.jobStates(a)[0] }

func TestARunningJobIsKnownToTheNextDaemon(t *testing.T) {
	for _, concurrency := range []string{"forbid", "queue"} {
		w := newWorld()
		w.images["image0"] = "sha256:0"
		w.block["app-copy-job"] = make(chan struct{})
		s := w.service()
		a := jobApp(concurrency, "", nil)
		bring(t, s, a, Policy{})
		sc := a.Project.Jobs["copy"].Triggers.Schedule[0]
		s.fire(a, "copy", sc)
		eventually(t, "the job runs", func() bool {
			c, ok := s.named(context.Background(), "app", "app-copy-job")
			return ok && c.State.Status == container.Running
		})
		first, _ := s.named(context.Background(), "app", "app-copy-job")
		s.Shutdown()
		s = w.reborn()
		settle(s)
		eventually(t, "the next daemon knows of it", func() bool { return s.RunJob(context.Background(), "app", "copy") != nil })
		s.fire(a, "copy", sc)
		if now, _ := s.named(context.Background(), "app", "app-copy-job"); now.ID != first.ID {
			t.Fatalf("%s: another run took its place", concurrency)
		}
		if st := jobState(s, a); st.Outcome != "running" || st.Queued != map[string]int{"forbid": 0, "queue": 1}[concurrency] {
			t.Errorf("%s: the job is %+v", concurrency, st)
		}
		close(w.block["app-copy-job"])
		eventually(t, "all runs have ended", func() bool {
			_, there := s.named(context.Background(), "app", "app-copy-job")
			st := jobState(s, a)
			return st.Outcome == "exit 0" && st.Queued == 0 && !there
		})
		if made := w.made("app-copy-job"); made != map[string]int{"forbid": 1, "queue": 2}[concurrency] {
			t.Errorf("%s: %d runs", concurrency, made)
		}
		s.Shutdown()
	}
}

func TestAMissedTimeIsMadeUpForOnce(t *testing.T) {
	for missed, want := range map[string]int{"": 1, "one": 1, "skip": 0} {
		w := newWorld()
		w.images["image0"] = "sha256:0"
		s := w.service()
		a := jobApp("", missed, types.DependsOnConfig{"web": {Condition: types.ServiceConditionStarted, Required: true}})
		bring(t, s, a, Policy{})
		s.Shutdown()
		j := w.jobs["app/copy"]
		j.Seen = j.Seen.Add(-5 * time.Hour)
		w.jobs["app/copy"] = j
		s = w.reborn()
		settle(s)
		if want > 0 {
			eventually(t, "the missed run is over", func() bool { return jobState(s, a).Outcome == "exit 0" })
		}
		s.Shutdown()
		s = w.reborn()
		settle(s)
		s.Shutdown()
		if made := w.made("app-copy-job"); made != want {
			t.Errorf("missed_fires %q: %d runs, want %d", missed, made, want)
		}
	}
}

func TestAJobWaitsForWhatItDependsOn(t *testing.T) {
	w := newWorld()
	w.images["image0"] = "sha256:0"
	s := w.service()
	defer s.Shutdown()
	a := jobApp("", "", types.DependsOnConfig{"web": {Condition: types.ServiceConditionStarted, Required: true}})
	bring(t, s, a, Policy{})
	web, _ := s.named(context.Background(), "app", "app-web-1")
	w.mu.Lock()
	w.containers[string(web.ID)].State.Status = container.Created
	w.mu.Unlock()
	if err := s.RunJob(context.Background(), "app", "copy"); err != nil {
		t.Fatal(err)
	}
	if st := jobState(s, a); st.Outcome != "running" || w.made("app-copy-job") != 0 {
		t.Fatalf("it did not wait: %+v", st)
	}
	if err := w.Start(context.Background(), string(web.ID)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the job has ended", func() bool { return jobState(s, a).Outcome == "exit 0" })

	for on, want := range map[string]string{"copy": "it is a job", "nobody": "no such service"} {
		bad := jobApp("", "", types.DependsOnConfig{on: {Condition: types.ServiceConditionStarted, Required: true}})
		if err := s.checkAll(bad, Policy{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("depends_on %s: %v", on, err)
		}
	}
	for _, bad := range []*App{jobApp("replace", "", nil), jobApp("", "all", nil)} {
		if err := s.checkAll(bad, Policy{}); err == nil || !strings.Contains(err.Error(), "is neither") {
			t.Error(err)
		}
	}
}

func TestAStoppedOrRemovedApplicationRunsNoJobs(t *testing.T) {
	w := newWorld()
	w.images["image0"] = "sha256:0"
	s := w.service()
	defer s.Shutdown()
	a := jobApp("", "", nil)
	bring(t, s, a, Policy{})
	act(t, s, "stop", ActRequest{})
	s.fire(a, "copy", a.Project.Jobs["copy"].Triggers.Schedule[0])
	if made := w.made("app-copy-job"); made != 0 || jobState(s, a).Outcome != "" {
		t.Error("a stopped application ran its job")
	}
	id, err := s.Down(context.Background(), "app", DownRequest{})
	if err != nil {
		t.Fatal(err)
	}
	result(s, id)
	if len(w.jobs) != 0 {
		t.Errorf("jobs are left: %v", w.jobs)
	}
}
