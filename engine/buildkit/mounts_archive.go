package buildkit

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/build"
	"github.com/berth-project/berth/format/cachetar"
	"github.com/berth-project/berth/lib/fault"
	"github.com/berth-project/berth/lib/inflate"
)

// mountLimits bound an archive of cache mounts that is imported.
var mountLimits = cachetar.Limits{Bytes: 256 << 30, Entries: 20 << 20}

// ExportMounts copies cache mounts, by ids or records, all where none is
// named, into an archive (format/cachetar). Steps that want one wait while it
// is copied to disk here, not until the archive is read.
func (b *Builder) ExportMounts(ctx context.Context, ids []string) (_ build.MountArchive, err error) {
	var none build.MountArchive
	all, err := b.CacheMounts(ctx)
	if err != nil {
		return none, err
	}
	list, err := choose(all, ids)
	if err != nil {
		return none, err
	}
	if len(list) == 0 {
		return none, fault.NotFoundf("there are no cache mounts")
	}
	r, err := b.start()
	if err != nil {
		return none, err
	}
	head := make([]cachetar.Mount, len(list))
	for i, m := range list {
		head[i] = cachetar.Mount{Key: m.Key, Target: m.Target, HasBase: m.HasBase}
		for j := range i {
			if head[j].Key == m.Key && head[j].HasBase == m.HasBase {
				return none, fault.Conflictf("several cache mounts have the id %s: export one of them by its record: %s, %s", m.ID, list[j].Record, m.Record)
			}
		}
	}
	f, err := b.nameless("export")
	if err != nil {
		return none, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	w, err := cachetar.NewWriter(f, head)
	if err != nil {
		return none, err
	}
	skipped := 0
	for i, m := range list {
		n, err := r.worker.mounts.copy(quiet(ctx), b.o.Run, w, i, m)
		if err != nil {
			return none, fmt.Errorf("export cache mount %s: %w", m.ID, err)
		}
		skipped += n
	}
	if err := w.Close(); err != nil {
		return none, err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return none, err
	}
	_, err = f.Seek(0, io.SeekStart)
	return build.MountArchive{ReadCloser: f, Size: size, Skipped: skipped}, err
}

// copy writes one mount into an archive.
func (s *mountStore) copy(ctx context.Context, run string, w *cachetar.Writer, number int, m build.CacheMount) (skipped int, err error) {
	release, err := s.hold(ctx, m.Key)
	if err != nil {
		return 0, err
	}
	defer release()
	ref, err := s.lock(ctx, m)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, ref.Release(context.WithoutCancel(ctx))) }()
	err = within(ctx, run, ref, true, func(root *os.Root) error {
		skipped, err = pack(ctx, root, w, number)
		return err
	})
	return skipped, err
}

// within mounts a record and hands on its root. The place is one that the next
// daemon sweeps.
func within(ctx context.Context, run string, ref cache.Mountable, readonly bool, do func(*os.Root) error) (err error) {
	m, err := ref.Mount(ctx, readonly, nil)
	if err != nil {
		return err
	}
	mounts, release, err := m.Mount()
	if err != nil {
		return err
	}
	if release != nil {
		defer func() { err = errors.Join(err, release()) }()
	}
	at, err := os.MkdirTemp(filepath.Join(run, mountsDir), "copy")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(at)) }()
	if err := mount.All(mounts, at); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(at, unix.UMOUNT_NOFOLLOW)) }()
	root, err := os.OpenRoot(at)
	if err != nil {
		return err
	}
	defer root.Close()
	return do(root)
}

// inode names a file of several names.
type inode struct{ dev, ino uint64 }

// pack writes a tree. Nobody changes it meanwhile.
func pack(ctx context.Context, root *os.Root, w *cachetar.Writer, number int) (skipped int, err error) {
	seen := map[inode]string{}
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("%s has no owner", path)
		}
		h := tar.Header{Name: path, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), ModTime: info.ModTime()}
		switch {
		case info.IsDir():
			h.Typeflag = tar.TypeDir
			return w.Entry(number, h)
		case info.Mode()&fs.ModeSymlink != 0:
			h.Typeflag = tar.TypeSymlink
			if h.Linkname, err = root.Readlink(path); err != nil {
				return err
			}
			return w.Entry(number, h)
		case !info.Mode().IsRegular():
			skipped++
			return nil
		}
		if st.Nlink > 1 {
			id := inode{st.Dev, st.Ino}
			if first, ok := seen[id]; ok {
				h.Typeflag, h.Linkname = tar.TypeLink, first
				return w.Entry(number, h)
			}
			seen[id] = path
		}
		h.Typeflag, h.Size = tar.TypeReg, info.Size()
		if err := w.Entry(number, h); err != nil {
			return err
		}
		f, err := root.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
	return skipped, err
}

