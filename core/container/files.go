package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/berth-project/berth/lib/fault"
)

// rooted runs f on a container's mounted root. Of a running container it is
// the root as its first process sees it, with all volumes.
func (s *Service) rooted(ctx context.Context, id string, f func(c Container, root string) error) error {
	e, err := s.find(id)
	if err != nil {
		return err
	}
	c := *e.snap.Load()
	if c.alive() {
		return f(c, fmt.Sprintf("/proc/%d/root", c.State.Pid))
	}
	root, err := s.o.RootFS.Mount(ctx, c.ID)
	if err != nil {
		return err
	}
	return errors.Join(f(c, root), s.o.RootFS.Unmount(context.WithoutCancel(ctx), c.ID))
}

// StatPath describes a path in a container.
func (s *Service) StatPath(ctx context.Context, id, path string) (st PathStat, err error) {
	err = s.rooted(ctx, id, func(_ Container, root string) (err error) {
		st, err = s.o.Files.Stat(root, path)
		return err
	})
	return st, err
}

// CopyFrom writes a path of a container as an archive. w is asked for the
// destination once the path is known to exist.
func (s *Service) CopyFrom(ctx context.Context, id, path string, w func(PathStat) io.Writer) error {
	return s.rooted(ctx, id, func(c Container, root string) error {
		st, err := s.o.Files.Stat(root, path)
		if err != nil {
			return err
		}
		if _, err := s.o.Files.Tar(ctx, root, path, w(st)); err != nil {
			return err
		}
		s.publish(c, "archive-path")
		return nil
	})
}

// CopyTo extracts an archive into a folder of a container.
func (s *Service) CopyTo(ctx context.Context, id, path string, r io.Reader, noOverwriteDirNonDir, copyUIDGID bool) error {
	return s.rooted(ctx, id, func(c Container, root string) error {
		if c.Spec.ReadonlyRoot {
			return fault.Forbiddenf("container rootfs is marked read-only")
		}
		for _, m := range c.Mounts {
			if !m.RW && (path == m.Destination || strings.HasPrefix(path, m.Destination+"/")) {
				return fault.Forbiddenf("mounted volume is marked read-only")
			}
		}
		if err := s.o.Files.Untar(ctx, root, path, r, noOverwriteDirNonDir, copyUIDGID); err != nil {
			return err
		}
		s.publish(c, "extract-to-dir")
		return nil
	})
}

// Export writes the whole root as an archive.
func (s *Service) Export(ctx context.Context, id string, w io.Writer) error {
	e, err := s.find(id)
	if err != nil {
		return err
	}
	c := *e.snap.Load()
	root, err := s.o.RootFS.Mount(ctx, c.ID)
	if err != nil {
		return err
	}
	_, err = s.o.Files.Tar(ctx, root, "/.", w)
	if err = errors.Join(err, s.o.RootFS.Unmount(context.WithoutCancel(ctx), c.ID)); err != nil {
		return err
	}
	s.publish(c, "export")
	return nil
}

// Changes lists what differs from the image.
func (s *Service) Changes(ctx context.Context, id string) ([]Change, error) {
	e, err := s.find(id)
	if err != nil {
		return nil, err
	}
	return s.o.RootFS.Changes(ctx, e.snap.Load().ID)
}

// Commit makes an image of a container.
func (s *Service) Commit(ctx context.Context, id string, o CommitOptions) (string, error) {
	e, err := s.find(id)
	if err != nil {
		return "", err
	}
	c := *e.snap.Load()
	if o.Pause && c.State.Status == Running {
		if err := s.o.Runtime.Pause(ctx, c.ID); err != nil {
			return "", err
		}
		defer func() { s.tolerate(s.o.Runtime.Resume(context.WithoutCancel(ctx), c.ID), "container not thawed", c.ID) }()
	}
	config := ImageConfig{
		User: c.Spec.User, ExposedPorts: c.Spec.Expose, Env: c.Spec.Env, Entrypoint: c.Spec.Entrypoint, Cmd: c.Spec.Cmd,
		WorkingDir: c.Spec.WorkingDir, Labels: c.Spec.Labels, StopSignal: c.Spec.StopSignal, Health: c.Spec.Health,
		OnBuild: c.Spec.OnBuild, Shell: c.Spec.Shell,
	}
	for _, m := range c.Mounts {
		if m.Type == MountVolume && m.Spec.Origin == FromVolumes {
			config.Volumes = append(config.Volumes, m.Destination)
		}
	}
	if g := o.Config; g != nil {
		config = overlay(config, *g)
	}
	image, err := s.o.Committer.Commit(ctx, c, o, config)
	if err != nil {
		return "", err
	}
	s.publish(c, "commit", "comment", o.Comment, "imageID", image, "imageRef", o.Reference)
	return image, nil
}

// overlay gives the configuration of the request where it says something.
func overlay(base, over ImageConfig) ImageConfig {
	if over.User != "" {
		base.User = over.User
	}
	if over.WorkingDir != "" {
		base.WorkingDir = over.WorkingDir
	}
	if len(over.Entrypoint) > 0 {
		base.Entrypoint = over.Entrypoint
	}
	if len(over.Cmd) > 0 {
		base.Cmd = over.Cmd
	}
	for _, e := range over.Env {
		name, _, _ := strings.Cut(e, "=")
		base.Env = slices.DeleteFunc(slices.Clone(base.Env), func(old string) bool { return strings.HasPrefix(old, name+"=") })
		base.Env = append(base.Env, e)
	}
	if len(over.Labels) > 0 {
		merged := map[string]string{}
		for k, v := range base.Labels {
			merged[k] = v
		}
		for k, v := range over.Labels {
			merged[k] = v
		}
		base.Labels = merged
	}
	base.ExposedPorts = append(slices.Clone(base.ExposedPorts), over.ExposedPorts...)
	base.Volumes = append(slices.Clone(base.Volumes), over.Volumes...)
	return base
}
