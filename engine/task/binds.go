package task

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
	"github.com/berth-project/berth/lib/inroot"
	"github.com/berth-project/berth/lib/mount"
)

// sharedMemory is where every container finds its shared memory.
const sharedMemory = "/dev/shm"

// binds holds mount trees at paths of ours while a container is made of them:
// what a hostile volume or another container decides about a path is resolved
// once, by descriptor, and the keeper sees a path nobody else can change.
type binds struct {
	dir   string
	id    container.ID
	paths []string
}

// cleanBinds takes away what a daemon that was killed has left.
func cleanBinds(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := mount.Drop(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("clean %s: %w", dir, err)
		}
	}
	return nil
}

// drop ends all; the container has its own copies.
func (h *binds) drop() error {
	var errs []error
	for _, p := range slices.Backward(h.paths) {
		errs = append(errs, mount.Drop(p))
	}
	h.paths = nil
	return errors.Join(errs...)
}

// hold attaches a cloned tree and gives its path.
func (h *binds) hold(tree *os.File) (string, error) {
	info, err := tree.Stat()
	if err != nil {
		return "", err
	}
	at := filepath.Join(h.dir, fmt.Sprintf("%s-%d", h.id, len(h.paths)))
	if info.IsDir() {
		err = os.Mkdir(at, 0o700)
	} else {
		err = os.WriteFile(at, nil, 0o600)
	}
	if err != nil {
		return "", err
	}
	h.paths = append(h.paths, at)
	onto, err := os.OpenFile(at, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer onto.Close()
	return at, mount.Attach(tree, onto)
}

// below binds a subpath, resolved inside the source of its mount.
func (h *binds) below(m container.BundleMount) (string, error) {
	r, err := inroot.Open(m.Source)
	if err != nil {
		return "", err
	}
	defer r.Close()
	at, err := r.OpenFile(m.Subpath, unix.O_PATH, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return "", fault.Invalidf("cannot access path %s: no such file or directory", filepath.Join(m.Source, m.Subpath))
	}
	if err != nil {
		return "", err
	}
	defer at.Close()
	tree, err := mount.Clone(at, !slices.Contains(m.Options, "bind"))
	if err != nil {
		return "", err
	}
	defer tree.Close()
	return h.hold(tree)
}

// memoryOf binds the shared memory of the container whose IPC namespace is
// joined, as that container sees it. No other mount namespace's files can be
// bound by their path.
func (h *binds) memoryOf(namespace string) (string, error) {
	var pid int
	if _, err := fmt.Sscanf(namespace, "/proc/%d/ns/ipc", &pid); err != nil || pid <= 0 {
		return "", fmt.Errorf("namespace %s belongs to no process", namespace)
	}
	tree, err := mount.Foreign(pid, sharedMemory)
	if err != nil {
		return "", fmt.Errorf("shared memory of process %d: %w", pid, err)
	}
	defer tree.Close()
	return h.hold(tree)
}

// resolve gives a bundle whose mounts' sources are paths of ours wherever
// somebody hostile could decide about them.
func (r *Runtime) resolve(b container.Bundle) (container.Bundle, *binds, error) {
	h := &binds{dir: filepath.Join(r.o.Dir, "binds"), id: b.Container.ID}
	err := func() (err error) {
		b.Mounts = slices.Clone(b.Mounts)
		for i, m := range b.Mounts {
			if m.Subpath == "" {
				continue
			}
			if b.Mounts[i].Source, err = h.below(m); err != nil {
				return err
			}
		}
		if path := b.Namespace["ipc"]; path != "" && !covered(b.Mounts, sharedMemory) {
			source, err := h.memoryOf(path)
			if err != nil {
				return err
			}
			b.Mounts = append(b.Mounts, container.BundleMount{
				Source: source, Target: sharedMemory, Type: "bind", Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev"},
			})
		}
		return nil
	}()
	if err != nil {
		return b, nil, errors.Join(err, h.drop())
	}
	return b, h, nil
}

// covered tells whether the person mounts something at a place or over it.
func covered(mounts []container.BundleMount, place string) bool {
	return slices.ContainsFunc(mounts, func(m container.BundleMount) bool {
		t := filepath.Clean(m.Target)
		// Of the standard places only /dev holds others.
		return t == place || t == "/dev" && strings.HasPrefix(place, "/dev/")
	})
}
