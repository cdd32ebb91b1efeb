package files

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/inroot"
)

// Limits of what is archived.
const (
	maxDepth    = 1024 // folders below one another
	maxXattr    = 64   // bytes of security.capability, whose largest version has 24
	capability  = "security.capability"
	xattrRecord = "SCHILY.xattr." + capability // as GNU tar, star and docker write it
)

// walker writes a tree of a root as an archive.
type walker struct {
	ctx   context.Context
	r     *inroot.Root
	w     *tar.Writer
	exact bool                 // keeps times to the nanosecond
	links map[[2]uint64]string // device and inode of files with several names → name in the archive
}

// Tar writes a path as an archive whose entries begin with the path's last
// element: "dir/" for "/some/dir", "./" for "/some/dir/.", "/" for the root.
// The path "" is what is in the root, under its own names.
func (f *Files) Tar(ctx context.Context, root, name string, w io.Writer) (container.PathStat, error) {
	r, err := inroot.Open(root)
	if err != nil {
		return container.PathStat{}, err
	}
	defer r.Close()
	st, err := stat(r, name)
	if err != nil {
		return st, err
	}
	as := st.Name
	if name == "" {
		as = ""
	} else if strings.HasSuffix(name, "/.") || name == "." {
		as = "."
	}
	clean := path.Clean("/" + name)
	t := &walker{ctx: ctx, r: r, w: tar.NewWriter(w), links: map[[2]uint64]string{}}
	if err := t.add(clean, as, 0); err != nil {
		return st, err
	}
	return st, t.w.Close()
}

func (t *walker) add(name, as string, depth int) error {
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
	h := &tar.Header{Name: as, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX}
	if !t.exact {
		// Fractions would cost a further kilobyte for each entry.
		h.ModTime = h.ModTime.Truncate(time.Second)
	}
	if mode&fs.ModeDevice != 0 {
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	key := [2]uint64{st.Dev, st.Ino}
	switch {
	case mode.IsDir():
		return t.folder(name, as, h, depth)
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
		if st.Nlink > 1 {
			t.links[key] = as
		}
		return t.file(name, h)
	}
	return t.w.WriteHeader(h)
}

func (t *walker) file(name string, h *tar.Header) error {
	f, err := t.r.OpenRegular(name, unix.O_NOFOLLOW)
	if notThere(err) || errors.Is(err, inroot.ErrNotRegular) {
		return nil // changed under us
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h.Typeflag, h.Size = tar.TypeReg, info.Size()
	value := make([]byte, maxXattr)
	if n, err := unix.Fgetxattr(int(f.Fd()), capability, value); err == nil && n > 0 {
		h.PAXRecords = map[string]string{xattrRecord: string(value[:n])}
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

func (t *walker) folder(name, as string, h *tar.Header, depth int) error {
	if depth > maxDepth {
		return &fs.PathError{Op: "archive", Path: name, Err: unix.ENAMETOOLONG}
	}
	h.Typeflag = tar.TypeDir
	if as != "" {
		h.Name = strings.TrimSuffix(as, "/") + "/"
		if err := t.w.WriteHeader(h); err != nil {
			return err
		}
	}
	dir, err := t.r.OpenFile(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if notThere(err) {
		return nil
	}
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return err
	}
	for _, n := range names {
		below := n
		if as != "" {
			below = strings.TrimSuffix(as, "/") + "/" + n // not cleaned: "./" stays
		}
		if err := t.add(path.Join(name, n), below, depth+1); err != nil {
			return err
		}
	}
	return nil
}
