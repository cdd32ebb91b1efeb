package app

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/core/network"
	"github.com/berth-project/berth/core/volume"
	"github.com/berth-project/berth/lib/crash"
	"github.com/berth-project/berth/lib/fault"
)

// CrashStep is a point before and after each step, for tests (lib/crash).
const CrashStep = "app.step"

const (
	parallelSteps = 16 // where nobody says how many
	pullAttempts  = 3
	pullPause     = time.Second // before the second attempt, then twice as long
)

// run is one plan being walked.
type run struct {
	s      *Service
	op     *operation
	app    *App
	policy Policy
	plan   Plan
	sep    string
	auth   map[string]RegistryAuth

	mu     sync.Mutex
	images map[string]Image
	made   map[string]string       // names of containers made here → ids
	fresh  map[string]bool         // images fetched or built
	failed map[string]error        // steps that failed themselves
	rolls  map[string]map[int]bool // the replicas whose rolling replacement failed, by service
	undone map[string]struct{}     // services whose replacement was given up
	hidden map[string]bool         // containers that others of their service answer for
}

// stepError is the failure of one step.
type stepError struct {
	step Step
	err  error
}

func (e stepError) Error() string {
	switch e.step.Action {
	case Wait:
		return e.err.Error()
	case Hook:
		return fmt.Sprintf("service %s: %v", e.step.Service, e.err)
	}
	if e.step.Kind == KindContainer {
		return fmt.Sprintf("service %s: %s %s: %v", e.step.Service, e.step.Action, e.step.Name, e.err)
	}
	return fmt.Sprintf("%s %s %s: %v", e.step.Action, e.step.Kind, e.step.Name, e.err)
}

func (e stepError) Unwrap() error { return e.err }

// walk does the steps: each as soon as those in its After have ended well. A
// step that fails takes with it what needs it, and nothing else. When ctx
// ends, what is under way is finished and nothing further begins.
func (r *run) walk(ctx context.Context) error {
	defer func() {
		if len(r.undone) == 0 { // else what has failed is soon to go
			r.show()
		}
	}()
	steps := r.plan.Steps
	at := map[string]int{}
	for i, s := range steps {
		at[s.ID] = i
	}
	left := make([]int, len(steps))
	next := make([][]int, len(steps))
	for i, s := range steps {
		for _, id := range s.After {
			k, ok := at[id]
			if !ok || k >= i {
				return fault.Internalf("the step %q comes after %q, which is not before it", s.ID, id)
			}
			left[i]++
			next[k] = append(next[k], i)
		}
	}
	slots := make(chan struct{}, r.slots())
	type end struct {
		i   int
		err error
	}
	ends := make(chan end, len(steps))
	begin := func(i int) {
		go func() {
			s := steps[i]
			if s.Action != Wait { // waiting takes no slot: others must go on
				slots <- struct{}{}
				defer func() { <-slots }()
			}
			if err := ctx.Err(); err != nil {
				ends <- end{i, err}
				return
			}
			ends <- end{i, r.try(ctx, s)}
		}()
	}
	skipped := make([]bool, len(steps))
	pending := 0
	for i := range steps {
		if left[i] == 0 {
			pending++
			begin(i)
		}
	}
	var errs []error
	var skip func(i int)
	skip = func(i int) {
		for _, k := range next[i] {
			if !skipped[k] {
				skipped[k] = true
				r.op.step(steps[k], Skipped, "", "what it needs has failed")
				skip(k)
			}
		}
	}
	for ; pending > 0; pending-- {
		e := <-ends
		if e.err != nil {
			if !errors.Is(e.err, context.Canceled) || ctx.Err() == nil {
				errs = append(errs, stepError{steps[e.i], e.err})
				r.mu.Lock()
				r.failed[steps[e.i].ID] = e.err
				r.mu.Unlock()
			}
			skip(e.i)
			continue
		}
		for _, k := range next[e.i] {
			if left[k]--; left[k] == 0 && !skipped[k] {
				pending++
				begin(k)
			}
		}
	}
	if err := ctx.Err(); err != nil && len(errs) == 0 {
		return err
	}
	return errors.Join(errs...)
}

func (r *run) slots() int {
	if r.policy.Parallel > 0 {
		return r.policy.Parallel
	}
	return parallelSteps
}

