package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/berth-project/berth/lib/fault"
)

// Create makes a container without starting it. When it returns, the
// container is on disk; of a failure nothing is left.
func (s *Service) Create(ctx context.Context, spec Spec, o CreateOptions) (id ID, warnings []string, err error) {
	var undo []func()
	defer func() {
		if err != nil {
			for _, f := range slices.Backward(undo) {
				f()
			}
		}
	}()
	image, err := s.image(ctx, spec, o)
	if err != nil {
		return "", nil, err
	}
	// From here on what is not there is another thing than the image. Clients
	// would pull that one again: they take any "not found" for it.
	defer func() {
		if errors.Is(err, fault.ErrNotFound) {
			err = fault.Invalidf("%w", err)
		}
	}()
	merge(&spec, image.Config)
	s.fill(&spec)
	if !s.o.Runtime.Knows(spec.Runtime) {
		return "", nil, fault.Invalidf("unknown or invalid runtime name: %s", spec.Runtime)
	}
	if warnings, err = s.validate(&spec); err != nil {
		return "", nil, err
	}
	c := Container{ID: ID(newID()), Created: time.Now(), ImageID: image.ID, Platform: image.Platform, Driver: s.o.Driver, Spec: spec}
	c.State.Status = Created
	if spec.Hostname == "" {
		c.Spec.Hostname = c.ID.Short()
	}
	command := append(slices.Clone(spec.Entrypoint), spec.Cmd...)
	if len(command) == 0 || command[0] == "" {
		return "", nil, fault.Invalidf("no command specified")
	}
	c.Path, c.Args = command[0], command[1:]
	if err := s.resolveOthers(&c.Spec); err != nil {
		return "", nil, err
	}
	if err := s.confine(&c); err != nil {
		return "", nil, err
	}
	undo = append(undo, func() { s.o.Runtime.Release(c) })
	if c.Name, err = s.take(o.Name, c.ID); err != nil {
		return "", nil, err
	}
	undo = append(undo, func() { s.giveBack(c.Name, c.ID) })
	if err := s.o.Output.Check(c.Spec.Log); err != nil {
		return "", nil, err
	}
	if err := s.o.Networks.Check(ctx, c); err != nil {
		return "", nil, err
	}
	if err := s.o.RootFS.Prepare(ctx, c.ID, c.ImageID, spec.StorageOpt); err != nil {
		return "", nil, err
	}
	undo = append(undo, func() { s.tolerate(s.o.RootFS.Remove(context.WithoutCancel(ctx), c.ID), "root not removed", c.ID) })
	held, made, err := s.resolveMounts(ctx, &c)
	undo = append(undo, func() {
		for _, name := range made {
			s.tolerate(s.o.Volumes.Remove(context.WithoutCancel(ctx), name), "volume not removed", c.ID)
		}
	})
	// Until the container is known as their user, or they are to be removed.
	letGo := func() {
		for _, name := range held {
			s.tolerate(s.o.Volumes.Unmount(context.WithoutCancel(ctx), name, c.ID), "volume not given back", c.ID)
		}
	}
	undo = append(undo, letGo)
	if err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(s.folder(c.ID), 0o710); err != nil {
		return "", nil, err
	}
	undo = append(undo, func() { s.tolerate(removeAll(s.folder(c.ID)), "folder not removed", c.ID) })
	c.LogPath = s.o.Output.LogPath(c)
	if err := s.o.Store.PutContainer(ctx, c); err != nil {
		return "", nil, err
	}
	e := &entry{execs: map[string]*execution{}}
	e.snap.Store(&c)
	s.add(e)
	letGo()
	s.publish(c, "create")
	return c.ID, warnings, nil
}

// confine asks how the host's security modules are to hold a container.
func (s *Service) confine(c *Container) error {
	var joined []Container
	for _, mode := range []string{c.Spec.IpcMode, c.Spec.PidMode} {
		if ref, ok := strings.CutPrefix(mode, "container:"); ok {
			other, err := s.find(ref)
			if err != nil {
				return err
			}
			joined = append(joined, *other.snap.Load())
		}
	}
	held, err := s.o.Runtime.Confine(*c, joined)
	if err != nil {
		return err
	}
	c.AppArmorProfile, c.ProcessLabel, c.MountLabel = held.AppArmorProfile, held.ProcessLabel, held.MountLabel
	return nil
}

// tolerate logs what went wrong while something else is being undone.
func (s *Service) tolerate(err error, message string, id ID) {
	if err != nil {
		s.log.Warn(message, "container", id, "error", err)
	}
}

func (s *Service) image(ctx context.Context, spec Spec, o CreateOptions) (ImageInfo, error) {
	if spec.Image == "" {
		return ImageInfo{Platform: o.Platform}, nil
	}
	return s.o.Images.Resolve(ctx, spec.Image, o.Platform)
}

