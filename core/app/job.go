package app

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/robfig/cron/v3"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// Jobs are containers that run to their end, by hand or when their schedule
// says. The clock holds the schedules of all applications that are up.

var cronParser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// queueLimit is how many runs of one job may wait for the one under way.
const queueLimit = 100

// checkJob refuses schedules that nobody can follow.
func checkJob(a *App, j types.JobConfig) error {
	if j.Image == "" && j.Build == nil {
		return fmt.Errorf("it has neither image nor build")
	}
	for _, name := range slices.Sorted(maps.Keys(j.DependsOn)) {
		d := j.DependsOn[name]
		_, service := a.Project.Services[name]
		_, off := a.Project.DisabledServices[name]
		_, job := a.Project.Jobs[name]
		switch {
		case job:
			return fmt.Errorf("depends_on.%s: it is a job, and jobs wait for services only", name)
		case !service && !off && d.Required:
			return fmt.Errorf("depends_on.%s: there is no such service", name)
		case d.Restart:
			return fmt.Errorf("depends_on.%s.restart: a job ends by itself and is not restarted", name)
		}
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
	case "", "forbid", "queue":
	default:
		return nil, fmt.Errorf("triggers.schedule.concurrency: %q is neither forbid nor queue", c.Concurrency)
	}
	switch c.MissedFires {
	case "", "one", "skip":
	default:
		return nil, fmt.Errorf("triggers.schedule.missed_fires: %q is neither one nor skip", c.MissedFires)
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
	jobs    map[string]*job           // by "application/job"
}

// job is one that is known. A run's outcome is noted before its container
// goes: a job that is said to run and has no container never came to it.
//
//	at rest ── start ──> running ── end ──> at rest, or running again where one is queued
type job struct {
	turn    chan struct{} // holds one token: whose change it is
	record  JobRecord     // clock.mu guards it, and running
	running bool          // in this daemon
}

const running = "running" // outcome of a job that has not ended

func newClock(ctx context.Context, s *Service) (*clock, error) {
	c := &clock{s: s, cron: cron.New(), entries: map[string][]cron.EntryID{}, jobs: map[string]*job{}}
	list, err := s.o.Store.Jobs(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range list {
		c.jobs[r.App+"/"+r.Name] = &job{turn: make(chan struct{}, 1), record: r}
	}
	c.cron.Start()
	return c, nil
}

func (c *clock) close() { <-c.cron.Stop().Done() }

// job gives one, new where it is not known.
func (c *clock) job(app, name string) *job {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := app + "/" + name
	if c.jobs[key] == nil {
		c.jobs[key] = &job{turn: make(chan struct{}, 1), record: JobRecord{App: app, Name: name}}
	}
	return c.jobs[key]
}

// note changes a job and writes it down, unless it was forgotten.
func (c *clock) note(j *job, change func(j *job)) {
	j.turn <- struct{}{}
	defer func() { <-j.turn }()
	c.mu.Lock()
	before := j.record
	if c.jobs[before.App+"/"+before.Name] == j {
		change(j)
	}
	r := j.record
	c.mu.Unlock()
	if r == before {
		return
	}
	if err := c.s.o.Store.PutJob(context.WithoutCancel(c.s.ctx), r); err != nil {
		c.s.log.Error("job not noted", "app", r.App, "job", r.Name, "error", err)
	}
}

// set replaces the schedules of an application; nil takes them away.
func (c *clock) set(app string, a *App) {
	c.mu.Lock()
	for _, id := range c.entries[app] {
		c.cron.Remove(id)
	}
	delete(c.entries, app)
	var gone []string
	for _, j := range c.jobs {
		kept := a != nil
		if kept {
			_, kept = a.Project.Jobs[j.record.Name]
		}
		if j.record.App == app && !kept {
			gone = append(gone, j.record.Name)
		}
	}
	c.mu.Unlock()
	for _, name := range gone {
		c.forget(app, name)
	}
	if a == nil {
		return
	}
	for name, j := range a.Project.Jobs {
		if j.Triggers == nil || len(j.Triggers.Schedule) == 0 {
			continue
		}
		c.note(c.job(app, name), func(j *job) {
			if j.record.Seen.IsZero() {
				j.record.Seen = time.Now()
			}
		})
		for _, sc := range j.Triggers.Schedule {
			when, err := schedule(sc)
			if err != nil {
				c.s.log.Warn("schedule not followed", "app", app, "job", name, "error", err)
				continue
			}
			c.mu.Lock()
			c.entries[app] = append(c.entries[app], c.cron.Schedule(when, cron.FuncJob(func() { c.s.fire(a, name, sc) })))
			c.mu.Unlock()
		}
	}
}

// forget drops a job that is not in the file any more.
func (c *clock) forget(app, name string) {
	j := c.job(app, name)
	j.turn <- struct{}{}
	defer func() { <-j.turn }()
	c.mu.Lock()
	delete(c.jobs, app+"/"+name)
	c.mu.Unlock()
	if err := c.s.o.Store.DeleteJob(context.WithoutCancel(c.s.ctx), app, name); err != nil {
		c.s.log.Error("job not forgotten", "app", app, "job", name, "error", err)
	}
}

// fire follows a schedule whose time has come. What a person has stopped stays so.
func (s *Service) fire(a *App, name string, sc types.ScheduleConfig) {
	app := a.Project.Name
	s.clock.note(s.clock.job(app, name), func(j *job) { j.record.Seen = time.Now() })
	if r, ok := s.record(app); !ok || r.Current == 0 || r.Stopped {
		return
	}
	if err := s.startJob(a, name, sc.Concurrency == "queue"); err != nil {
		s.log.Warn("job not started", "app", app, "job", name, "error", err)
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
	return s.startJob(a, job, false)
}

// startJob runs a job beside all operations. While it runs already, another
// run is queued or refused.
func (s *Service) startJob(a *App, name string, queue bool) error {
	j, start, queued := s.clock.job(a.Project.Name, name), false, false
	s.clock.note(j, func(j *job) {
		switch {
		case !j.running:
			j.running, start = true, true
			j.record.Last, j.record.Outcome = time.Now(), running
		case queue && j.record.Queued < queueLimit:
			j.record.Queued++
			queued = true
		}
	})
	switch {
	case queued:
		return nil
	case !start && queue:
		return fault.Conflictf("%d runs of the job %s wait already", queueLimit, name)
	case !start:
		return fault.Conflictf("the job %s runs already", name)
	}
	return s.pursue(a, j, "")
}

// pursue runs a job, or follows the container that runs it, and then those that are queued.
func (s *Service) pursue(a *App, j *job, id string) error {
	s.mu.Lock()
	if s.ctx.Err() != nil {
		s.mu.Unlock()
		return fault.Unavailablef("the daemon is stopping")
	}
	s.work.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.work.Done()
		app, name := j.record.App, j.record.Name // these do not change
		for again := true; again; id = "" {
			outcome, now := s.runJob(s.ctx, a, name, id)
			if s.ctx.Err() != nil {
				return // the next daemon goes on
			}
			s.log.Info("job ended", "app", app, "job", name, "outcome", outcome)
			latest, _, err := s.known(s.ctx, app, nil)
			again = false
			s.clock.note(j, func(j *job) {
				j.record.Outcome = outcome
				again = j.record.Queued > 0 && err == nil && latest != nil
				if again {
					_, again = latest.Project.Jobs[name]
				}
				if again {
					j.record.Queued--
					j.record.Last, j.record.Outcome = time.Now(), running
				} else {
					j.running, j.record.Queued = false, 0
				}
			})
			s.clear(now, outcome)
			if again {
				a = latest
			}
		}
	}()
	return nil
}

const succeeded = "exit 0"

// clear takes the container of a good run away; that of a bad one stays to be looked at.
func (s *Service) clear(id, outcome string) {
	if id == "" || outcome != succeeded {
		return
	}
	err := s.o.Containers.Remove(context.WithoutCancel(s.ctx), id, container.RemoveOptions{Volumes: true})
	if ignore(err, fault.ErrNotFound) != nil {
		s.log.Warn("container of a job not removed", "container", id, "error", err)
	}
}

func jobName(app, name, sep string) string { return strings.Join([]string{app, name, "job"}, sep) }

// runJob runs a job to its end, after what it depends on; where id is given it
// runs already. It gives the container and how it ended.
func (s *Service) runJob(ctx context.Context, a *App, name, id string) (outcome, ended string) {
	err := error(nil)
	if id == "" {
		id, err = s.beginJob(ctx, a, name)
	}
	if err == nil {
		_, err = s.ending(ctx, id)
	}
	if err != nil {
		return err.Error(), id
	}
	return succeeded, id
}

func (s *Service) beginJob(ctx context.Context, a *App, name string) (string, error) {
	rec, _ := s.record(a.Project.Name)
	j := a.Project.Jobs[name]
	service := types.ServiceConfig{Name: name, ContainerSpec: j.ContainerSpec, WorkloadSpec: j.WorkloadSpec}
	walk := s.walker(newOperation(a.Project.Name, "job", func() {}), a, Policy{Compatibility: rec.Compatibility})
	if err := walk.stand(ctx, j.DependsOn); err != nil {
		return "", err
	}
	image := ImageName(a.Project.Name, service, walk.sep)
	if err := walk.arrived(ctx, image, a.platform(service.Platform)); err != nil {
		if err := walk.pull(ctx, Step{ID: "pull " + image, Action: Pull, Kind: KindImage, Name: image, Service: name}); err != nil {
			return "", err
		}
	}
	return walk.begin(ctx, service, jobName(a.Project.Name, name, walk.sep), map[string]string{LabelOneOff: "True"})
}

// stand waits until what a job depends on is as it must be. An operation under
// way may be just about to see to it.
func (r *run) stand(ctx context.Context, on types.DependsOnConfig) error {
	if len(on) == 0 {
		return nil
	}
	lane := r.s.lane(r.app.Project.Name)
	select {
	case lane <- struct{}{}:
		<-lane
	case <-ctx.Done():
		return ctx.Err()
	}
	for _, name := range slices.Sorted(maps.Keys(on)) {
		condition := ConditionStarted
		switch on[name].Condition {
		case types.ServiceConditionHealthy:
			condition = ConditionHealthy
		case types.ServiceConditionCompletedSuccessfully:
			condition = ConditionCompleted
		}
		err := r.await(ctx, Step{Action: Wait, Kind: KindService, Name: name, Service: name, Condition: condition}, "")
		if err != nil && (on[name].Required || ctx.Err() != nil) {
			return fmt.Errorf("depends_on.%s: %w", name, err)
		}
	}
	return nil
}

// resumeJobs goes on with the jobs of an application where the last daemon
// was: runs that go on are followed, and a time that was missed is made up for.
func (s *Service) resumeJobs(a *App) {
	app := a.Project.Name
	rec, _ := s.record(app)
	for name, config := range a.Project.Jobs {
		j := s.clock.job(app, name)
		s.clock.mu.Lock()
		r, busy := j.record, j.running
		s.clock.mu.Unlock()
		if busy {
			continue // started since
		}
		c, there := s.named(s.ctx, app, jobName(app, name, separator(rec.Compatibility)))
		err := error(nil)
		switch {
		case r.Outcome == running && there && c.State.Status != container.Created:
			s.clock.note(j, func(j *job) { j.running = true })
			err = s.pursue(a, j, string(c.ID))
		case r.Outcome == running: // it never came to it
			s.clock.note(j, func(j *job) { j.running = true })
			err = s.pursue(a, j, "")
		case there && r.Outcome == succeeded:
			s.clear(string(c.ID), r.Outcome)
		}
		now := time.Now()
		if late := missed(config, r.Seen, now); late != nil && !rec.Stopped && err == nil {
			s.clock.note(j, func(j *job) { j.record.Seen = now })
			s.log.Info("a missed run of a job is made up for", "app", app, "job", name)
			err = s.startJob(a, name, late.Concurrency == "queue")
		}
		if err != nil && !errors.Is(err, fault.ErrUnavailable) {
			s.log.Warn("job not resumed", "app", app, "job", name, "error", err)
		}
	}
}

// missed gives a schedule whose time came between two moments, where such a run
// is to be made up for; of several the first.
func missed(j types.JobConfig, since, now time.Time) *types.ScheduleConfig {
	if j.Triggers == nil || since.IsZero() {
		return nil
	}
	for i, sc := range j.Triggers.Schedule {
		when, err := schedule(sc)
		if err != nil || sc.MissedFires == "skip" {
			continue
		}
		if next := when.Next(since); !next.IsZero() && !next.After(now) {
			return &j.Triggers.Schedule[i]
		}
	}
	return nil
}

func (s *Service) jobStates(a *App) (list []JobState) {
	for _, name := range slices.Sorted(maps.Keys(a.Project.Jobs)) {
		j := a.Project.Jobs[name]
		st := JobState{Name: name}
		s.clock.mu.Lock()
		if known := s.clock.jobs[a.Project.Name+"/"+name]; known != nil {
			r := known.record
			st.Last, st.Outcome, st.Queued = r.Last, r.Outcome, r.Queued
		}
		s.clock.mu.Unlock()
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