// try does one step and tells of it.
func (r *run) try(ctx context.Context, s Step) error {
	status := Working
	if s.Action == Wait {
		status = Waiting
	}
	r.op.step(s, status, "", "")
	crash.Point(CrashStep)
	id, err := r.do(ctx, s)
	crash.Point(CrashStep)
	if err != nil && s.Roll != "" {
		err = r.rollFailed(ctx, s, err)
	}
	switch {
	case err == nil:
		r.op.step(s, Done, id, "")
	case s.Optional && ctx.Err() == nil:
		r.op.step(s, Warning, id, err.Error())
		return nil
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		r.op.step(s, Skipped, id, "canceled")
	default:
		r.op.step(s, Failed, id, err.Error())
	}
	return err
}

// do does one step. What is done already is no error: a plan may be walked
// again by the daemon after the one that began it.
func (r *run) do(ctx context.Context, s Step) (id string, err error) {
	id = s.Container
	if s.Kind == KindContainer && id == "" {
		r.mu.Lock()
		id = r.made[s.Name]
		r.mu.Unlock()
	}
	c := r.s.o.Containers
	switch s.Action {
	case Create:
		switch s.Kind {
		case KindNetwork:
			return "", r.createNetwork(ctx, s)
		case KindVolume:
			return "", r.createVolume(ctx, s)
		}
		return r.createContainer(ctx, s)
	case Remove:
		switch s.Kind {
		case KindNetwork:
			return "", ignore(r.s.o.Networks.Remove(ctx, s.Name), fault.ErrNotFound)
		case KindVolume:
			return "", ignore(r.s.o.Volumes.Remove(ctx, s.Name), fault.ErrNotFound)
		case KindImage:
			_, err := r.s.o.Images.Remove(ctx, s.Name, false, true, nil)
			return "", ignore(err, fault.ErrNotFound)
		}
		return id, ignore(c.Remove(ctx, id, container.RemoveOptions{Force: true, Volumes: s.Volumes}), fault.ErrNotFound)
	case Start:
		return id, r.start(ctx, s, id)
	case Stop:
		return id, r.stop(ctx, s, id)
	case Restart:
		r.preStop(ctx, s, id)
		return id, c.Restart(ctx, id, container.StopOptions{Timeout: s.Timeout})
	case Kill:
		return id, ignore(c.Kill(ctx, id, s.Condition), fault.ErrConflict)
	case Pause:
		return id, c.Pause(ctx, id)
	case Unpause:
		return id, ignore(c.Unpause(ctx, id), fault.ErrConflict)
	case Rename:
		err := c.Rename(ctx, id, s.Final)
		if now, gone := c.Get(ctx, id); err != nil && gone == nil && now.Name == s.Final {
			err = nil
		}
		r.mu.Lock()
		r.made[s.Final] = id
		r.mu.Unlock()
		return id, err
	case Switch:
		return id, c.TakeOver(ctx, s.Replaces, id)
	case Disconnect:
		return id, ignore(c.Disconnect(ctx, id, s.Key, true), fault.ErrNotFound, fault.ErrPermission)
	case Connect:
		return id, r.connect(ctx, s, id)
	case Wait:
		return "", r.await(ctx, s, id)
	case Pull:
		return "", r.pull(ctx, s)
	case Build:
		return "", fault.Unsupportedf("the image %s must be built, which clients do: build it with `berth compose build` or `docker build -t %s`, or name an image", s.Name, s.Name)
	case Hook:
		if s.Condition == "pre_start" {
			return "", r.preStart(ctx, s)
		}
		return id, r.postStart(ctx, s, id)
	}
	return "", fault.Internalf("no such step: %s", s.Action)
}

func ignore(err error, classes ...error) error {
	for _, c := range classes {
		if errors.Is(err, c) {
			return nil
		}
	}
	return err
}

func (r *run) maker() *maker {
	r.mu.Lock()
	images := maps.Clone(r.images)
	r.mu.Unlock()
	list := func(service string) (list []ObservedContainer) {
		for _, c := range r.s.o.Containers.All() {
			if l := c.Spec.Labels; l[LabelApp] == r.app.Project.Name && l[LabelService] == service && l[LabelOneOff] != "True" && l[LabelHook] == "" && c.State.Status != container.Removing {
				list = append(list, ObservedContainer{ID: string(c.ID), Name: c.Name})
			}
		}
		slices.SortFunc(list, func(a, b ObservedContainer) int { return strings.Compare(a.Name, b.Name) })
		return list
	}
	return &maker{app: r.app, sep: r.sep, images: images,
		names: func(service string) (names []string) {
			for _, c := range list(service) {
				names = append(names, c.Name)
			}
			return names
		},
		first: func(service string) (string, bool) { return firstID(list(service)) },
	}
}