// MergeEnv sets variables anew: "KEY=value" replaces, "KEY" removes. Each keeps
// the place where it was first named.
func MergeEnv(of, over []string) []string {
	env := make([]string, 0, len(of)+len(over))
	at := make(map[string]int, len(of)+len(over))
	for _, e := range of {
		name, _, _ := strings.Cut(e, "=")
		at[name] = len(env)
		env = append(env, e)
	}
	gone := map[int]bool{}
	for _, e := range over {
		name, _, set := strings.Cut(e, "=")
		i, known := at[name]
		switch {
		case known && set:
			env[i] = e
		case known:
			gone[i] = true
			delete(at, name)
		case set:
			at[name] = len(env)
			env = append(env, e)
		}
	}
	if len(gone) == 0 {
		return env
	}
	kept := env[:0]
	for i, e := range env {
		if !gone[i] {
			kept = append(kept, e)
		}
	}
	return kept
}

// merge gives a Spec what its image says where the person said nothing.
func merge(s *Spec, i ImageConfig) {
	if s.User == "" {
		s.User = i.User
	}
	for _, p := range i.ExposedPorts {
		if !slices.Contains(s.Expose, p) {
			s.Expose = append(s.Expose, p)
		}
	}
	s.Env = MergeEnv(i.Env, s.Env)
	labels := map[string]string{}
	for k, v := range i.Labels {
		labels[k] = v
	}
	for k, v := range s.Labels {
		labels[k] = v
	}
	s.Labels = labels
	if s.Entrypoint == nil {
		s.Entrypoint = slices.Clone(i.Entrypoint)
		if s.Cmd == nil {
			s.Cmd = slices.Clone(i.Cmd)
			s.ArgsEscaped = i.ArgsEscaped
		}
	}
	if len(s.Entrypoint) == 1 && s.Entrypoint[0] == "" {
		s.Entrypoint = nil // --entrypoint "" takes the image's away
	}
	if s.WorkingDir == "" {
		s.WorkingDir = i.WorkingDir
	}
	if s.StopSignal == "" {
		s.StopSignal = i.StopSignal
	}
	s.Shell, s.OnBuild = i.Shell, i.OnBuild
	if h := i.Health; h != nil {
		if s.Health == nil {
			copied := *h
			s.Health = &copied
		} else {
			inherit(s.Health, *h)
		}
	}
	for _, target := range i.Volumes {
		clean := path.Clean(target)
		if !slices.ContainsFunc(s.Mounts, func(m Mount) bool { return path.Clean(m.Target) == clean }) {
			s.Mounts = append(s.Mounts, Mount{Type: MountVolume, Target: target, Origin: FromVolumes})
		}
	}
}

func inherit(h *HealthCheck, from HealthCheck) {
	if len(h.Test) == 0 {
		h.Test = from.Test
	}
	for _, p := range [][2]*time.Duration{{&h.Interval, &from.Interval}, {&h.Timeout, &from.Timeout}, {&h.StartPeriod, &from.StartPeriod}, {&h.StartInterval, &from.StartInterval}} {
		if *p[0] == 0 {
			*p[0] = *p[1]
		}
	}
	if h.Retries == 0 {
		h.Retries = from.Retries
	}
}

// fill writes the daemon's defaults.
func (s *Service) fill(spec *Spec) {
	d := s.o.Defaults
	if spec.Log.Driver == "" {
		spec.Log.Driver = d.Log.Driver
		if len(spec.Log.Options) == 0 {
			spec.Log.Options = d.Log.Options
		}
	}
	if spec.Log.Driver == d.Log.Driver {
		merged := map[string]string{}
		for k, v := range d.Log.Options {
			merged[k] = v
		}
		for k, v := range spec.Log.Options {
			merged[k] = v
		}
		spec.Log.Options = merged
	}
	if spec.ShmSize == 0 {
		spec.ShmSize = max(d.ShmSize, 64<<20)
	}
	if spec.Init == nil && d.Init {
		spec.Init = &d.Init
	}
	if spec.Runtime == "" {
		spec.Runtime = d.Runtime
	}
	if spec.IpcMode == "" {
		spec.IpcMode = "private"
	}
	if spec.CgroupnsMode == "" {
		spec.CgroupnsMode = d.CgroupnsMode
	}
	if spec.NetworkMode == "" {
		spec.NetworkMode = "default"
	}
	if spec.Restart.Name == "" {
		spec.Restart.Name = RestartNo
	}
	for _, u := range d.Ulimits {
		if !slices.ContainsFunc(spec.Resources.Ulimits, func(o Ulimit) bool { return o.Name == u.Name }) {
			spec.Resources.Ulimits = append(spec.Resources.Ulimits, u)
		}
	}
}

// resolveOthers turns names of other containers into ids, as they may be renamed.
func (s *Service) resolveOthers(spec *Spec) error {
	for _, mode := range []*string{&spec.NetworkMode, &spec.IpcMode, &spec.PidMode} {
		ref, ok := strings.CutPrefix(*mode, "container:")
		if !ok {
			continue
		}
		e, err := s.find(ref)
		if err != nil {
			return err
		}
		*mode = "container:" + string(e.snap.Load().ID)
	}
	return nil
}

