// Package files reads and writes inside containers' roots, for copies,
// archives and the filling of volumes. Everything in a root is hostile: each
// path is resolved inside it by the kernel at the moment of use.
package files

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
	"github.com/berth-project/berth/lib/inroot"
)

// maxEntries bounds the entries of one archive that is extracted.
const maxEntries = 5_000_000

// Files implements core's container.Files.
type Files struct{}

// New makes a Files.
func New() *Files { return &Files{} }

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
		return st, unix.Fstat(int(f.Fd()), &st)
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
	st, err := at(r, name)
	if notThere(err) {
		return container.PathStat{}, missing(name)
	}
	if err != nil {
		return container.PathStat{}, err
	}
	out := container.PathStat{Name: path.Base(path.Clean("/" + name)), Size: st.Size, Mode: fileMode(st.Mode), ModTime: time.Unix(st.Mtim.Unix())}
	if strings.HasSuffix(name, "/") && out.Mode&fs.ModeSymlink == 0 && !out.Mode.IsDir() {
		return out, fault.Invalidf("not a directory: %s", name)
	}
	if out.Mode&fs.ModeSymlink != 0 {
		out.LinkTarget = target(r, name)
	}
	return out, nil
}

// target follows a link inside the root and gives the path where it ends.
func target(r *inroot.Root, name string) string {
	dir, base, err := r.Parent(name)
	if err != nil {
		return ""
	}
	defer dir.Close()
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), base, buf)
	if err != nil {
		return ""
	}
	to := string(buf[:n])
	if !path.IsAbs(to) {
		to = path.Join(path.Dir(path.Clean("/"+name)), to)
	}
	return path.Clean("/" + to)
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
	for bit, set := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= set
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

// walker writes a tree of a root as an archive.
type walker struct {
	ctx   context.Context
	r     *inroot.Root
	w     *tar.Writer
	links map[[2]uint64]string // device and inode → name in the archive
}

// Tar writes a path as an archive whose entries begin with the path's last
// element; "/some/dir/." writes what is in the folder.
func (f *Files) Tar(ctx context.Context, root, name string, w io.Writer) (container.PathStat, error) {
	st, err := f.Stat(root, name)
	if err != nil {
		return st, err
	}
	r, err := inroot.Open(root)
	if err != nil {
		return st, err
	}
	defer r.Close()
	as := st.Name
	clean := path.Clean("/" + name)
	if strings.HasSuffix(name, "/.") || name == "." || clean == "/" {
		as = ""
	}
	t := &walker{ctx: ctx, r: r, w: tar.NewWriter(w), links: map[[2]uint64]string{}}
	if err := t.add(clean, as); err != nil {
		return st, err
	}
	return st, t.w.Close()
}