func (r *run) createNetwork(ctx context.Context, s Step) error {
	n := r.app.Project.Networks[s.Key]
	hash, err := NetworkHash(n)
	if err != nil {
		return err
	}
	o := network.CreateOptions{Name: n.Name, Driver: n.Driver, EnableIPv4: n.EnableIPv4, EnableIPv6: n.EnableIPv6, Internal: n.Internal, Attachable: n.Attachable, Options: n.DriverOpts, Labels: map[string]string{}}
	maps.Copy(o.Labels, n.Labels)
	o.Labels[LabelNetwork], o.Labels[LabelApp], o.Labels[LabelVersion], o.Labels[LabelHash] = s.Key, r.app.Project.Name, ComposeVersion, hash
	o.IPAM = network.IPAM{Driver: n.Ipam.Driver, Options: n.Ipam.Options}
	for _, p := range n.Ipam.Config {
		one, err := pool(*p)
		if err != nil {
			return fault.Invalidf("networks.%s.ipam: %w", s.Key, err)
		}
		o.IPAM.Pools = append(o.IPAM.Pools, one)
	}
	_, warning, err := r.s.o.Networks.Create(ctx, o)
	if warning != "" {
		r.op.step(s, Warning, "", warning)
	}
	return ignore(err, fault.ErrConflict, fault.ErrExists)
}

func pool(p types.IPAMPool) (out network.Pool, err error) {
	if p.Subnet != "" {
		if out.Subnet, err = netip.ParsePrefix(p.Subnet); err != nil {
			return out, err
		}
	}
	if p.IPRange != "" {
		if out.Range, err = netip.ParsePrefix(p.IPRange); err != nil {
			return out, err
		}
	}
	if p.Gateway != "" {
		if out.Gateway, err = netip.ParseAddr(p.Gateway); err != nil {
			return out, err
		}
	}
	for name, text := range p.AuxiliaryAddresses {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return out, err
		}
		if out.Aux == nil {
			out.Aux = map[string]netip.Addr{}
		}
		out.Aux[name] = a
	}
	return out, nil
}

func (r *run) createVolume(ctx context.Context, s Step) error {
	v := r.app.Project.Volumes[s.Key]
	hash, err := VolumeHash(v)
	if err != nil {
		return err
	}
	labels := map[string]string{}
	maps.Copy(labels, v.Labels)
	if labels[LabelScope] != ScopeMachine {
		labels[LabelVolume], labels[LabelApp], labels[LabelVersion], labels[LabelHash] = s.Key, r.app.Project.Name, ComposeVersion, hash
	}
	_, err = r.s.o.Volumes.Create(ctx, volume.CreateOptions{Name: v.Name, Driver: v.Driver, Options: v.DriverOpts, Labels: labels})
	return err
}

func (r *run) createContainer(ctx context.Context, s Step) (string, error) {
	service := r.app.Project.Services[s.Service]
	w := wish{service: service, number: s.Number, replaces: s.Replaces, aliases: true}
	if s.Replaces != "" && !s.Volumes {
		if old, err := r.s.o.Containers.Get(ctx, s.Replaces); err == nil {
			w.inherit = old.Mounts
		}
	}
	m := r.maker()
	spec, err := m.spec(w)
	if err != nil {
		return "", err
	}
	for _, f := range m.references(service) {
		if f.refused != nil {
			return "", f.refused
		}
	}
	id, warnings, err := r.s.o.Containers.Create(ctx, spec, container.CreateOptions{Name: s.Name, Platform: r.app.platform(service.Platform)})
	if err != nil {
		var missing *fault.Error
		for _, f := range m.references(service) {
			if errors.As(err, &missing) && missing.Noun == "mount" && missing.ID == f.bind {
				return "", fmt.Errorf("%s %s: %w", f.kind, f.key, err)
			}
		}
		return "", err
	}
	for _, text := range warnings {
		r.op.step(s, Warning, string(id), text)
	}
	r.mu.Lock()
	r.made[s.Name] = string(id)
	r.mu.Unlock()
	return string(id), nil
}

