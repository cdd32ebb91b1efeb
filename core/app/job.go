package app

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/robfig/cron/v3"

	"github.com/berth-project/berth/lib/fault"
)

// Jobs are containers that run to their end, by hand or when their schedule
// says. The clock holds the schedules of all applications that are up.

var cronParser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// checkJob refuses schedules that nobody can follow.
func checkJob(j types.JobConfig) error {
	if j.Image == "" && j.Build == nil {
		return fmt.Errorf("it has neither image nor build")
	}
	if j.Triggers == nil {
		return nil
	}
	for _, c := range j.Triggers.Schedule {
		if _, err := schedule(c); err != nil {
			return err
		}
	}
	return nil
}

// schedule reads a crontab line with its time zone.
func schedule(c types.ScheduleConfig) (cron.Schedule, error) {
	text := c.Cron
	if c.Timezone != "" {
		text = "CRON_TZ=" + c.Timezone + " " + text
	}
	switch c.Concurrency {
	case "", "allow", "forbid", "replace", "skip", "queue":
	default:
		return nil, fmt.Errorf("triggers.schedule.concurrency: %q is not known", c.Concurrency)
	}
	v, err := cronParser.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("triggers.schedule: %w", err)
	}
	return v, nil
}

// clock starts jobs when their time has come.
type clock struct {
	s    *Service
	cron *cron.Cron

	mu      sync.Mutex
	entries map[string][]cron.EntryID // by application
	state   map[string]*JobState      // by "application/job"
	running map[string]context.CancelFunc
}

func newClock(s *Service) *clock {
	c := &clock{s: s, cron: cron.New(), entries: map[string][]cron.EntryID{}, state: map[string]*JobState{}, running: map[string]context.CancelFunc{}}
	c.cron.Start()
	return c
}

func (c *clock) close() { <-c.cron.Stop().Done() }

// set replaces the schedules of an application; nil takes them away.
func (c *clock) set(app string, a *App) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range c.entries[app] {
		c.cron.Remove(id)
	}
	delete(c.entries, app)
	if a == nil {
		return
	}
	for name, j := range a.Project.Jobs {
		if j.Triggers == nil {
			continue
		}
		for _, sc := range j.Triggers.Schedule {
			when, err := schedule(sc)
			if err != nil {
				c.s.log.Warn("schedule not followed", "app", app, "job", name, "error", err)
				continue
			}
			c.entries[app] = append(c.entries[app], c.cron.Schedule(when, cron.FuncJob(func() {
				if err := c.s.startJob(app, a, name, sc.Concurrency); err != nil {
					c.s.log.Warn("job not started", "app", app, "job", name, "error", err)
				}
			})))
		}
	}
}

// RunJob runs a job now, and does not wait for its end.
func (s *Service) RunJob(ctx context.Context, app, job string) error {
	a, _, err := s.known(ctx, app, nil)
	if err != nil {
		return err
	}
	if a == nil {
		return fault.NotFoundf("%s is not up", app)
	}
	j, ok := a.Project.Jobs[job]
	if !ok {
		return fault.NotFoundf("no such job: %s", job)
	}
	if t := j.Triggers; t != nil && t.Manual != nil && !*t.Manual {
		return fault.Conflictf("the job %s may be started by its schedule only (triggers.manual: false)", job)
	}
	return s.startJob(app, a, job, "forbid")
}

// startJob runs a job beside all operations; of what runs already concurrency decides.
func (s *Service) startJob(app string, a *App, name, concurrency string) error {
	c, key := s.clock, app+"/"+name
	ctx, cancel := context.WithCancel(s.ctx)
	c.mu.Lock()
	if end := c.running[key]; end != nil && concurrency != "allow" {
		if concurrency != "replace" {
			c.mu.Unlock()
			cancel()
			return fault.Conflictf("the job %s runs already", name)
		}
		end()
	}
	st := &JobState{Name: name, Last: time.Now(), Outcome: "running"}
	c.state[key], c.running[key] = st, cancel
	c.mu.Unlock()
	s.mu.Lock()
	if s.ctx.Err() != nil {
		s.mu.Unlock()
		cancel()
		return fault.Unavailablef("the daemon is stopping")
	}
	s.work.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.work.Done()
		defer cancel()
		code, err := s.runJob(ctx, app, a, name)
		outcome := fmt.Sprintf("exit %d", code)
		if err != nil {
			outcome = err.Error()
		}
		c.mu.Lock()
		st.Outcome = outcome
		if c.state[key] == st {
			delete(c.running, key)
		}
		c.mu.Unlock()
		s.log.Info("job ended", "app", app, "job", name, "outcome", outcome)
	}()
	return nil
}

func (s *Service) runJob(ctx context.Context, app string, a *App, name string) (int, error) {
	rec, _ := s.record(app)
	j := a.Project.Jobs[name]
	service := types.ServiceConfig{Name: name, ContainerSpec: j.ContainerSpec, WorkloadSpec: j.WorkloadSpec}
	op := newOperation(app, "job", func() {})
	walk := &run{s: s, op: op, app: a, sep: separator(rec.Compatibility), images: map[string]Image{}, made: map[string]string{}, fresh: map[string]bool{}, failed: map[string]error{}}
	image := ImageName(app, service, walk.sep)
	if err := walk.arrived(ctx, image, a.platform(service.Platform)); err != nil {
		if err := walk.pull(ctx, Step{ID: "pull " + image, Action: Pull, Kind: KindImage, Name: image, Service: name}); err != nil {
			return 0, err
		}
	}
	st := Step{ID: "run job " + name, Action: Start, Kind: KindJob, Name: name, Service: name}
	return walk.oneShot(ctx, st, service, strings.Join([]string{app, name, "job"}, walk.sep), map[string]string{LabelOneOff: "True"})
}

func (s *Service) jobStates(a *App) (list []JobState) {
	c := s.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, j := range a.Project.Jobs {
		st := JobState{Name: name}
		if known := c.state[a.Project.Name+"/"+name]; known != nil {
			st = *known
		}
		if j.Triggers != nil {
			for _, sc := range j.Triggers.Schedule {
				st.Schedule = strings.TrimSpace(st.Schedule + " " + sc.Cron)
				if when, err := schedule(sc); err == nil {
					if next := when.Next(time.Now()); st.Next.IsZero() || next.Before(st.Next) {
						st.Next = next
					}
				}
			}
		}
		list = append(list, st)
	}
	return list
}