func (t *walker) add(name, as string) error {
	if err := t.ctx.Err(); err != nil {
		return err
	}
	st, err := at(t.r, name)
	if notThere(err) {
		return nil // it went away
	}
	if err != nil {
		return err
	}
	mode := fileMode(st.Mode)
	if mode&fs.ModeSocket != 0 {
		return nil // archives hold no sockets
	}
	h := &tar.Header{
		Name: as, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
		Devmajor: int64(unix.Major(st.Rdev)), Devminor: int64(unix.Minor(st.Rdev)),
	}
	key := [2]uint64{st.Dev, st.Ino}
	switch {
	case mode.IsDir():
		return t.folder(name, as, h)
	case mode&fs.ModeSymlink != 0:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = readlink(t.r, name); err != nil {
			return err
		}
	case mode&fs.ModeNamedPipe != 0:
		h.Typeflag = tar.TypeFifo
	case mode&fs.ModeCharDevice != 0:
		h.Typeflag = tar.TypeChar
	case mode&fs.ModeDevice != 0:
		h.Typeflag = tar.TypeBlock
	case st.Nlink > 1 && t.links[key] != "":
		h.Typeflag, h.Linkname = tar.TypeLink, t.links[key]
	default:
		t.links[key] = as
		return t.file(name, h)
	}
	return t.w.WriteHeader(h)
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

func (t *walker) file(name string, h *tar.Header) error {
	f, err := t.r.OpenFile(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if notThere(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return nil // changed under us
	}
	h.Typeflag, h.Size = tar.TypeReg, info.Size()
	if buf := make([]byte, 64); true {
		if n, err := unix.Fgetxattr(int(f.Fd()), "security.capability", buf); err == nil && n > 0 {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": string(buf[:n])}
		}
	}
	if err := t.w.WriteHeader(h); err != nil {
		return err
	}
	// A file that shrinks meanwhile is filled with zeros: the archive stays readable.
	n, err := io.Copy(t.w, io.LimitReader(f, h.Size))
	if err == nil && n < h.Size {
		_, err = io.CopyN(t.w, zeros{}, h.Size-n)
	}
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func (t *walker) folder(name, as string, h *tar.Header) error {
	h.Typeflag = tar.TypeDir
	if as != "" {
		h.Name = as + "/"
		if err := t.w.WriteHeader(h); err != nil {
			return err
		}
	}
	dir, err := t.r.OpenFile(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := t.add(path.Join(name, n), path.Join(as, n)); err != nil {
			return err
		}
	}
	return nil
}

// Untar extracts an archive into the folder name. Entries are placed inside
// the root whatever their names and links say.
func (f *Files) Untar(ctx context.Context, root, name string, in io.Reader, noOverwriteDirNonDir, copyUIDGID bool) error {
	r, err := inroot.Open(root)
	if err != nil {
		return err
	}
	defer r.Close()
	dir, err := r.OpenFile(path.Clean("/"+name), unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOTDIR) {
		return fault.Invalidf("extraction point is not a directory")
	}
	if notThere(err) {
		return missing(name)
	}
	if err != nil {
		return err
	}
	_ = dir.Close()
	x := &extractor{r: r, base: path.Clean("/" + name), keep: noOverwriteDirNonDir, owners: copyUIDGID}
	archive := tar.NewReader(in)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return x.finish()
		}
		if err != nil {
			return fault.Invalidf("archive: %w", err)
		}
		if n > maxEntries {
			return fault.Invalidf("the archive holds more than %d entries", maxEntries)
		}
		if err := x.entry(h, archive); err != nil {
			return err
		}
	}
}

type extractor struct {
	r            *inroot.Root
	base         string
	keep, owners bool
	times        []timed // of folders, set last
}

type timed struct {
	name string
	at   time.Time
}

func (x *extractor) entry(h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	}
	name := path.Join(x.base, path.Clean("/"+h.Name))
	if name == x.base {
		return nil
	}
	if strings.ContainsRune(h.Name, 0) || len(h.Name) > unix.PathMax {
		return fault.Invalidf("archive: an entry's name is not valid")
	}
	if err := x.r.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	dir, base, err := x.r.Parent(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	d := int(dir.Fd())
	var st unix.Stat_t
	err = unix.Fstatat(d, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		wantDir := h.Typeflag == tar.TypeDir
		switch {
		case x.keep && isDir && !wantDir:
			return fault.Invalidf("cannot overwrite directory %q with non-directory %q", name, path.Dir(name))
		case x.keep && !isDir && wantDir:
			return fault.Invalidf("cannot overwrite non-directory %q with directory %q", name, path.Dir(name))
		case isDir && wantDir:
		case isDir:
			if err := unix.Unlinkat(d, base, unix.AT_REMOVEDIR); err != nil {
				return fault.Invalidf("cannot replace directory %q: %w", name, err)
			}
		default:
			if err := unix.Unlinkat(d, base, 0); err != nil {
				return err
			}
		}
	}
	if err := x.make(d, base, name, h, content); err != nil {
		return fmt.Errorf("extract %s: %w", h.Name, err)
	}
	return nil
}

func (x *extractor) make(d int, base, name string, h *tar.Header, content io.Reader) error {
	mode := uint32(h.Mode & 0o7777)
	switch h.Typeflag {
	case tar.TypeDir:
		if err := unix.Mkdirat(d, base, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		x.times = append(x.times, timed{name, h.ModTime})
	case tar.TypeReg, '\x00':
		fd, err := unix.Openat(d, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), name)
		_, err = io.Copy(f, content)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, d, base); err != nil {
			return err
		}
	case tar.TypeLink:
		if err := x.link(d, base, h.Linkname); err != nil {
			return err
		}
		return nil
	case tar.TypeFifo:
		if err := unix.Mknodat(d, base, unix.S_IFIFO|0o600, 0); err != nil {
			return err
		}
	case tar.TypeChar, tar.TypeBlock:
		kind := uint32(unix.S_IFCHR)
		if h.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
		if err := unix.Mknodat(d, base, kind|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))); err != nil {
			return err
		}
	default:
		return fault.Invalidf("unsupported type %q of an archive's entry", h.Typeflag)
	}
	uid, gid := 0, 0
	if x.owners {
		uid, gid = h.Uid, h.Gid
	}
	if err := unix.Fchownat(d, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		// Not a link: it was made here a moment ago, in a folder held open.
		if err := chmodNoFollow(d, base, mode); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeDir {
		return nil
	}
	return setTime(d, base, h.ModTime)
}

