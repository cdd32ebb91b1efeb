// Package inroot opens paths of a hostile file system tree. The kernel
// resolves each component inside the tree at the moment of use (openat2,
// RESOLVE_IN_ROOT): absolute links, ".." and races cannot leave it.
package inroot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/lib/fault"
)

// resolve also refuses /proc's magic links, which jump anywhere.
const resolve = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// attempts: openat2 says EAGAIN when the tree changes while it looks.
const attempts = 32

// Root is a held descriptor of a tree's top.
type Root struct{ dir *os.File }

// Open holds the tree at path.
func Open(path string) (*Root, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &Root{os.NewFile(uintptr(fd), path)}, nil
}

// Close lets the tree go.
func (r *Root) Close() error { return r.dir.Close() }

// OpenFile opens a path of the tree. Symbolic links are followed inside it.
func (r *Root) OpenFile(name string, flags int, mode fs.FileMode) (*os.File, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Mode: uint64(mode.Perm()), Resolve: resolve}
	if flags&unix.O_CREAT == 0 {
		how.Mode = 0
	}
	for range attempts {
		fd, err := unix.Openat2(int(r.dir.Fd()), name, &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		}
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: unix.EAGAIN}
}

// Parent opens the folder that holds name and gives name's last element, for
// the calls that act on an entry itself (links, creation, removal).
func (r *Root) Parent(name string) (dir *os.File, base string, err error) {
	name = path.Clean("/" + name)
	if name == "/" {
		return nil, "", &fs.PathError{Op: "open", Path: name, Err: unix.EINVAL}
	}
	dir, err = r.OpenFile(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY, 0)
	return dir, path.Base(name), err
}

// ErrNotRegular says that a file is a folder, a device, a pipe or the like.
var ErrNotRegular = errors.New("not a regular file")

// OpenRegular opens a regular file to be read; flags may be O_NOFOLLOW. What
// else is there is not opened: to open a device may act on the host.
func (r *Root) OpenRegular(name string, flags int) (*os.File, error) {
	pinned, err := r.OpenFile(name, unix.O_PATH|flags, 0)
	if err != nil {
		return nil, err
	}
	defer pinned.Close()
	info, err := pinned.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: ErrNotRegular}
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", pinned.Fd()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// ReadFile reads a regular file of at most limit bytes. A file that is no
// regular one, or is longer, is an error: nothing of a container may stall
// its reader or fill its memory.
func (r *Root) ReadFile(name string, limit int64) ([]byte, error) {
	f, err := r.OpenRegular(name, 0)
	if errors.Is(err, ErrNotRegular) {
		return nil, fault.Invalidf("%w", err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fault.Invalidf("read %s: longer than %d bytes", name, limit)
	}
	return b, nil
}

// MkdirAll makes the folder name and its parents inside the tree.
func (r *Root) MkdirAll(name string, mode fs.FileMode) error {
	done := "/"
	for _, part := range strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/") {
		if part == "" {
			continue
		}
		done = path.Join(done, part)
		if f, err := r.OpenFile(done, unix.O_PATH|unix.O_DIRECTORY, 0); err == nil {
			_ = f.Close()
			continue
		}
		dir, base, err := r.Parent(done)
		if err != nil {
			return err
		}
		err = unix.Mkdirat(int(dir.Fd()), base, uint32(mode.Perm()))
		_ = dir.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return &fs.PathError{Op: "mkdir", Path: done, Err: err}
		}
	}
	return nil
}
