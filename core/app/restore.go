package app

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// Restore goes on where the last daemon was: operations that it had begun are
// finished, and what has drifted from the wish is repaired.
func (s *Service) Restore(ctx context.Context) error {
	s.mu.Lock()
	list := make([]Record, 0, len(s.records))
	for _, r := range s.records {
		list = append(list, r)
	}
	s.mu.Unlock()
	for _, r := range list {
		if err := s.restore(ctx, r); err != nil {
			s.log.Warn("application not restored", "app", r.Name, "error", err)
		}
	}
	return nil
}

func (s *Service) restore(ctx context.Context, r Record) error {
	a, _, err := s.known(ctx, r.Name, nil)
	if err != nil {
		return err
	}
	j := r.Journal
	switch {
	case j != nil && j.Verb == "down" && j.Down != nil:
		if a == nil && j.Revision > 0 {
			// Without it, every container would be taken for one of a service.
			rev, err := s.revision(ctx, r.Name, j.Revision)
			if err != nil {
				return err
			}
			if a, err = rev.Document.App(); err != nil {
				return err
			}
		}
		_, err = s.begin(r.Name, "down", func(ctx context.Context, op *operation) Result { return word(s.down(ctx, op, r.Name, a, *j.Down)) })
		return err
	case a == nil:
		return nil
	case j != nil:
		doc, err := s.document(ctx, r.Name, r, nil)
		if err != nil {
			return err
		}
		_, err = s.begin(r.Name, "resume", func(ctx context.Context, op *operation) Result {
			defer s.resumeJobs(a)
			return s.apply(ctx, op, a, ApplyRequest{Document: doc, Policy: j.Policy}, Revision{Verb: j.Verb})
		})
		return err
	}
	s.clock.set(r.Name, a)
	if r.Stopped {
		s.resumeJobs(a)
		return nil
	}
	_, err = s.begin(r.Name, "repair", func(ctx context.Context, op *operation) Result {
		defer s.resumeJobs(a)
		return word(s.repair(ctx, op, a, r))
	})
	return err
}

// repair makes what is missing and starts what was to run, what is depended on
// first. What has ended of itself stays so.
func (s *Service) repair(ctx context.Context, op *operation, a *App, r Record) error {
	policy := Policy{Services: existing(a, r.Services), Compatibility: r.Compatibility, Pull: "missing", NoBuild: true, NoRoll: true}
	if len(r.Services) > 0 && len(policy.Services) == 0 {
		return nil
	}
	o, err := s.observe(ctx, r.Name, a, separator(r.Compatibility))
	if err != nil {
		return err
	}
	for i, c := range o.Containers {
		live, err := s.o.Containers.Get(ctx, c.ID)
		if err == nil && c.State == "exited" && wantsToRun(live) {
			o.Containers[i].State = "created"
		}
	}
	plan, err := MakePlan(Input{App: a, Observed: o, Policy: policy, Apart: r.Apart, Now: time.Now(), Repair: true})
	if err != nil {
		return err
	}
	// Nothing is taken away unasked.
	plan.Steps = slices.DeleteFunc(plan.Steps, func(s Step) bool { return s.Action == Remove || s.Action == Stop })
	kept := map[string]bool{}
	for i, st := range plan.Steps {
		plan.Steps[i].After = slices.DeleteFunc(slices.Clone(st.After), func(id string) bool { return !kept[id] })
		kept[st.ID] = true
	}
	op.tell(Progress{Plan: &plan})
	walk := s.walker(op, a, policy)
	walk.plan, walk.images = plan, o.Images
	err = errors.Join(walk.walk(ctx), s.joined(ctx, walk))
	if err == nil || ctx.Err() != nil {
		return err
	}
	// Their restart policies want them to run, whatever they depend on.
	for _, c := range s.o.Containers.All() {
		if !s.Deferred(c) || c.State.Status != container.Exited || c.Spec.Labels[LabelApp] != r.Name {
			continue
		}
		if started := s.o.Containers.Start(ctx, string(c.ID)); started != nil && !errors.Is(started, fault.ErrNotModified) {
			s.log.Warn("container not started", "container", c.ID, "error", started)
		}
	}
	return err
}

// wantsToRun tells what a restart policy wants after the machine was down.
func wantsToRun(c container.Container) bool {
	switch c.Spec.Restart.Name {
	case container.RestartAlways:
		return true
	case container.RestartUnlessStopped:
		return !c.State.StoppedByUser
	}
	return false
}

// Deferred tells whether the start of a container after the machine was down
// is this service's, which knows what must run before it.
func (s *Service) Deferred(c container.Container) bool {
	l := c.Spec.Labels
	r, ok := s.record(l[LabelApp])
	return ok && r.Current > 0 && !r.Stopped && l[LabelOneOff] != "True" && l[LabelDependsOn] != "" && wantsToRun(c) &&
		(len(r.Services) == 0 || slices.Contains(r.Services, l[LabelService]))
}
