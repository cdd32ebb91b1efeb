// Package files reads and writes inside containers' roots, for copies,
// archives and the filling of volumes. Everything in a root is hostile: each
// path is resolved inside it by the kernel at the moment of use. It must not
// know what a container is doing.
package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
	"github.com/berth-project/berth/lib/inroot"
	"github.com/berth-project/berth/lib/mount"
)

// maxLinks bounds the symbolic links that one path may lead through, as the kernel does.
const maxLinks = 40

// Files implements core's container.Files.
type Files struct{ dir string }

// New makes a Files that keeps its views below dir. What a daemon that was
// killed has left there is taken away.
func New(dir string) (*Files, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range left {
		if err := mount.Drop(path.Join(dir, e.Name())); err != nil {
			return nil, fmt.Errorf("clean %s: %w", dir, err)
		}
	}
	return &Files{dir: dir}, nil
}

func missing(name string) error {
	return &fault.Error{Class: fault.ErrNotFound, Noun: "path", ID: name, Msg: "Could not find the file " + name + " in container"}
}

// at describes an entry without following it.
func at(r *inroot.Root, name string) (st unix.Stat_t, err error) {
	if path.Clean("/"+name) == "/" {
		f, err := r.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return st, err
		}
		defer f.Close()
		err = unix.Fstat(int(f.Fd()), &st)
		return st, err
	}
	dir, base, err := r.Parent(name)
	if err != nil {
		return st, err
	}
	defer dir.Close()
	err = unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

func notThere(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) }

// Stat describes a path. Of a link it tells where it leads.
func (f *Files) Stat(root, name string) (container.PathStat, error) {
	r, err := inroot.Open(root)
	if err != nil {
		return container.PathStat{}, err
	}
	defer r.Close()
	return stat(r, name)
}

func stat(r *inroot.Root, name string) (container.PathStat, error) {
	st, err := at(r, name)
	if notThere(err) {
		return container.PathStat{}, missing(name)
	}
	if err != nil {
		return container.PathStat{}, err
	}
	clean := path.Clean("/" + name)
	out := container.PathStat{Name: path.Base(clean), Size: st.Size, Mode: fileMode(st.Mode), ModTime: time.Unix(st.Mtim.Unix())}
	folder := strings.HasSuffix(name, "/") || strings.HasSuffix(name, "/.")
	switch {
	case out.Mode&fs.ModeSymlink != 0:
		out.LinkTarget = target(r, clean)
	case folder && !out.Mode.IsDir():
		return out, fault.Invalidf("not a directory: %s", name)
	}
	return out, nil
}

// target follows links inside the root and gives the path where they end,
// which need not exist. It is only shown: every use resolves anew.
func target(r *inroot.Root, name string) string {
	done, rest := "/", name
	for links := 0; rest != ""; {
		var part string
		part, rest, _ = strings.Cut(strings.TrimLeft(rest, "/"), "/")
		next := path.Join(done, part) // ".." of the top is the top
		to, err := readlink(r, next)
		if err != nil || next == "/" {
			done = next
			continue
		}
		if links++; links > maxLinks {
			return ""
		}
		if path.IsAbs(to) {
			done = "/"
		}
		rest = to + "/" + rest
	}
	return done
}

func readlink(r *inroot.Root, name string) (string, error) {
	dir, base, err := r.Parent(name)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), base, buf)
	return string(buf[:max(n, 0)]), err
}

func fileMode(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	switch m & unix.S_IFMT {
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFBLK:
		mode |= fs.ModeDevice
	case unix.S_IFCHR:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		mode |= fs.ModeSocket
	}
	for _, bit := range []struct {
		of  uint32
		set fs.FileMode
	}{{unix.S_ISUID, fs.ModeSetuid}, {unix.S_ISGID, fs.ModeSetgid}, {unix.S_ISVTX, fs.ModeSticky}} {
		if m&bit.of != 0 {
			mode |= bit.set
		}
	}
	return mode
}

// ReadFile reads a small file, at most limit bytes.
func (f *Files) ReadFile(root, name string, limit int64) ([]byte, error) {
	r, err := inroot.Open(root)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.ReadFile(name, limit)
}