// inject copies into a container the secrets and configs that are no files.
func (r *run) inject(ctx context.Context, service types.ServiceConfig, id string) error {
	m := &maker{app: r.app, sep: r.sep}
	for _, f := range m.references(service) {
		if f.refused != nil {
			return f.refused
		}
		if f.bind != "" || f.content == "" {
			continue
		}
		h := &tar.Header{Name: strings.TrimPrefix(path.Clean(f.target), "/"), Size: int64(len(f.content)), Mode: f.mode, ModTime: time.Now()}
		for _, n := range []struct {
			to   *int
			text string
		}{{&h.Uid, f.uid}, {&h.Gid, f.gid}} {
			if n.text == "" {
				continue
			}
			v, err := strconv.Atoi(n.text)
			if err != nil {
				return fault.Invalidf("%ss.%s: %q is no number of a user or group", f.kind, f.key, n.text)
			}
			*n.to = v
		}
		var b bytes.Buffer
		t := tar.NewWriter(&b)
		err := t.WriteHeader(h)
		if err == nil {
			_, err = t.Write([]byte(f.content))
		}
		if err := errors.Join(err, t.Close()); err != nil {
			return err
		}
		if err := r.s.o.Containers.CopyTo(ctx, id, "/", &b, false, f.uid != "" || f.gid != ""); err != nil {
			return fmt.Errorf("%s %s: %w", f.kind, f.key, err)
		}
	}
	return nil
}

func (r *run) start(ctx context.Context, s Step, id string) error {
	if service, ok := r.app.Project.Services[s.Service]; ok {
		if err := r.inject(ctx, service, id); err != nil {
			return err
		}
	}
	for _, o := range r.plan.Steps {
		if o.Action == Switch && o.Name == s.Name && s.Roll != "" {
			r.s.o.Networks.Succeed(container.ID(o.Replaces), container.ID(id))
		}
	}
	if s.Roll != "" {
		r.hide(id, true) // until it has settled
	}
	return ignore(r.s.o.Containers.Start(ctx, id), fault.ErrNotModified)
}

// hide has the others of a service answer for a container that is not yet, or
// no longer, to be asked for by the service's name.
func (r *run) hide(id string, hidden bool) {
	r.mu.Lock()
	r.hidden[id] = hidden
	r.mu.Unlock()
	r.s.o.Networks.Hide(container.ID(id), hidden)
}

// show ends all hiding: what is still there may be asked.
func (r *run) show() {
	for id, hidden := range r.hidden {
		if hidden {
			r.s.o.Networks.Hide(container.ID(id), false)
		}
	}
}

func (r *run) stop(ctx context.Context, s Step, id string) error {
	r.hide(id, true) // before it hears that it is to end
	r.preStop(ctx, s, id)
	err := r.s.o.Containers.Stop(ctx, id, container.StopOptions{Timeout: s.Timeout})
	return ignore(err, fault.ErrNotModified, fault.ErrNotFound)
}

// preStop runs the hooks of a service in a container that is about to stop.
// One that fails does not keep the container from stopping.
func (r *run) preStop(ctx context.Context, s Step, id string) {
	if r.app == nil {
		return
	}
	for i, h := range r.app.Project.Services[s.Service].PreStop {
		c, err := r.s.o.Containers.Get(ctx, id)
		if err != nil || c.State.Status != container.Running {
			return
		}
		if err := r.hook(ctx, s, id, h); err != nil {
			r.op.step(s, Warning, id, fmt.Sprintf("pre_stop %d: %v", i+1, err))
		}
	}
}

func (r *run) connect(ctx context.Context, s Step, id string) error {
	service, ours := r.app.Project.Services[s.Service]
	if _, on := service.Networks[s.Key]; !ours || !on {
		e := container.EndpointSpec{Network: r.app.Project.Networks[s.Key].Name, Aliases: []string{s.Service}}
		return ignore(r.s.o.Containers.Connect(ctx, id, e), fault.ErrPermission)
	}
	_, list, err := r.maker().networks(service, wish{service: service, number: s.Number, aliases: true}, nil)
	if err != nil {
		return err
	}
	name := r.app.Project.Networks[s.Key].Name
	for _, e := range list {
		if e.Network == name {
			return ignore(r.s.o.Containers.Connect(ctx, id, e), fault.ErrPermission)
		}
	}
	return nil
}

