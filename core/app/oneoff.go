package app

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// Run makes a one-off container of a service, after what it depends on is as
// it must be. It gives the operation's id; the result names the container.
func (s *Service) Run(_ context.Context, r RunRequest) (string, error) {
	a, err := r.Document.App()
	if err != nil {
		return "", err
	}
	service, ok := a.Project.Services[r.Service]
	if j, job := a.Project.Jobs[r.Service]; !ok && job {
		service, ok = types.ServiceConfig{Name: r.Service, ContainerSpec: j.ContainerSpec, WorkloadSpec: j.WorkloadSpec}, true
	}
	if !ok {
		return "", fault.NotFoundf("no such service: %s", r.Service)
	}
	op, err := s.begin(r.Document.Name, "run", func(ctx context.Context, op *operation) Result {
		id, err := s.oneOff(ctx, op, a, service, r)
		res := word(err)
		res.Container = id
		return res
	})
	if err != nil {
		return "", err
	}
	return op.ID, nil
}

func (s *Service) oneOff(ctx context.Context, op *operation, a *App, service types.ServiceConfig, r RunRequest) (string, error) {
	p := r.Policy
	p.NoRoll = true
	walk := s.walker(op, a, p)
	walk.auth = r.Auth
	// What it stands on: dependencies, networks, volumes, its image.
	base := *a
	project := *a.Project
	project.Services = types.Services{}
	for name, v := range a.Project.Services {
		project.Services[name] = v
	}
	mine := service
	mine.ContainerName, mine.Scale = "", new(int)
	mine.Deploy = nil
	project.Services[service.Name] = mine
	base.Project = &project
	p.Services = []string{service.Name}
	o, err := s.observe(ctx, a.Project.Name, &base, walk.sep)
	if err != nil {
		return "", err
	}
	plan, err := MakePlan(Input{App: &base, Observed: o, Policy: p, Now: time.Now(), Settled: everything(o)})
	if err != nil {
		return "", err
	}
	// A scale of nothing would end those of the service that run.
	plan = without(plan, service.Name)
	plan = withImage(plan, &base, o, service, p)
	op.tell(Progress{Plan: &plan})
	walk.plan, walk.images = plan, o.Images
	if err := walk.walk(ctx); err != nil {
		return "", err
	}
	if !p.NoDeps {
		for name, d := range service.DependsOn {
			condition := map[string]string{types.ServiceConditionHealthy: ConditionHealthy, types.ServiceConditionCompletedSuccessfully: ConditionCompleted}[d.Condition]
			if _, there := a.Project.Services[name]; !there || condition == "" {
				continue
			}
			w := Step{ID: "wait for " + name, Action: Wait, Kind: KindService, Name: name, Service: name, Condition: condition, Optional: !d.Required}
			if err := walk.try(ctx, w); err != nil {
				return "", err
			}
		}
	}
	return walk.makeOneOff(ctx, service, r)
}

// everything holds what is there: a run recreates nothing.
func everything(o Observed) map[string]bool {
	m := map[string]bool{}
	for _, c := range o.Containers {
		m[c.ID] = true
	}
	return m
}

// without takes out the steps on a service's containers.
func without(p Plan, service string) Plan {
	gone := map[string]bool{}
	var steps []Step
	for _, s := range p.Steps {
		if s.Service == service && (s.Kind == KindContainer || s.Action == Hook) {
			gone[s.ID] = true
			continue
		}
		var after []string
		for _, id := range s.After {
			if !gone[id] {
				after = append(after, id)
			}
		}
		s.After = after
		steps = append(steps, s)
	}
	p.Steps = steps
	return p
}

// withImage adds what brings the one-off's image, which a scale of nothing does not need.
func withImage(p Plan, a *App, o Observed, service types.ServiceConfig, policy Policy) Plan {
	x := &planner{in: Input{App: a, Observed: Observed{Images: o.Images}, Policy: policy, Now: time.Now()}, app: a, project: a.Project, sep: separator(policy.Compatibility), order: []string{service.Name},
		images: map[string]string{}, later: map[string]bool{}, steps: map[string]int{}, byService: map[string][]ObservedContainer{}}
	one := 1
	v := a.Project.Services[service.Name]
	v.Scale = &one
	a.Project.Services[service.Name] = v
	x.fetch()
	for _, s := range x.out.Steps {
		have := false
		for _, old := range p.Steps {
			have = have || old.ID == s.ID
		}
		if !have {
			p.Steps = append(p.Steps, s)
		}
	}
	return p
}

func (r *run) makeOneOff(ctx context.Context, service types.ServiceConfig, q RunRequest) (string, error) {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	slug := hex.EncodeToString(b)
	if q.Name == "" {
		q.Name = strings.Join([]string{r.app.Project.Name, service.Name, "run", slug[:12]}, r.sep)
	}
	service.ContainerName = q.Name
	if !q.Ports {
		service.Ports = nil
	}
	service.Restart, service.StdinOpen, service.Tty = "", q.Interactive, q.TTY
	if service.Deploy != nil {
		d := *service.Deploy
		d.RestartPolicy = nil
		service.Deploy = &d
	}
	labels := map[string]string{LabelOneOff: "True", LabelSlug: slug}
	for k, v := range q.Labels {
		labels[k] = v
	}
	if err := r.s.observeImages(ctx, r.app, r.sep, r.images); err != nil {
		return "", err
	}
	m := r.maker()
	spec, err := m.spec(wish{service: service, aliases: q.Aliases, labels: labels})
	if err != nil {
		return "", err
	}
	for _, f := range m.references(service) {
		if f.refused != nil {
			return "", f.refused
		}
	}
	spec.AutoRemove, spec.AttachStdin, spec.StdinOnce = q.AutoRemove, q.Interactive, q.Interactive
	st := Step{ID: "create container " + q.Name, Action: Create, Kind: KindContainer, Name: q.Name, Service: service.Name}
	r.op.step(st, Working, "", "")
	id, _, err := r.s.o.Containers.Create(ctx, spec, container.CreateOptions{Name: q.Name, Platform: r.app.platform(service.Platform)})
	if err == nil {
		err = r.inject(ctx, service, string(id))
	}
	if err != nil {
		r.op.step(st, Failed, string(id), err.Error())
		return "", err
	}
	r.op.step(st, Done, string(id), "")
	return string(id), nil
}
