package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// await waits until a condition holds, or can hold no more.
func (r *run) await(ctx context.Context, s Step, id string) error {
	if s.Condition == ConditionSettled {
		return r.settle(ctx, s, id)
	}
	of := func() (list []container.Container) {
		for _, c := range r.s.o.Containers.All() {
			l := c.Spec.Labels
			if l[LabelApp] == r.app.Project.Name && l[LabelService] == s.Service && l[LabelOneOff] != "True" && l[LabelHook] == "" {
				list = append(list, c)
			}
		}
		return list
	}
	ask := func() (bool, error) {
		list := of()
		if len(list) == 0 {
			return false, fault.Conflictf("service %s has no container", s.Service)
		}
		if s.Condition == ConditionCompleted {
			return completed(s.Service, list)
		}
		if s.Condition == ConditionStarted {
			return started(s.Service, list)
		}
		all := true
		for _, c := range list {
			ok, err := r.healthy(ctx, c, s.Condition == ConditionHealthy)
			if err != nil {
				return false, fmt.Errorf("service %s is not %s: %w", s.Service, s.Condition, err)
			}
			all = all && ok
		}
		return all, nil
	}
	for {
		if err := r.s.until(ctx, r.app.Project.Name, ask); err != nil || s.Condition != ConditionRunning {
			return err
		}
		left := time.Duration(0)
		for _, c := range of() {
			left = max(left, steadyTime-time.Since(c.State.StartedAt))
		}
		if left <= 0 {
			return nil
		}
		select {
		case <-time.After(left):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// steadyTime is how long a container must have run to be called running by who
// waits for it: what ends at once has ended by then.
const steadyTime = 500 * time.Millisecond

func started(service string, list []container.Container) (bool, error) {
	all := true
	for _, c := range list {
		switch c.State.Status {
		case container.Running, container.Paused:
		case container.Exited, container.Dead:
			if c.State.ExitCode != 0 {
				return false, fault.Conflictf("service %q is not started: container %s exited (%d)", service, c.Name, c.State.ExitCode)
			}
		default:
			all = false
		}
	}
	return all, nil
}

func completed(service string, list []container.Container) (bool, error) {
	for _, c := range list {
		if c.State.Status != container.Exited && c.State.Status != container.Dead {
			continue
		}
		if c.State.ExitCode != 0 {
			return false, fault.Conflictf("service %q didn't complete successfully: exit %d", service, c.State.ExitCode)
		}
		return true, nil
	}
	return false, nil
}

// healthy tells whether a container is as it should be: by its check, or by
// running where it has none and none is needed.
func (r *run) healthy(ctx context.Context, c container.Container, needCheck bool) (bool, error) {
	switch c.State.Status {
	case container.Exited, container.Dead, container.Removing:
		return false, fault.Conflictf("container %s exited (%d)%s", c.Name, c.State.ExitCode, r.s.lastWords(ctx, c))
	}
	h := c.Spec.Health
	checked := h != nil && len(h.Test) > 0 && h.Test[0] != "NONE"
	switch {
	case !checked && needCheck:
		return false, fault.Invalidf("container %s has no healthcheck: give the service one, or depend on service_started", c.Name)
	case !checked:
		return c.State.Status == container.Running, nil
	case c.State.Health == nil:
		return false, nil
	case c.State.Health.Status == "unhealthy":
		text := ""
		if n := len(c.State.Health.Log); n > 0 {
			last := c.State.Health.Log[n-1]
			text = fmt.Sprintf(": its check exited with %d: %s", last.ExitCode, clip(last.Output))
		}
		return false, fault.Conflictf("container %s is unhealthy%s", c.Name, text)
	}
	return c.State.Health.Status == "healthy", nil
}

const wordsLimit = 300 // bytes of output that an error quotes

func clip(text string) string {
	text = strings.TrimSpace(text)
	if len(text) > wordsLimit {
		text = "…" + text[len(text)-wordsLimit:]
	}
	return text
}

// lastWords are the end of a container's output: mostly the cause of its end.
func (s *Service) lastWords(ctx context.Context, c container.Container) string {
	var b strings.Builder
	tail := 3
	err := s.o.Containers.Logs(ctx, string(c.ID), container.LogOptions{Stdout: true, Stderr: true, Tail: tail}, func(l container.LogRecord) error {
		b.Write(l.Line)
		return nil
	})
	text := clip(b.String())
	if err != nil || text == "" {
		return ""
	}
	return ": " + text
}

// settle waits until a fresh container is healthy, or where it has no check
// until it has run as long as update_config has it watched.
func (r *run) settle(ctx context.Context, s Step, id string) error {
	roll := rollOf(r.app.Project.Services[s.Service], r.policy)
	watch, delay := 5*time.Second, time.Duration(0)
	if roll != nil {
		watch, delay = roll.monitor, roll.delay
	}
	limit, cancel := context.WithTimeout(ctx, watch)
	defer cancel()
	checked := false
	r.hide(id, true)
	err := r.s.until(limit, r.app.Project.Name, func() (bool, error) {
		c, err := r.s.o.Containers.Get(ctx, id)
		if err != nil {
			return false, err
		}
		if c.State.Status == container.Restarting || c.State.RestartCount > 0 {
			return false, fault.Conflictf("container %s exited (%d) and is started again%s", c.Name, c.State.ExitCode, r.s.lastWords(ctx, c))
		}
		if c.State.Status == container.Exited && c.State.ExitCode == 0 {
			return true, nil // it was to do something once, and has
		}
		h := c.Spec.Health
		checked = h != nil && len(h.Test) > 0 && h.Test[0] != "NONE"
		ok, err := r.healthy(ctx, c, false)
		return ok && checked, err
	})
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = nil
		if checked { // the time of the watch is over, the check goes on until it says something
			err = r.s.until(ctx, r.app.Project.Name, func() (bool, error) {
				c, err := r.s.o.Containers.Get(ctx, id)
				if err != nil {
					return false, err
				}
				return r.healthy(ctx, c, false)
			})
		}
	}
	if err != nil {
		return err
	}
	r.hide(id, false)
	if delay == 0 {
		return nil
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// until asks again whenever something happens to a container of the
// application, until the answer is yes or an error.
func (s *Service) until(ctx context.Context, app string, ask func() (bool, error)) error {
	for {
		sub, cancel := context.WithCancel(ctx)
		_, events := s.o.Events.Subscribe(sub, time.Time{})
		done, err := func() (bool, error) {
			defer cancel()
			for {
				if ok, err := ask(); ok || err != nil {
					return true, err
				}
				for {
					e, open := <-events
					if !open {
						return false, ctx.Err() // fell behind, or the end
					}
					if e.Type == "container" && e.Attributes[LabelApp] == app {
						break
					}
				}
			}
		}()
		if done || err != nil {
			return err
		}
	}
}

// hook runs one command in a running container.
func (r *run) hook(ctx context.Context, s Step, id string, h types.ServiceHook) error {
	c := r.s.o.Containers
	exec, err := c.ExecCreate(ctx, id, container.ExecSpec{Cmd: h.Command, User: h.User, Privileged: h.Privileged, WorkingDir: h.WorkingDir, Env: environment(h.Environment), Stdout: true, Stderr: true})
	if err != nil {
		return err
	}
	a, err := c.ExecStart(ctx, exec, false, nil)
	if err != nil {
		return err
	}
	out := &told{r: r, s: s, id: id}
	if err := a.Serve(nil, out, out); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	x, err := c.ExecGet(ctx, exec)
	if err != nil {
		return err
	}
	if x.ExitCode != nil && *x.ExitCode != 0 {
		return fault.Conflictf("the hook %q exited with %d%s", strings.Join(h.Command, " "), *x.ExitCode, out.words())
	}
	return nil
}

// told hands output on as progress, a line at a time.
type told struct {
	r    *run
	s    Step
	id   string
	part []byte
	last string
}

const toldLimit = 4096 // bytes of a line

func (t *told) Write(b []byte) (int, error) {
	t.part = append(t.part, b...)
	for {
		at := slices.Index(t.part, '\n')
		if at < 0 && len(t.part) < toldLimit {
			return len(b), nil
		}
		if at < 0 {
			at = len(t.part) - 1
		}
		t.last = strings.TrimRight(string(t.part[:at]), "\r\n")
		t.r.op.step(t.s, Working, t.id, t.last)
		t.part = slices.Clone(t.part[at+1:])
	}
}

func (t *told) words() string {
	text := clip(t.last + "\n" + string(t.part))
	if text == "" {
		return ""
	}
	return ": " + text
}

func (r *run) postStart(ctx context.Context, s Step, id string) error {
	hooks := r.app.Project.Services[s.Service].PostStart
	if s.Hook >= len(hooks) {
		return fault.Internalf("service %s has no post_start %d", s.Service, s.Hook+1)
	}
	return r.hook(ctx, s, id, hooks[s.Hook])
}

// preStart runs a hook to its end in a container of its own.
func (r *run) preStart(ctx context.Context, s Step) error {
	service := r.app.Project.Services[s.Service]
	if s.Hook >= len(service.PreStart) {
		return fault.Internalf("service %s has no pre_start %d", s.Service, s.Hook+1)
	}
	h := service.PreStart[s.Hook]
	if h.PerReplica {
		return fault.Unsupportedf("services.%s.pre_start.per_replica: hooks run once a service", s.Service)
	}
	one := types.ServiceConfig{Name: s.Service, ContainerSpec: h.ContainerSpec}
	if one.Image == "" {
		one.Image = ImageName(r.app.Project.Name, service, r.sep)
	}
	if len(one.Networks) == 0 && one.NetworkMode == "" {
		one.Networks, one.NetworkMode = service.Networks, service.NetworkMode
	}
	name := strings.Join([]string{r.app.Project.Name, s.Service, "pre_start", fmt.Sprint(s.Hook)}, r.sep)
	_, err := r.oneShot(ctx, one, name, map[string]string{LabelHook: "pre_start", LabelHookIndex: fmt.Sprint(s.Hook)})
	return err
}

// oneShot runs a container to its end and takes it away where that was good.
func (r *run) oneShot(ctx context.Context, service types.ServiceConfig, name string, labels map[string]string) (code int, err error) {
	id, err := r.begin(ctx, service, name, labels)
	if err != nil {
		return 0, err
	}
	if code, err = r.s.ending(ctx, id); code != 0 || err != nil {
		return code, err
	}
	return 0, r.s.o.Containers.Remove(context.WithoutCancel(ctx), id, container.RemoveOptions{Volumes: true})
}

// begin makes and starts a container that is to end by itself, in the place of
// an earlier one.
func (r *run) begin(ctx context.Context, service types.ServiceConfig, name string, labels map[string]string) (string, error) {
	c := r.s.o.Containers
	if old, ok := r.s.named(ctx, r.app.Project.Name, name); ok {
		if err := c.Remove(ctx, string(old.ID), container.RemoveOptions{Force: true, Volumes: true}); err != nil {
			return "", err
		}
	}
	spec, err := r.maker().spec(wish{service: service, labels: labels})
	if err != nil {
		return "", err
	}
	delete(spec.Labels, LabelHash)
	spec.Restart = container.RestartPolicy{}
	spec.Links = nil
	id, _, err := c.Create(ctx, spec, container.CreateOptions{Name: name, Platform: r.app.platform(service.Platform)})
	if err != nil {
		return "", err
	}
	if err := r.inject(ctx, service, string(id)); err != nil {
		return "", err
	}
	return string(id), c.Start(ctx, string(id))
}

// named gives the container of an application by its whole name.
func (s *Service) named(ctx context.Context, app, name string) (container.Container, bool) {
	c, err := s.o.Containers.Get(ctx, name)
	return c, err == nil && c.Name == name && c.Spec.Labels[LabelApp] == app
}

// ending waits for the end of a container; a code other than 0 comes with an error.
func (s *Service) ending(ctx context.Context, id string) (code int, err error) {
	ended, err := s.o.Containers.Wait(ctx, id, container.WaitNotRunning)
	if err != nil {
		return 0, err
	}
	end, ok := <-ended
	switch {
	case !ok && ctx.Err() != nil:
		return 0, ctx.Err()
	case !ok:
		return 0, fault.Conflictf("container %s was removed", id)
	case end.ExitCode == 0:
		return 0, nil
	}
	name, words := id, ""
	if now, err := s.o.Containers.Get(ctx, id); err == nil {
		name, words = now.Name, s.lastWords(ctx, now)
	}
	return end.ExitCode, fault.Conflictf("container %s exited (%d)%s", name, end.ExitCode, words)
}