// resolveMounts gives every wanted mount its place on the host and fills new
// volumes from the image. It returns the volumes that are held for the
// container, and the anonymous ones that it made.
func (s *Service) resolveMounts(ctx context.Context, c *Container) (held, made []string, err error) {
	wanted := slices.Clone(c.Spec.Mounts)
	inherited, err := s.volumesFrom(c.Spec.VolumesFrom, wanted)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range inherited {
		if p.Type != MountVolume {
			continue
		}
		if err := s.o.Volumes.Hold(p.Name, c.ID); err != nil {
			return held, nil, err
		}
		held = append(held, p.Name)
	}
	var fresh []MountPoint
	for _, m := range wanted {
		p, anonymous, err := s.mountPoint(ctx, c, m, inherited)
		if err != nil {
			return held, made, err
		}
		if p == nil {
			continue
		}
		if p.Type == MountVolume {
			held = append(held, p.Name)
		}
		if anonymous {
			made = append(made, p.Name)
		}
		if p.Type == MountVolume && !m.NoCopy && m.Subpath == "" {
			fresh = append(fresh, *p)
		}
		c.Mounts = append(c.Mounts, *p)
	}
	c.Mounts = append(c.Mounts, inherited...)
	return held, made, s.copyUp(ctx, *c, fresh)
}

func (s *Service) mountPoint(ctx context.Context, c *Container, m Mount, inherited []MountPoint) (p *MountPoint, anonymous bool, err error) {
	target := path.Clean(m.Target)
	if m.Origin == FromVolumes && slices.ContainsFunc(inherited, func(o MountPoint) bool { return o.Destination == target }) {
		return nil, false, nil
	}
	p = &MountPoint{Type: m.Type, Source: m.Source, Destination: target, Mode: m.Mode, RW: !m.ReadOnly, Propagation: m.Propagation, Spec: m}
	switch m.Type {
	case MountBind:
		if p.Propagation == "" {
			p.Propagation = "rprivate"
		}
		_, err := os.Stat(m.Source)
		if errors.Is(err, os.ErrNotExist) && m.CreateMountpoint {
			err = os.MkdirAll(m.Source, 0o755)
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil, false, &fault.Error{Class: fault.ErrInvalid, Noun: "mount", ID: m.Source, Msg: `invalid mount config for type "bind": bind source path does not exist: ` + m.Source}
		}
		if err != nil {
			return nil, false, fault.Invalidf("invalid mount config for type \"bind\": %w", err)
		}
	case MountVolume:
		driver := m.VolumeDriver
		if driver == "" {
			driver = c.Spec.VolumeDriver
		}
		v, err := s.o.Volumes.Ensure(ctx, m.Source, driver, m.VolumeOptions, m.VolumeLabels, m.Source == "", c.ID)
		if err != nil {
			return nil, false, err
		}
		p.Name, p.Driver, p.Source, p.Anonymous = v.Name, v.Driver, v.Path, m.Source == ""
		if m.Mode == "" && m.Origin != FromMounts {
			p.Mode = "z"
			if m.Origin == FromVolumes {
				p.Mode = ""
			}
		}
	case MountImage:
		// By its id: the name may stand for another image when the container starts again.
		info, err := s.o.Images.Resolve(ctx, m.Source, "")
		if err != nil {
			return nil, false, err
		}
		p.Name, p.RW = info.ID, false
	}
	return p, p.Anonymous, nil
}

func (s *Service) volumesFrom(refs []string, wanted []Mount) ([]MountPoint, error) {
	var list []MountPoint
	for _, ref := range refs {
		name, mode, _ := strings.Cut(ref, ":")
		switch mode {
		case "", "rw", "ro", "z", "Z", "nocopy":
		default:
			return nil, fault.Invalidf("invalid mode: %s", mode)
		}
		e, err := s.find(name)
		if err != nil {
			return nil, err
		}
		from := e.snap.Load()
		for _, p := range from.Mounts {
			taken := func(d string) bool { return d == p.Destination }
			if slices.ContainsFunc(wanted, func(m Mount) bool { return m.Origin != FromVolumes && taken(path.Clean(m.Target)) }) ||
				slices.ContainsFunc(list, func(m MountPoint) bool { return taken(m.Destination) }) {
				continue
			}
			p.FromContainer, p.Anonymous = string(from.ID), false
			if mode == "ro" {
				p.RW = false
			}
			list = append(list, p)
		}
	}
	return list, nil
}

// copyUp fills empty volumes with what the image has at their place.
func (s *Service) copyUp(ctx context.Context, c Container, points []MountPoint) error {
	if len(points) == 0 {
		return nil
	}
	root, err := s.o.RootFS.Mount(ctx, c.ID, c.MountLabel)
	if err != nil {
		return err
	}
	for _, p := range points {
		if err := s.o.Volumes.Fill(ctx, p.Name, c.ID, func(into func() (string, error)) error {
			return s.o.Files.CopyUp(ctx, root, p.Destination, into)
		}); err != nil {
			return errors.Join(fmt.Errorf("copy image's files to volume %s: %w", p.Name, err), s.o.RootFS.Unmount(context.WithoutCancel(ctx), c.ID))
		}
	}
	return s.o.RootFS.Unmount(ctx, c.ID)
}
