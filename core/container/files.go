package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/moby/sys/user"

	"github.com/berth-project/berth/lib/fault"
)

// accountLimit bounds /etc/passwd and /etc/group of a container, in bytes.
const accountLimit = 8 << 20

// rooted runs f on a container's root with all its mounts. Of a running
// container it is the root as its first process sees it.
func (s *Service) rooted(ctx context.Context, id string, f func(c Container, root string) error) error {
	e, err := s.find(id)
	if err != nil {
		return err
	}
	c := *e.snap.Load()
	if root := s.live(c); root != nil {
		err = errors.Join(f(c, fmt.Sprintf("/proc/self/fd/%d", root.Fd())), root.Close())
	} else {
		err = s.viewed(ctx, c, func(root string) error { return f(c, root) })
	}
	var missing *fault.Error
	if errors.As(err, &missing) && missing.Noun == "path" {
		return &fault.Error{Class: missing.Class, Noun: missing.Noun, ID: missing.ID, Msg: fmt.Sprintf("Could not find the file %s in container %s", missing.ID, id)}
	}
	return err
}

// live holds the root of a running container: it stays readable if the
// container ends meanwhile. Of one that has just ended there is none.
func (s *Service) live(c Container) *os.File {
	if !c.alive() {
		return nil
	}
	root, err := s.o.Runtime.Root(c.ID)
	if err != nil {
		return nil
	}
	return root
}

// viewed runs f on the root of a container that does not run.
func (s *Service) viewed(ctx context.Context, c Container, f func(root string) error) (err error) {
	done := context.WithoutCancel(ctx)
	root, err := s.o.RootFS.Mount(ctx, c.ID, c.MountLabel)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.o.RootFS.Unmount(done, c.ID)) }()
	if len(c.Mounts) == 0 && !c.Spec.ReadonlyRoot {
		return f(root)
	}
	// A user of its own: the container may start meanwhile and hold them too.
	user := c.ID + "-view-" + ID(newID())
	var mounts []BundleMount
	for _, p := range c.Mounts {
		if p.Type == MountTmpfs {
			continue
		}
		m, err := s.place(ctx, p, user)
		if err != nil {
			return err
		}
		defer s.release(done, p, user)
		mounts = append(mounts, m)
	}
	view, closeView, err := s.o.Files.View(root, c.Spec.ReadonlyRoot, mounts)
	if err != nil {
		return err
	}
	return errors.Join(f(view), closeView())
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

// CopyTo extracts an archive into a folder of a container. What is read-only
// there is refused by name here, and by the kernel however the path leads to it.
// With asUser all belongs to the container's user, else to the archive's owners.
func (s *Service) CopyTo(ctx context.Context, id, path string, r io.Reader, noOverwriteDirNonDir, asUser bool) error {
	return s.rooted(ctx, id, func(c Container, root string) error {
		switch m := mountOf(c, path); {
		case m == nil && c.Spec.ReadonlyRoot:
			return fault.Forbiddenf("container rootfs is marked read-only")
		case m != nil && !m.RW:
			return fault.Forbiddenf("mounted volume is marked read-only")
		}
		o := UntarOptions{KeepKinds: noOverwriteDirNonDir}
		if asUser && c.Spec.User != "" {
			owner, err := s.owner(root, c.Spec.User)
			if err != nil {
				return err
			}
			o.Owner = &owner
		}
		if err := s.o.Files.Untar(ctx, root, path, r, o); err != nil {
			return err
		}
		s.publish(c, "extract-to-dir")
		return nil
	})
}

// mountOf finds the mount that a path lies in, by its name alone.
func mountOf(c Container, name string) (found *MountPoint) {
	name = path.Clean("/" + name)
	for i, m := range c.Mounts {
		inside := name == m.Destination || strings.HasPrefix(name, strings.TrimSuffix(m.Destination, "/")+"/")
		if inside && (found == nil || len(m.Destination) > len(found.Destination)) {
			found = &c.Mounts[i]
		}
	}
	return found
}

// owner finds a user's numbers in the files of a root.
func (s *Service) owner(root, name string) (Owner, error) {
	var files [2][]byte
	for i, f := range []string{"etc/passwd", "etc/group"} {
		b, err := s.o.Files.ReadFile(root, f, accountLimit)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Owner{}, err
		}
		files[i] = b
	}
	u, err := user.GetExecUser(name, nil, bytes.NewReader(files[0]), bytes.NewReader(files[1]))
	if err != nil {
		return Owner{}, fault.Invalidf("%w", err)
	}
	return Owner{UID: uint32(u.Uid), GID: uint32(u.Gid)}, nil
}

// Export writes the whole root as an archive.
func (s *Service) Export(ctx context.Context, id string, w io.Writer) error {
	e, err := s.find(id)
	if err != nil {
		return err
	}
	c := *e.snap.Load()
	root, err := s.o.RootFS.Mount(ctx, c.ID, c.MountLabel)
	if err != nil {
		return err
	}
	_, err = s.o.Files.Tar(ctx, root, "", w)
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
		switch err := s.o.Runtime.Pause(ctx, c.ID); {
		case errors.Is(err, fault.ErrConflict): // it has just ended
		case err != nil:
			return "", err
		default:
			defer func() { s.tolerate(s.o.Runtime.Resume(context.WithoutCancel(ctx), c.ID), "container not thawed", c.ID) }()
		}
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
