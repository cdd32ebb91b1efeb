package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/event"
	"github.com/berth-project/berth/core/filter"
	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/core/network"
	"github.com/berth-project/berth/core/volume"
	"github.com/berth-project/berth/lib/fault"
)

// world is an engine in memory: small, and strict about what an engine refuses.
type world struct {
	mu         sync.Mutex
	next       int
	names      []string // of all containers ever made
	containers map[string]*container.Container
	networks   map[string]network.Network
	volumes    map[string]volume.Volume
	images     map[string]string // name → id
	pulls      map[string]string // what a pull brings
	records    map[string]Record
	revisions  map[string][]Revision
	jobs       map[string]JobRecord
	decoded    int               // revisions that were read whole
	heirs      map[string]string // containers → those whose ports they will take over
	fuse       int               // changes until this daemon is dead; 0: it lives
	dead       bool
	block      map[string]chan struct{} // by container's name: Wait lasts until it is closed
	codes      map[string]int           // by container's name: exit codes that Wait gives
	events     event.Bus
}

func newWorld() *world {
	return &world{containers: map[string]*container.Container{}, networks: map[string]network.Network{}, volumes: map[string]volume.Volume{}, images: map[string]string{}, pulls: map[string]string{}, records: map[string]Record{}, revisions: map[string][]Revision{}, jobs: map[string]JobRecord{}, heirs: map[string]string{}, block: map[string]chan struct{}{}, codes: map[string]int{}}
}

var errDead = errors.New("the daemon is dead")

// burn counts a change; the daemon that makes it may be dead. mu is held.
func (w *world) burn() error {
	if w.dead {
		return errDead
	}
	if w.fuse > 0 {
		if w.fuse--; w.fuse == 0 {
			w.dead = true
			return errDead
		}
	}
	return nil
}

// reborn is a new daemon over what the dead one left.
func (w *world) reborn() *Service {
	w.mu.Lock()
	w.dead, w.fuse = false, 0
	clear(w.heirs)
	w.mu.Unlock()
	s := w.service()
	if err := s.Restore(context.Background()); err != nil {
		panic(err)
	}
	return s
}

// settle waits for the operations of a service.
func settle(s *Service) (errs []error) {
	for _, o := range s.Operations() {
		_ = s.Follow(context.Background(), o.ID, 0, func(p Progress) error {
			if p.Result != nil && p.Result.Error != "" {
				errs = append(errs, errors.New(p.Result.Error))
			}
			return nil
		})
	}
	return errs
}

// holder of a port of the host.
func (w *world) holder(p container.Publish) *container.Container {
	for _, c := range w.containers {
		for _, b := range c.State.Ports {
			if b.Proto == p.Proto && b.HostPort == p.HostPort {
				return c
			}
		}
	}
	return nil
}

// rest takes away what only a running container has.
func rest(c *container.Container) {
	c.State.Endpoints, c.State.Ports = nil, nil
}

func (w *world) id(kind string) string {
	w.next++
	return fmt.Sprintf("%s%011d%049d", kind, w.next, 0) // the first twelve tell them apart
}

func (w *world) All() []container.Container {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []container.Container
	for _, id := range slices.Sorted(maps.Keys(w.containers)) {
		list = append(list, *w.containers[id])
	}
	return list
}

func (w *world) find(ref string) (*container.Container, error) {
	if c := w.containers[ref]; c != nil {
		return c, nil
	}
	for _, c := range w.containers {
		if c.Name == ref {
			return c, nil
		}
	}
	return nil, fault.NotFound("container", ref)
}

func (w *world) Get(_ context.Context, id string) (container.Container, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, err := w.find(id)
	if err != nil {
		return container.Container{}, err
	}
	return *c, nil
}

func (w *world) Create(_ context.Context, s container.Spec, o container.CreateOptions) (container.ID, []string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.burn(); err != nil {
		return "", nil, err
	}
	if _, err := w.find(o.Name); err == nil {
		return "", nil, fault.Conflictf("the name %s is taken", o.Name)
	}
	if _, ok := w.images[s.Image]; !ok {
		return "", nil, fault.NotFound("image", s.Image)
	}
	for _, mode := range []string{s.NetworkMode, s.IpcMode, s.PidMode} {
		if ref, ok := strings.CutPrefix(mode, "container:"); ok {
			if _, err := w.find(ref); err != nil {
				return "", nil, err
			}
		}
	}
	c := &container.Container{ID: container.ID(w.id("c")), Name: o.Name, Created: time.Unix(int64(w.next), 0), Spec: s}
	c.State.Status = container.Created
	for _, e := range s.Endpoints {
		if _, err := w.network(e.Network); err != nil {
			return "", nil, err
		}
	}
	for _, m := range s.Mounts {
		if m.Type != container.MountVolume {
			continue
		}
		p := container.MountPoint{Type: m.Type, Name: m.Source, Destination: m.Target, RW: true}
		if m.Source == "" {
			p.Name, p.Anonymous = w.id("v"), true
		} else if _, ok := w.volumes[m.Source]; !ok && len(m.Source) < 60 {
			return "", nil, fault.NotFound("volume", m.Source)
		}
		c.Mounts = append(c.Mounts, p)
	}
	w.containers[string(c.ID)] = c
	w.names = append(w.names, o.Name)
	return c.ID, nil, nil
}

