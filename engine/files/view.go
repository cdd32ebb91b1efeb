package files

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/inroot"
	"github.com/berth-project/berth/lib/mount"
)

// View shows a root with mounts over it at a path of its own, until close is
// called. Targets that are missing are made. Read-only mounts are so here too.
func (f *Files) View(root string, readOnly bool, mounts []container.BundleMount) (_ string, closeView func() error, err error) {
	view, err := os.MkdirTemp(f.dir, "view-")
	if err != nil {
		return "", nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, mount.Drop(view))
		}
	}()
	source, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, err
	}
	defer source.Close()
	if err := graft(source, view); err != nil {
		return "", nil, err
	}
	r, err := inroot.Open(view)
	if err != nil {
		return "", nil, err
	}
	defer r.Close()
	sorted := slices.Clone(mounts)
	slices.SortStableFunc(sorted, func(a, b container.BundleMount) int {
		return strings.Count(path.Clean(a.Target), "/") - strings.Count(path.Clean(b.Target), "/")
	})
	for _, m := range sorted {
		if m.Type != "bind" {
			continue
		}
		if err := place(r, m); err != nil {
			return "", nil, fmt.Errorf("show %s: %w", m.Target, err)
		}
	}
	if readOnly {
		// Of the root's own mount alone: volumes stay as they are.
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(unix.AT_FDCWD, view, 0, attr); err != nil {
			return "", nil, os.NewSyscallError("mount_setattr", err)
		}
	}
	return view, func() error { return mount.Drop(view) }, nil
}

func graft(source *os.File, view string) error {
	onto, err := os.OpenFile(view, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer onto.Close()
	tree, err := mount.Clone(source, false)
	if err != nil {
		return err
	}
	defer tree.Close()
	return mount.Attach(tree, onto)
}

// place puts one bind over its target in a view.
func place(r *inroot.Root, m container.BundleMount) error {
	source, err := open(m)
	if err != nil {
		return err
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return err
	}
	onto, err := spot(r, m.Target, info.IsDir())
	if err != nil {
		return err
	}
	defer onto.Close()
	tree, err := mount.Clone(source, !slices.Contains(m.Options, "bind"))
	if err != nil {
		return err
	}
	defer tree.Close()
	if slices.Contains(m.Options, "ro") {
		if err := mount.ReadOnly(tree); err != nil {
			return err
		}
	}
	return mount.Attach(tree, onto)
}

// open finds a mount's source; a subpath never leaves it.
func open(m container.BundleMount) (*os.File, error) {
	if m.Subpath == "" {
		return os.OpenFile(m.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
	}
	r, err := inroot.Open(m.Source)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.OpenFile(m.Subpath, unix.O_PATH, 0)
}

// spot opens the place of a mount in a view, and makes it where it is missing.
func spot(r *inroot.Root, target string, folder bool) (*os.File, error) {
	f, err := r.OpenFile(target, unix.O_PATH, 0)
	if !errors.Is(err, unix.ENOENT) {
		return f, err
	}
	if folder {
		err = r.MkdirAll(target, 0o755)
	} else if err = r.MkdirAll(path.Dir(path.Clean("/"+target)), 0o755); err == nil {
		f, err = r.OpenFile(target, unix.O_CREAT|unix.O_WRONLY|unix.O_NONBLOCK, 0o644)
		if err == nil {
			err = f.Close()
		}
	}
	if err != nil {
		return nil, err
	}
	return r.OpenFile(target, unix.O_PATH, 0)
}

// CopyUp fills a folder on the host from a path in the root, keeping owner and
// mode of the folder itself. into gives the folder, where there is something at
// the path.
func (f *Files) CopyUp(ctx context.Context, root, name string, into func() (dir string, err error)) error {
	r, err := inroot.Open(root)
	if err != nil {
		return err
	}
	defer r.Close()
	src, err := r.OpenFile(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if notThere(err) {
		return nil // the image has nothing there
	}
	if err != nil {
		return err
	}
	info, err := src.Stat()
	_ = src.Close()
	if err != nil {
		return err
	}
	dst, err := into()
	if err != nil {
		return err
	}
	reader, writer := io.Pipe()
	done := make(chan error, 1)
	go func() {
		t := &walker{ctx: ctx, r: r, w: tar.NewWriter(writer), links: map[[2]uint64]string{}, exact: true}
		// The path itself may be a link inside the root: what is in it counts.
		err := t.folder(name+"/.", "", &tar.Header{}, 0)
		if err == nil {
			err = t.w.Close()
		}
		_ = writer.CloseWithError(err)
		done <- err
	}()
	err = f.Untar(ctx, dst, "/", reader, container.UntarOptions{})
	_ = reader.CloseWithError(io.ErrClosedPipe)
	if werr := <-done; err == nil {
		err = werr
	}
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	if err := os.Chown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return os.Chmod(dst, info.Mode())
}