// chmodNoFollow sets a mode through a descriptor of the entry itself.
func chmodNoFollow(d int, base string, mode uint32) error {
	fd, err := unix.Openat(d, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return unix.ELOOP
	}
	return unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode)
}

func setTime(d int, base string, t time.Time) error {
	if t.IsZero() {
		return nil
	}
	ts := []unix.Timespec{unix.NsecToTimespec(t.UnixNano()), unix.NsecToTimespec(t.UnixNano())}
	return unix.UtimesNanoAt(d, base, ts, unix.AT_SYMLINK_NOFOLLOW)
}

// link makes a hard link to an earlier entry; its target is resolved inside
// the root and is never a link or a device itself.
func (x *extractor) link(d int, base, to string) error {
	old, oldBase, err := x.r.Parent(path.Join(x.base, path.Clean("/"+to)))
	if err != nil {
		return err
	}
	defer old.Close()
	var st unix.Stat_t
	if err := unix.Fstatat(int(old.Fd()), oldBase, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if k := st.Mode & unix.S_IFMT; k != unix.S_IFREG && k != unix.S_IFLNK {
		return fault.Invalidf("hard link to %q, which is no file", to)
	}
	return unix.Linkat(int(old.Fd()), oldBase, d, base, 0)
}

// finish sets the folders' times, which their contents have changed.
func (x *extractor) finish() error {
	for i := len(x.times) - 1; i >= 0; i-- {
		dir, base, err := x.r.Parent(x.times[i].name)
		if err != nil {
			return err
		}
		err = setTime(int(dir.Fd()), base, x.times[i].at)
		_ = dir.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// CopyUp fills an empty folder dst on the host from a path in the root,
// keeping owner and mode of the folder itself.
func (f *Files) CopyUp(ctx context.Context, root, name, dst string) error {
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
	there, err := os.ReadDir(dst)
	if err != nil || len(there) > 0 {
		return err
	}
	reader, writer := io.Pipe()
	done := make(chan error, 1)
	go func() {
		t := &walker{ctx: ctx, r: r, w: tar.NewWriter(writer), links: map[[2]uint64]string{}}
		err := t.add(path.Clean("/"+name), "")
		if err == nil {
			err = t.w.Close()
		}
		_ = writer.CloseWithError(err)
		done <- err
	}()
	err = f.Untar(ctx, dst, "/", reader, false, true)
	_ = reader.CloseWithError(io.ErrClosedPipe)
	if werr := <-done; err == nil {
		err = werr
	}
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	if err := os.Lchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return os.Chmod(dst, info.Mode())
}