// made counts the containers of a name that ever were.
func (w *world) made(name string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, have := range w.names {
		if have == name {
			n++
		}
	}
	return n
}

func (w *world) network(ref string) (network.Network, error) {
	for _, n := range w.networks {
		if n.Name == ref || n.ID == ref {
			return n, nil
		}
	}
	return network.Network{}, fault.NotFound("network", ref)
}

func (w *world) change(id, action string, f func(c *container.Container) error) error {
	w.mu.Lock()
	c, err := w.find(id)
	if err == nil {
		err = w.burn()
	}
	if err == nil {
		err = f(c)
	}
	var labels map[string]string
	if c != nil {
		labels = c.Spec.Labels
	}
	w.mu.Unlock()
	if err == nil {
		w.events.Publish(event.Event{Type: "container", Action: action, ID: id, Attributes: labels})
	}
	return err
}

func (w *world) Start(_ context.Context, id string) error {
	return w.change(id, "start", func(c *container.Container) error {
		for _, mode := range []string{c.Spec.NetworkMode, c.Spec.IpcMode, c.Spec.PidMode} {
			if ref, ok := strings.CutPrefix(mode, "container:"); ok {
				if o, err := w.find(ref); err != nil || o.State.Status != container.Running {
					return fault.Conflictf("cannot join a namespace of a container that does not run")
				}
			}
		}
		if c.State.Status == container.Paused {
			return fault.Conflictf("paused")
		}
		if c.State.Status == container.Running {
			return fault.NotModifiedf("it runs")
		}
		rest(c)
		for _, e := range c.Spec.Endpoints {
			n, err := w.network(e.Network)
			if err != nil {
				return err
			}
			c.State.Endpoints = append(c.State.Endpoints, container.Endpoint{NetworkID: n.ID, NetworkName: n.Name})
		}
		for _, p := range c.Spec.Publish {
			if h := w.holder(p); h != nil && w.heirs[id] != string(h.ID) {
				rest(c)
				return fault.Conflictf("port %d is taken by %s", p.HostPort, h.Name)
			} else if h == nil {
				c.State.Ports = append(c.State.Ports, container.Binding{Port: p.Port, HostPort: p.HostPort})
			}
		}
		c.State.Status = container.Running
		if h := c.Spec.Health; h != nil {
			c.State.Health = &container.Health{Status: "healthy"}
		}
		if once, broken := slices.Equal(c.Spec.Cmd, []string{"once"}), slices.Equal(c.Spec.Cmd, []string{"broken"}); once || broken {
			c.State.Status, c.State.ExitCode = container.Exited, map[bool]int{broken: 1}[true]
			rest(c)
		}
		return nil
	})
}

func (w *world) Stop(_ context.Context, id string, _ container.StopOptions) error {
	return w.change(id, "stop", func(c *container.Container) error {
		c.State.Status = container.Exited
		rest(c)
		return nil
	})
}

func (w *world) Restart(ctx context.Context, id string, _ container.StopOptions) error {
	return w.Start(ctx, id)
}
func (w *world) Kill(ctx context.Context, id, signal string) error {
	if signal == "HUP" {
		return nil
	}
	return w.Stop(ctx, id, container.StopOptions{})
}
func (w *world) Pause(_ context.Context, id string) error {
	return w.change(id, "pause", func(c *container.Container) error { c.State.Status = container.Paused; return nil })
}
func (w *world) Unpause(_ context.Context, id string) error {
	return w.change(id, "unpause", func(c *container.Container) error { c.State.Status = container.Running; return nil })
}

func (w *world) Rename(_ context.Context, id, name string) error {
	return w.change(id, "rename", func(c *container.Container) error {
		if _, err := w.find(name); err == nil {
			return fault.Conflictf("the name %s is taken", name)
		}
		c.Name = name
		return nil
	})
}

func (w *world) Remove(_ context.Context, id string, _ container.RemoveOptions) error {
	return w.change(id, "destroy", func(c *container.Container) error { delete(w.containers, string(c.ID)); return nil })
}

