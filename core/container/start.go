package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth/core/event"
	"github.com/berth-project/berth/lib/fault"
)

// Start runs a container's program. A failed start leaves the container as it
// was, with the reason in its state, and nothing open.
func (s *Service) Start(ctx context.Context, id string) error {
	e, err := s.find(id)
	if err != nil {
		return err
	}
	e.op.Lock()
	defer e.op.Unlock()
	c := e.snap.Load()
	switch {
	case c.State.Status == Paused:
		return fault.Conflictf("cannot start a paused container, try unpause instead")
	case c.State.Status == Running:
		return fault.NotModifiedf("container already started")
	case c.State.Status == Removing || c.State.Status == Dead:
		return fault.Conflictf("container is marked for removal and cannot be started")
	}
	e.mu.Lock()
	if e.cancel != nil && c.State.Status == Restarting {
		e.cancel() // of the wait before the restart
	}
	e.stopping, e.delay = false, 0
	e.mu.Unlock()
	e.change(func(c *Container) { c.State.RestartCount, c.State.StoppedByUser = 0, false })
	// The start is finished even if the client leaves.
	return s.start(context.WithoutCancel(ctx), e)
}

// start does it; op is held.
func (s *Service) start(ctx context.Context, e *entry) error {
	err := s.launch(ctx, e)
	if err == nil {
		return nil
	}
	c := e.change(func(c *Container) {
		c.State.Status = Exited
		if c.State.StartedAt.IsZero() {
			c.State.Status = Created
		}
		c.State.Error, c.State.ExitCode = err.Error(), exitCodeOf(err)
		c.State.Pid, c.State.Endpoints, c.State.Ports, c.State.SandboxID, c.State.NetNS = 0, nil, nil, "", ""
	})
	if saved := s.save(e); saved != nil {
		s.log.Error("container not saved", "container", c.ID, "error", saved)
	}
	e.mu.Lock()
	pending := e.pending
	e.pending = nil
	e.mu.Unlock()
	for _, a := range pending {
		a.fail()
	}
	s.notify(e, WaitResult{ExitCode: c.State.ExitCode, Err: err.Error()}, WaitNextExit, WaitNotRunning)
	if c.Spec.AutoRemove {
		s.background(func(ctx context.Context) { s.removeByItself(ctx, e) })
	}
	return err
}

// exitCodeOf gives the shell's codes for a program that could not run.
func exitCodeOf(err error) int {
	switch {
	case errors.Is(err, fault.ErrNotFound):
		return 127
	case errors.Is(err, fault.ErrPermission):
		return 126
	}
	return 128
}

// launch opens all that a container needs and starts its process. What was
// opened is closed when a later step fails.
func (s *Service) launch(ctx context.Context, e *entry) (err error) {
	c := *e.snap.Load()
	var undo []func()
	defer func() {
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				undo[i]()
			}
		}
	}()
	b := Bundle{Container: c, Namespace: map[string]string{}}
	if err := s.joined(c, &b); err != nil {
		return err
	}
	// Network and root are made side by side.
	type opened struct {
		sandbox Sandbox
		err     error
	}
	network := make(chan opened, 1)
	go func() {
		sandbox, err := s.o.Networks.Open(ctx, c)
		network <- opened{sandbox, err}
	}()
	rootErr := s.mountAll(ctx, e, &b)
	undo = append(undo, func() { s.unmountAll(ctx, e) })
	net := <-network
	if net.err == nil {
		undo = append(undo, func() { s.tolerate(s.o.Networks.Close(ctx, c), "network not closed", c.ID) })
	}
	if err := errors.Join(rootErr, net.err); err != nil {
		if rootErr == nil {
			return net.err
		}
		return err
	}
	b.NetNS = net.sandbox.NetNS
	c = e.change(func(c *Container) {
		c.State.SandboxID, c.State.NetNS = net.sandbox.ID, net.sandbox.NetNS
		c.State.Endpoints, c.State.Ports = net.sandbox.Endpoints, net.sandbox.Ports
		s.writeFiles(c, net.sandbox)
	})
	if err := s.addFiles(&b, c, net.sandbox); err != nil {
		return err
	}
	b.Container = c
	// Noted before the process runs: a daemon that is killed in between must
	// find the network it has to close. A power cut closes it by itself.
	saved := make(chan error, 1)
	go func() { saved <- s.o.Store.NoteContainer(ctx, c) }()
	pid, pipes, err := s.o.Runtime.Create(ctx, b)
	if err := errors.Join(err, <-saved); err != nil {
		if pid != 0 {
			s.tolerate(s.o.Runtime.Delete(ctx, c.ID, ""), "process not removed", c.ID)
		}
		if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) == 1 {
			err = joined.Unwrap()[0]
		}
		return err
	}
	undo = append(undo, func() { s.tolerate(s.o.Runtime.Delete(ctx, c.ID, ""), "process not removed", c.ID) })
	c = e.change(func(c *Container) { c.State.Pid = pid })
	stream, err := s.o.Output.Pump(s.ctx, c, pipes)
	if err != nil {
		return fmt.Errorf("failed to initialize logging driver: %w", err)
	}
	undo = append(undo, func() { s.tolerate(stream.Close(), "output not closed", c.ID) })
	e.mu.Lock()
	e.stream, e.ended = stream, make(chan struct{})
	pending := e.pending
	e.pending = nil
	e.mu.Unlock()
	for _, a := range pending {
		a.bind(stream)
	}
	if err := s.o.Runtime.Start(ctx, c.ID); err != nil {
		return err
	}
	c = e.change(func(c *Container) {
		c.State.Status, c.State.StartedAt = Running, time.Now()
		c.State.Error, c.State.ExitCode, c.State.OOMKilled = "", 0, false
		if c.Spec.Health.enabled() {
			c.State.Health = &Health{Status: "starting"}
		}
	})
	if err := s.save(e); err != nil {
		// It runs; a daemon that dies now finds it by its process.
		s.log.Error("container not saved", "container", c.ID, "error", err)
	}
	s.publish(c, "start")
	s.watchHealth(e)
	return nil
}