func (r *run) pull(ctx context.Context, s Step) error {
	o := image.PullOptions{Auth: authFor(r.auth, s.Name)}
	if service, ok := r.app.Project.Services[s.Service]; ok {
		o.Platform = r.app.platform(service.Platform)
	}
	pause := pullPause
	for attempt := 1; ; attempt++ {
		err := r.s.o.Images.Pull(ctx, s.Name, o, func(p image.Progress) {
			if p.Status == "" {
				return
			}
			r.op.tell(Progress{Step: s.ID, Action: s.Action, Kind: s.Kind, Name: s.Name, Service: s.Service, Status: Working, Part: p.ID, Text: p.Status, Current: p.Current, Total: p.Total})
		})
		if err == nil {
			break
		}
		final := attempt == pullAttempts || ctx.Err() != nil
		for _, class := range []error{fault.ErrNotFound, fault.ErrUnauthenticated, fault.ErrPermission, fault.ErrInvalid, fault.ErrUnsupported} {
			final = final || errors.Is(err, class)
		}
		if final {
			if s.Optional {
				return fmt.Errorf("%w; it is built instead where it is not here", err)
			}
			return err
		}
		r.op.step(s, Warning, "", fmt.Sprintf("%v: trying again in %s", err, pause))
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		pause *= 2
	}
	return r.arrived(ctx, s.Name, o.Platform)
}

// arrived notes an image that has come.
func (r *run) arrived(ctx context.Context, ref, platform string) error {
	i, err := r.s.o.Images.Get(ctx, ref, platform, false)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.images[ref] = imageOf(i)
	r.fresh[ref] = true
	return nil
}

// authFor finds the credentials for an image's registry.
func authFor(all map[string]RegistryAuth, ref string) *image.Auth {
	host, _, named := strings.Cut(ref, "/")
	if !named || !strings.ContainsAny(host, ".:") && host != "localhost" {
		host = "docker.io"
	}
	names := []string{host, "https://" + host}
	if host == "docker.io" || host == "index.docker.io" {
		names = append(names, "docker.io", "index.docker.io", "https://index.docker.io/v1/")
	}
	for _, n := range names {
		if a, ok := all[n]; ok {
			return &image.Auth{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken, ServerAddress: host}
		}
	}
	return nil
}

// rollFailed decides what the failure of a replacement means for the rest.
func (r *run) rollFailed(ctx context.Context, s Step, err error) error {
	if ctx.Err() != nil || s.Action != Wait && s.Action != Start && s.Action != Create && s.Action != Hook {
		return err
	}
	roll := rollOf(r.app.Project.Services[s.Service], r.policy)
	if roll == nil {
		return err
	}
	total := 0
	for _, o := range r.plan.Steps {
		if o.Roll == s.Roll && o.Action == Wait {
			total++
		}
	}
	r.mu.Lock()
	if r.rolls[s.Roll] == nil {
		r.rolls[s.Roll] = map[int]bool{}
	}
	r.rolls[s.Roll][s.Number] = true
	bad := len(r.rolls[s.Roll])
	r.mu.Unlock()
	if runs := s.Action == Wait || s.Action == Hook; runs && (roll.failure == "continue" || float32(bad) <= roll.ratio*float32(total)) {
		r.op.step(s, Warning, "", fmt.Sprintf("%v: going on, as failure_action or max_failure_ratio says", err))
		return nil
	}
	if roll.startFirst {
		// The old container still serves: the new one goes.
		id := s.Container
		if id == "" {
			r.mu.Lock()
			id = r.made[s.Name]
			r.mu.Unlock()
		}
		if id != "" {
			gone := r.s.o.Containers.Remove(context.WithoutCancel(ctx), id, container.RemoveOptions{Force: true})
			err = errors.Join(err, ignore(gone, fault.ErrNotFound))
		}
	}
	if roll.failure == "rollback" {
		r.mu.Lock()
		r.undone[s.Roll] = struct{}{}
		r.mu.Unlock()
	}
	return err
}