func (w *world) TakeOver(_ context.Context, from, to string) error {
	return w.change(to, "take over", func(c *container.Container) error {
		delete(w.heirs, to)
		if c.State.Status != container.Running {
			return fault.Conflictf("%s does not run", c.Name)
		}
		c.State.Ports = nil
		for _, p := range c.Spec.Publish {
			if h := w.holder(p); h != nil && string(h.ID) != from {
				return fault.Conflictf("port %d is taken by %s", p.HostPort, h.Name)
			} else if h != nil {
				h.State.Ports = nil
			}
			c.State.Ports = append(c.State.Ports, container.Binding{Port: p.Port, HostPort: p.HostPort})
		}
		return nil
	})
}
func (w *world) Wait(ctx context.Context, id string, _ container.WaitCondition) (<-chan container.WaitResult, error) {
	w.mu.Lock()
	c, err := w.find(id)
	if err != nil {
		w.mu.Unlock()
		return nil, err
	}
	block, code := w.block[c.Name], w.codes[c.Name]
	w.mu.Unlock()
	ended := make(chan container.WaitResult, 1)
	go func() {
		if block != nil {
			select {
			case <-block:
			case <-ctx.Done():
				close(ended)
				return
			}
		}
		w.mu.Lock()
		if c := w.containers[id]; c != nil {
			c.State.Status, c.State.ExitCode = container.Exited, code
			rest(c)
		}
		w.mu.Unlock()
		ended <- container.WaitResult{ExitCode: code}
	}()
	return ended, nil
}
func (w *world) CopyTo(context.Context, string, string, io.Reader, bool, bool) error { return nil }
func (w *world) Logs(context.Context, string, container.LogOptions, func(container.LogRecord) error) error {
	return nil
}

func (w *world) Connect(_ context.Context, id string, e container.EndpointSpec) error {
	return w.change(id, "connect", func(c *container.Container) error {
		n, err := w.network(e.Network)
		if err != nil {
			return err
		}
		for _, have := range c.Spec.Endpoints {
			if have.Network == n.Name {
				return fault.Forbiddenf("%s is on %s", c.Name, n.Name)
			}
		}
		e.Network = n.Name
		c.Spec.Endpoints, c.Spec.OffNetworks = append(slices.Clone(c.Spec.Endpoints), e), false
		if c.State.Status == container.Running || c.State.Status == container.Paused {
			c.State.Endpoints = append(slices.Clone(c.State.Endpoints), container.Endpoint{NetworkID: n.ID, NetworkName: n.Name})
		}
		return nil
	})
}

func (w *world) Disconnect(_ context.Context, id, ref string, _ bool) error {
	return w.change(id, "disconnect", func(c *container.Container) error {
		n, err := w.network(ref)
		if err != nil {
			return err
		}
		before := len(c.Spec.Endpoints)
		c.Spec.Endpoints = slices.DeleteFunc(slices.Clone(c.Spec.Endpoints), func(e container.EndpointSpec) bool { return e.Network == n.Name })
		c.Spec.OffNetworks = len(c.Spec.Endpoints) == 0
		c.State.Endpoints = slices.DeleteFunc(slices.Clone(c.State.Endpoints), func(e container.Endpoint) bool { return e.NetworkID == n.ID })
		if len(c.Spec.Endpoints) == before {
			return fault.Forbiddenf("%s is not on %s", c.Name, n.Name)
		}
		return nil
	})
}

func (w *world) ExecCreate(context.Context, string, container.ExecSpec) (string, error) {
	return "x", nil
}
func (w *world) ExecStart(context.Context, string, bool, *[2]uint) (container.Attachment, error) {
	return quietAttachment{}, nil
}
func (w *world) ExecGet(context.Context, string) (container.Exec, error) {
	return container.Exec{}, nil
}

type quietAttachment struct{}

func (quietAttachment) TTY() bool                                   { return false }
func (quietAttachment) Serve(io.Reader, io.Writer, io.Writer) error { return nil }
func (quietAttachment) Close()                                      {}

// The other nouns have methods of the same names: each has a view of the world.
type (
	worldNetworks struct{ *world }
	worldVolumes  struct{ *world }
	worldImages   struct{ *world }
	worldEvents   struct{ *world }
)

func (w worldNetworks) Create(_ context.Context, o network.CreateOptions) (string, string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.burn(); err != nil {
		return "", "", err
	}
	if _, err := w.network(o.Name); err == nil {
		return "", "", fault.Conflictf("network %s exists", o.Name)
	}
	n := network.Network{ID: w.id("n"), Name: o.Name, Labels: o.Labels}
	w.networks[n.ID] = n
	return n.ID, "", nil
}

func (w worldNetworks) List(context.Context, filter.Args) (list []network.Attached, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.networks {
		list = append(list, network.Attached{Network: n})
	}
	return list, nil
}