// joined finds the namespaces of others that a container shares.
func (s *Service) joined(c Container, b *Bundle) error {
	for kind, mode := range map[string]string{"network": c.Spec.NetworkMode, "ipc": c.Spec.IpcMode, "pid": c.Spec.PidMode} {
		ref, ok := strings.CutPrefix(mode, "container:")
		if !ok {
			continue
		}
		other, err := s.find(ref)
		if err != nil {
			return err
		}
		o := other.snap.Load()
		if !o.alive() {
			return fault.Conflictf("cannot join %s namespace of a non running container: container %s is %s", kind, strings.TrimPrefix(o.Name, "/"), o.State.Status)
		}
		if kind == "ipc" && o.Spec.IpcMode != "shareable" && o.Spec.IpcMode != "host" {
			return fault.Invalidf("can't join IPC of container %s: non-shareable IPC (hint: use IpcMode:shareable for the donor container)", o.ID)
		}
		b.Namespace[kind] = fmt.Sprintf("/proc/%d/ns/%s", o.State.Pid, map[string]string{"network": "net", "ipc": "ipc", "pid": "pid"}[kind])
	}
	return nil
}

// mountAll mounts the root and volumes and lists all mounts for the runtime.
func (s *Service) mountAll(ctx context.Context, e *entry, b *Bundle) (err error) {
	c := b.Container
	if b.Root, err = s.o.RootFS.Mount(ctx, c.ID, c.MountLabel); err != nil {
		return err
	}
	e.mu.Lock()
	e.mounted = true
	e.mu.Unlock()
	for _, p := range c.Mounts {
		m, err := s.place(ctx, p, c.ID)
		if err != nil {
			return err
		}
		b.Mounts = append(b.Mounts, m)
		if p.Type == MountVolume {
			s.publishVolume(c, p, "mount", "destination", p.Destination, "read/write", strconv.FormatBool(p.RW), "propagation", p.Propagation)
		}
	}
	return nil
}

// relabel reads z and Z of a mount's mode.
func relabel(mode string) Relabel {
	for _, o := range strings.Split(mode, ",") {
		switch r := Relabel(o); r {
		case RelabelShared, RelabelPrivate:
			return r
		}
	}
	return RelabelNone
}

// publishVolume tells what a container does with a volume.
func (s *Service) publishVolume(c Container, p MountPoint, action string, more ...string) {
	attributes := map[string]string{"driver": p.Driver, "container": string(c.ID)}
	for i := 0; i+1 < len(more); i += 2 {
		attributes[more[i]] = more[i+1]
	}
	s.o.Events.Publish(event.Event{Type: "volume", Action: action, ID: p.Name, Attributes: attributes})
}

