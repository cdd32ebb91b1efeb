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
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
	"github.com/berth-project/berth/lib/holes"
	"github.com/berth-project/berth/lib/inflate"
	"github.com/berth-project/berth/lib/inroot"
)

// maxEntries bounds the entries of one archive that is extracted.
const maxEntries = 5_000_000

// Untar extracts an archive, compressed or not, into the folder name. Entries
// are placed inside the root whatever their names and links say.
func (f *Files) Untar(ctx context.Context, root, name string, in io.Reader, o container.UntarOptions) error {
	r, err := inroot.Open(root)
	if err != nil {
		return err
	}
	defer r.Close()
	base := path.Clean("/" + name)
	dir, err := r.OpenFile(base, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOTDIR) {
		return fault.Invalidf("extraction point is not a directory")
	}
	if notThere(err) {
		return missing(name)
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	plain, err := inflate.NewReader(in)
	if err != nil {
		return fault.Invalidf("archive: %w", err)
	}
	defer plain.Close()
	x := &extractor{r: r, base: base, o: o}
	archive := tar.NewReader(plain)
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
		if n >= maxEntries {
			return fault.Invalidf("the archive holds more than %d entries", maxEntries)
		}
		if err := x.entry(h, archive); err != nil {
			return refusal(err)
		}
	}
}

// refusal words what the file system itself refuses, and tells what is the
// archive's fault.
func refusal(err error) error {
	if errors.Is(err, unix.EROFS) {
		return &fault.Error{Class: fault.ErrPermission, Msg: "the place is read-only", Err: err}
	}
	for _, fit := range []error{io.ErrUnexpectedEOF, tar.ErrHeader, unix.ENOENT, unix.ENOTDIR, unix.EEXIST, unix.ELOOP, unix.ENAMETOOLONG, unix.EINVAL, unix.E2BIG, unix.EPERM, unix.EMLINK, unix.EFBIG} {
		if errors.Is(err, fit) {
			return fault.Invalidf("archive: %w", err)
		}
	}
	return err
}

type extractor struct {
	r     *inroot.Root
	base  string
	o     container.UntarOptions
	times []timed // of folders, set when their content is there
	held  int     // bytes of their names
}

// maxHeld bounds the names of folders that wait for their time, in bytes.
const maxHeld = 1 << 20

type timed struct {
	name string
	at   time.Time
}

func (x *extractor) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if strings.ContainsRune(h.Name, 0) || len(h.Name) > unix.PathMax {
		return fault.Invalidf("archive: an entry's name is not valid")
	}
	if holes.In(h) { // a few bytes could fill the disk
		return fault.Invalidf("archive: %s is stored with holes: write the archive without them (tar without --sparse)", h.Name)
	}
	name := path.Join(x.base, path.Clean("/"+h.Name))
	if name == x.base {
		return nil
	}
	dir, base, err := x.r.Parent(name)
	if errors.Is(err, unix.ENOENT) {
		if err := x.r.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		dir, base, err = x.r.Parent(name)
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := x.clear(int(dir.Fd()), base, name, h.Typeflag == tar.TypeDir); err != nil {
		return err
	}
	if err := x.make(int(dir.Fd()), base, name, h, content); err != nil {
		return fmt.Errorf("extract %s: %w", h.Name, err)
	}
	return nil
}

// clear makes place for an entry: what is there goes, unless both are folders.
func (x *extractor) clear(d int, base, name string, wantDir bool) error {
	var st unix.Stat_t
	err := unix.Fstatat(d, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case isDir && wantDir:
		return nil
	case x.o.KeepKinds && isDir:
		return fault.Invalidf("cannot overwrite directory %q with non-directory %q", name, x.base)
	case x.o.KeepKinds && wantDir:
		return fault.Invalidf("cannot overwrite non-directory %q with directory %q", name, x.base)
	case !isDir:
		return unix.Unlinkat(d, base, 0)
	}
	// A held descriptor's folder; below it every step is by descriptor too.
	top, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", d))
	if err != nil {
		return err
	}
	defer top.Close()
	return top.RemoveAll(base)
}

func (x *extractor) make(d int, base, name string, h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		if err := unix.Mkdirat(d, base, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		if x.held += len(name); x.held > maxHeld {
			// Archives go from folder to folder: only those above are still open.
			if err := x.settle(func(folder string) bool { return strings.HasPrefix(name, folder+"/") }); err != nil {
				return err
			}
		}
		x.times = append(x.times, timed{name, h.ModTime})
	case tar.TypeReg:
		if err := write(d, base, content); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, d, base); err != nil {
			return err
		}
	case tar.TypeLink:
		return x.link(d, base, h.Linkname)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		if err := node(d, base, h); err != nil {
			return err
		}
	default:
		return fault.Invalidf("unsupported type %q of an archive's entry", h.Typeflag)
	}
	uid, gid := h.Uid, h.Gid
	if o := x.o.Owner; o != nil {
		uid, gid = int(o.UID), int(o.GID)
	}
	if err := dress(d, base, uid, gid, h); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		return nil
	}
	return setTime(d, base, h.ModTime)
}

func write(d int, base string, content io.Reader) error {
	fd, err := unix.Openat(d, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Close())
}

func node(d int, base string, h *tar.Header) error {
	kind := map[byte]uint32{tar.TypeFifo: unix.S_IFIFO, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK}[h.Typeflag]
	dev := 0
	if h.Typeflag != tar.TypeFifo {
		if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor > 1<<12 || h.Devminor > 1<<20 {
			return fault.Invalidf("no device has the numbers %d:%d", h.Devmajor, h.Devminor)
		}
		dev = int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	}
	return unix.Mknodat(d, base, kind|0o600, dev)
}

// dress gives an entry its owner, capabilities and mode through a descriptor
// of the entry itself. A change of owner drops the others, so it comes first.
func dress(d int, base string, uid, gid int, h *tar.Header) error {
	if uid < 0 || gid < 0 || uint64(uid) >= 1<<32-1 || uint64(gid) >= 1<<32-1 {
		return fault.Invalidf("the owner %d:%d is out of range", uid, gid)
	}
	fd, err := unix.Openat(d, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil // a link has no mode
	}
	self := fmt.Sprintf("/proc/self/fd/%d", fd)
	if value := h.PAXRecords[xattrRecord]; value != "" && h.Typeflag == tar.TypeReg {
		err := unix.Setxattr(self, capability, []byte(value), 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	return unix.Chmod(self, uint32(h.Mode&0o7777))
}

func setTime(d int, base string, t time.Time) error {
	if t.IsZero() {
		return nil
	}
	ts := unix.NsecToTimespec(t.UnixNano())
	return unix.UtimesNanoAt(d, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// link makes a hard link to an earlier entry; its target is resolved inside
// the root and is never a folder or a device.
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
	return x.settle(func(string) bool { return false })
}

// settle sets the times of all folders but those that are still open.
func (x *extractor) settle(open func(folder string) bool) error {
	var kept []timed
	seen := map[string]bool{} // of those kept; the last entry of a folder counts
	x.held = 0
	for _, f := range slices.Backward(x.times) {
		if open(f.name) {
			if !seen[f.name] {
				seen[f.name] = true
				kept, x.held = append(kept, f), x.held+len(f.name)
			}
			continue
		}
		dir, base, err := x.r.Parent(f.name)
		if notThere(err) {
			continue // a later entry has replaced it
		}
		if err != nil {
			return err
		}
		err = setTime(int(dir.Fd()), base, f.at)
		_ = dir.Close()
		if err != nil && !notThere(err) {
			return err
		}
	}
	slices.Reverse(kept)
	x.times = kept
	return nil
}