func (w worldNetworks) Remove(_ context.Context, ref string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.network(ref)
	if err != nil {
		return err
	}
	if err := w.burn(); err != nil {
		return err
	}
	for _, c := range w.containers {
		for _, e := range c.State.Endpoints {
			if e.NetworkID == n.ID && c.State.Status == container.Running {
				return fault.Conflictf("network %s has active endpoints: %s", n.Name, c.Name)
			}
		}
	}
	delete(w.networks, n.ID)
	return nil
}

func (w worldNetworks) Succeed(from, to container.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heirs[string(to)] = string(from)
}

func (w worldNetworks) Hide(container.ID, bool) {} // names are nothing here

func (w worldVolumes) Create(_ context.Context, o volume.CreateOptions) (volume.Volume, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if v, ok := w.volumes[o.Name]; ok {
		return v, nil
	}
	if err := w.burn(); err != nil {
		return volume.Volume{}, err
	}
	v := volume.Volume{Name: o.Name, Labels: o.Labels}
	w.volumes[o.Name] = v
	return v, nil
}

func (w worldVolumes) List(context.Context, filter.Args) (list []volume.Volume, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, v := range w.volumes {
		list = append(list, v)
	}
	return list, nil
}

func (w worldVolumes) Remove(_ context.Context, name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.burn(); err != nil {
		return err
	}
	for _, c := range w.containers {
		for _, m := range c.Mounts {
			if m.Name == name {
				return fault.Conflictf("volume %s is in use", name)
			}
		}
	}
	delete(w.volumes, name)
	return nil
}

func (w worldImages) Get(_ context.Context, ref, _ string, _ bool) (image.Image, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	id, ok := w.images[ref]
	if !ok {
		return image.Image{}, fault.NotFound("image", ref)
	}
	return image.Image{ID: id}, nil
}

func (w worldImages) Pull(_ context.Context, ref string, _ image.PullOptions, _ func(image.Progress)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	id, ok := w.pulls[ref]
	if !ok {
		return fault.NotFound("image", ref)
	}
	w.images[ref] = id
	return nil
}

func (w worldImages) Remove(_ context.Context, ref string, _, _ bool, _ []string) ([]image.RemoveResult, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.images, ref)
	return nil, nil
}

func (w worldEvents) Subscribe(ctx context.Context, since time.Time) ([]event.Event, <-chan event.Event) {
	return w.events.Subscribe(ctx, since)
}
func (w worldEvents) Publish(e event.Event) { w.events.Publish(e) }

func (w *world) PutApp(_ context.Context, r Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.burn(); err != nil {
		return err
	}
	w.records[r.Name] = r
	return nil
}
func (w *world) DeleteApp(_ context.Context, name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.records, name)
	return nil
}
func (w *world) Apps(context.Context) ([]Record, error) {
	return slices.Collect(maps.Values(w.records)), nil
}
func (w *world) PutRevision(_ context.Context, app string, r Revision) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.burn(); err != nil {
		return err
	}
	list := slices.DeleteFunc(w.revisions[app], func(o Revision) bool { return o.Number == r.Number })
	w.revisions[app] = append(list, r)
	slices.SortFunc(w.revisions[app], func(a, b Revision) int { return a.Number - b.Number })
	return nil
}
func (w *world) DeleteRevision(_ context.Context, app string, number int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.revisions[app] = slices.DeleteFunc(w.revisions[app], func(o Revision) bool { return o.Number == number })
	return nil
}
func (w *world) Revisions(_ context.Context, app string) ([]Revision, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.decoded += len(w.revisions[app])
	return slices.Clone(w.revisions[app]), nil
}
func (w *world) Revision(_ context.Context, app string, number int) (Revision, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.revisions[app] {
		if r.Number == number {
			w.decoded++
			return r, nil
		}
	}
	return Revision{}, fault.NotFound("revision", app)
}
func (w *world) RevisionNumbers(_ context.Context, app string) (list []int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.revisions[app] {
		list = append(list, r.Number)
	}
	return list, nil
}
func (w *world) PutJob(_ context.Context, j JobRecord) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.burn(); err != nil {
		return err
	}
	w.jobs[j.App+"/"+j.Name] = j
	return nil
}
func (w *world) DeleteJob(_ context.Context, app, job string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.jobs, app+"/"+job)
	return nil
}
func (w *world) Jobs(context.Context) ([]JobRecord, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Values(w.jobs)), nil
}

// service is one over the world.
func (w *world) service() *Service {
	s, err := New(context.Background(), Options{Containers: w, Networks: worldNetworks{w}, Volumes: worldVolumes{w}, Images: worldImages{w}, Events: worldEvents{w}, Store: w})
	if err != nil {
		panic(err)
	}
	return s
}