// place makes a mount point ready. A volume or image is held by user from now on.
func (s *Service) place(ctx context.Context, p MountPoint, user ID) (m BundleMount, err error) {
	m = BundleMount{Source: p.Source, Target: p.Destination, Type: "bind", Relabel: relabel(p.Mode)}
	switch p.Type {
	case MountVolume:
		if m.Source, err = s.o.Volumes.Mount(ctx, p.Name, user); err != nil {
			return m, err
		}
		m.Options, m.Subpath = []string{"rbind", "rprivate"}, p.Spec.Subpath
	case MountImage:
		if m.Source, err = s.o.Images.MountImage(ctx, p.Name, user); err != nil {
			return m, err
		}
		m.Options, m.Subpath = []string{"rbind", "rprivate"}, p.Spec.Subpath
	case MountBind:
		bind := "rbind"
		if p.Spec.NonRecursive {
			bind = "bind"
		}
		if _, err := os.Stat(p.Source); errors.Is(err, os.ErrNotExist) {
			if !p.Spec.CreateMountpoint {
				return m, fault.Invalidf("invalid mount config for type \"bind\": bind source path does not exist: %s", p.Source)
			}
			if err := os.MkdirAll(p.Source, 0o755); err != nil {
				return m, err
			}
		}
		m.Options = []string{bind, p.Propagation}
	case MountTmpfs:
		m.Type, m.Source, m.Options = "tmpfs", "tmpfs", tmpfsOptions(p.Spec)
	}
	if p.Type != MountTmpfs && !p.RW {
		m.Options = append(m.Options, "ro")
		if p.Type == MountBind && !p.Spec.NonRecursive && !p.Spec.ReadOnlyNonRecursive {
			m.Options = append(m.Options, "rro")
		}
	}
	return m, nil
}

func tmpfsOptions(m Mount) []string {
	options := []string{"noexec", "nosuid", "nodev"}
	for _, o := range strings.Split(m.Mode, ",") {
		switch o {
		case "":
		case "exec", "suid", "dev":
			for i, old := range options {
				if old == "no"+o {
					options[i] = o
				}
			}
		default:
			options = append(options, o)
		}
	}
	if m.TmpfsSize > 0 {
		options = append(options, fmt.Sprintf("size=%d", m.TmpfsSize))
	}
	if m.TmpfsMode > 0 {
		options = append(options, fmt.Sprintf("mode=%o", m.TmpfsMode))
	}
	for _, o := range m.TmpfsOptions {
		options = append(options, strings.Join(o, "="))
	}
	if m.ReadOnly {
		options = append(options, "ro")
	}
	return options
}

func (s *Service) unmountAll(ctx context.Context, e *entry) {
	e.mu.Lock()
	held := e.mounted
	e.mounted = false
	e.mu.Unlock()
	if !held {
		return
	}
	c := e.snap.Load()
	s.tolerate(s.o.RootFS.Unmount(ctx, c.ID), "root not unmounted", c.ID)
	for _, p := range c.Mounts {
		s.release(ctx, p, c.ID)
		if p.Type == MountVolume {
			s.publishVolume(*c, p, "unmount")
		}
	}
}

// release gives back what place has taken for user.
func (s *Service) release(ctx context.Context, p MountPoint, user ID) {
	switch p.Type {
	case MountVolume:
		s.tolerate(s.o.Volumes.Unmount(ctx, p.Name, user), "volume not unmounted", user)
	case MountImage:
		s.tolerate(s.o.Images.UnmountImage(ctx, p.Name, user), "image not unmounted", user)
	}
}

// writeFiles tells where the files are that a container gets from its engine.
func (s *Service) writeFiles(c *Container, sandbox Sandbox) {
	dir := s.folder(c.ID)
	c.HostnamePath = filepath.Join(dir, "hostname")
	c.HostsPath, c.ResolvConfPath = filepath.Join(dir, "hosts"), filepath.Join(dir, "resolv.conf")
	if ref, ok := strings.CutPrefix(c.Spec.NetworkMode, "container:"); ok {
		if other, err := s.find(ref); err == nil {
			o := other.snap.Load()
			c.HostnamePath, c.HostsPath, c.ResolvConfPath = o.HostnamePath, o.HostsPath, o.ResolvConfPath
		}
	}
}

// addFiles writes hostname, hosts and resolv.conf and binds them, unless the
// person mounts something there.
func (s *Service) addFiles(b *Bundle, c Container, sandbox Sandbox) error {
	shared := strings.HasPrefix(c.Spec.NetworkMode, "container:")
	for _, f := range []struct {
		path, target string
		content      []byte
	}{
		{c.ResolvConfPath, "/etc/resolv.conf", sandbox.Resolv},
		{c.HostnamePath, "/etc/hostname", []byte(c.Spec.Hostname + "\n")},
		{c.HostsPath, "/etc/hosts", sandbox.Hosts},
	} {
		if f.path == "" {
			continue
		}
		if !shared {
			if err := os.WriteFile(f.path, f.content, 0o644); err != nil {
				return err
			}
		}
		taken := false
		for _, m := range b.Mounts {
			taken = taken || m.Target == f.target
		}
		if !taken {
			options := []string{"rbind", "rprivate"}
			if c.Spec.ReadonlyRoot {
				options = append(options, "ro")
			}
			b.Mounts = append(b.Mounts, BundleMount{Source: f.path, Target: f.target, Type: "bind", Options: options, Relabel: RelabelPrivate})
		}
	}
	return nil
}