// ImportMounts makes cache mounts of an archive (plain or compressed). All of
// them are there when it returns, or none.
func (b *Builder) ImportMounts(ctx context.Context, from io.Reader, o build.MountImport) ([]build.CacheMount, error) {
	plain, err := inflate.NewReader(from)
	if err != nil {
		return nil, fault.Invalidf("read archive: %w", err)
	}
	defer plain.Close()
	archive, err := cachetar.NewReader(plain, mountLimits)
	if err != nil {
		return nil, err
	}
	heads, err := named(archive.Mounts(), o.ID)
	if err != nil {
		return nil, err
	}
	r, err := b.start()
	if err != nil {
		return nil, err
	}
	s := r.worker.mounts
	ctx = quiet(ctx)
	if err := s.vacant(ctx, heads, o.Replace); err != nil { // before much is read
		return nil, err
	}
	fresh := make([]cache.MutableRef, len(heads))
	defer func() {
		for _, ref := range fresh {
			if ref != nil {
				_ = ref.Release(context.WithoutCancel(ctx)) // goes, unless it was published
			}
		}
	}()
	at, h, err := archive.Next()
	for i, m := range heads {
		ref, failed := s.New(ctx, nil, nil, cache.WithRecordType(client.UsageRecordTypeCacheMount), cache.WithDescription(describe(m.Target, m.Key)))
		if failed != nil {
			return nil, failed
		}
		fresh[i] = ref
		failed = within(ctx, b.o.Run, ref, false, func(root *os.Root) error {
			u := unpacker{root: root}
			for ; err == nil && at == i; at, h, err = archive.Next() {
				if err := context.Cause(ctx); err != nil {
					return err
				}
				if err := u.put(h, archive); err != nil {
					return fault.Invalidf("entry %q: %w", h.Name, err)
				}
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			return u.finish()
		})
		if failed != nil {
			return nil, failed
		}
	}
	return s.publish(ctx, heads, fresh, o.Replace)
}

// named gives the mounts of an archive, one of them under another id.
func named(heads []cachetar.Mount, id string) ([]cachetar.Mount, error) {
	if id == "" {
		if heads == nil {
			return nil, fault.Invalidf("the archive does not tell what cache mount it holds: give its id")
		}
		return heads, nil
	}
	switch len(heads) {
	case 0:
		heads = []cachetar.Mount{{}}
	case 1:
	default:
		return nil, fault.Invalidf("the archive holds %d cache mounts: one id is not enough for them", len(heads))
	}
	one := heads[0]
	one.Key = "/" + id // of no namespace, as nearly all
	return []cachetar.Mount{one}, one.Validate()
}

// vacant refuses mounts that are here already, or are in use where they may be replaced.
func (s *mountStore) vacant(ctx context.Context, heads []cachetar.Mount, replace bool) error {
	all, err := s.list(ctx)
	if err != nil {
		return err
	}
	for _, m := range rivals(all, heads) {
		switch {
		case !replace:
			return fault.Conflictf("the cache mount %s is here already: choose another id, or let it be replaced", m.ID)
		case m.InUse:
			return fault.Conflictf("the cache mount %s is in use by a build: try again when that has ended", m.ID)
		}
	}
	return nil
}

// rivals are the mounts that imported ones would stand beside.
func rivals(all []build.CacheMount, heads []cachetar.Mount) (out []build.CacheMount) {
	for _, m := range all {
		for _, h := range heads {
			if h.Key == m.Key && h.HasBase == m.HasBase {
				out = append(out, m)
			}
		}
	}
	return out
}

// publish makes records be found as cache mounts, and what they replace not.
func (s *mountStore) publish(ctx context.Context, heads []cachetar.Mount, fresh []cache.MutableRef, replace bool) ([]build.CacheMount, error) {
	var keys []string
	for _, h := range heads {
		keys = append(keys, h.Key)
	}
	slices.Sort(keys) // all hold in one order
	for _, key := range slices.Compact(keys) {
		release, err := s.hold(ctx, key)
		if err != nil {
			return nil, err
		}
		defer release()
	}
	if err := s.vacant(ctx, heads, replace); err != nil {
		return nil, err
	}
	all, err := s.list(ctx)
	if err != nil {
		return nil, err
	}
	var old []cache.MutableRef
	defer func() {
		for _, ref := range old {
			_ = ref.Release(context.WithoutCancel(ctx)) // goes, where it was retired
		}
	}()
	for _, m := range rivals(all, heads) {
		ref, err := s.lock(ctx, m)
		if err != nil {
			return nil, err
		}
		old = append(old, ref)
	}
	records := map[string]bool{}
	for i, ref := range fresh {
		key := heads[i].Key
		if heads[i].HasBase {
			key += ":" + imported
		}
		if err := errors.Join(ref.SetCachePolicyRetain(), setKey(ref, key)); err != nil {
			return nil, err
		}
		records[ref.ID()] = true
	}
	for _, ref := range old {
		if err := errors.Join(setKey(ref, ""), ref.SetCachePolicyDefault()); err != nil {
			return nil, err
		}
	}
	for i, ref := range fresh {
		fresh[i] = nil
		if err := ref.Release(context.WithoutCancel(ctx)); err != nil {
			return nil, err
		}
	}
	if all, err = s.list(ctx); err != nil {
		return nil, err
	}
	var out []build.CacheMount
	for _, m := range all {
		if records[m.Record] {
			out = append(out, m)
		}
	}
	return out, nil
}

// unpacker writes a tree that nobody else sees yet. Paths are clean; the root
// lets no link lead out.
type unpacker struct {
	root    *os.Root
	folders []tar.Header // their times come last
}

func (u *unpacker) put(h *tar.Header, body io.Reader) error {
	if dir := filepath.Dir(h.Name); dir != "." {
		if err := u.root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	mode := unixMode(h.Mode)
	switch h.Typeflag {
	case tar.TypeDir:
		if h.Name != "." {
			if err := u.root.Mkdir(h.Name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
		if info, err := u.root.Lstat(h.Name); err != nil || !info.IsDir() {
			return errors.Join(err, errors.New("it was no folder before"))
		}
		u.folders = append(u.folders, *h)
		return nil
	case tar.TypeSymlink:
		if err := u.root.Symlink(h.Linkname, h.Name); err != nil {
			return err
		}
		return u.root.Lchown(h.Name, h.Uid, h.Gid)
	case tar.TypeLink:
		if info, err := u.root.Lstat(h.Linkname); err != nil || !info.Mode().IsRegular() {
			return errors.Join(err, errors.New("the hard link leads to no file"))
		}
		return u.root.Link(h.Linkname, h.Name)
	}
	f, err := u.root.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, body)
	// The owner first: a change of it takes the set-user-id bit away.
	err = errors.Join(err, f.Chown(h.Uid, h.Gid), f.Chmod(mode), f.Close())
	if err != nil {
		return err
	}
	return u.root.Chtimes(h.Name, h.ModTime, h.ModTime)
}

// finish gives folders their owners, modes and times, the deepest first, and
// has all on disk.
func (u *unpacker) finish() error {
	for i := len(u.folders) - 1; i >= 0; i-- {
		h := u.folders[i]
		if err := errors.Join(u.root.Lchown(h.Name, h.Uid, h.Gid), u.root.Chmod(h.Name, unixMode(h.Mode)), u.root.Chtimes(h.Name, h.ModTime, h.ModTime)); err != nil {
			return err
		}
	}
	f, err := u.root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}

// unixMode gives the permissions of an archive's entry as Go has them.
func unixMode(mode int64) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for bit, flag := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if mode&bit != 0 {
			m |= flag
		}
	}
	return m
}

// nameless makes a file below the builder's root that is gone when it is closed.
func (b *Builder) nameless(pattern string) (*os.File, error) {
	dir := filepath.Join(b.o.Root, "contexts")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, pattern)
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}
