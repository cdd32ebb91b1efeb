package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// rootLabel names the container that a snapshot is the root of.
const rootLabel = "berth.container"

// RootFS makes containers' root file systems: one snapshot each, mounted at
// dir/<id>. It implements core's container.RootFS.
type RootFS struct {
	l   *Library
	dir string

	working locks // one change of a container's root at a time

	mu     sync.Mutex
	counts map[container.ID]int // how many hold the mount
}

// count changes how many hold a mount and gives the new number.
func (r *RootFS) count(id container.ID, change int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.counts[id] + change
	if n <= 0 {
		delete(r.counts, id)
		return 0
	}
	r.counts[id] = n
	return n
}

// NewRootFS finds mounts that an earlier daemon left: they count once, for the
// running container that holds them.
func NewRootFS(l *Library, dir string) (*RootFS, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	r := &RootFS{l: l, dir: dir, counts: map[container.ID]int{}}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		if filepath.Dir(m.Mountpoint) == filepath.Clean(dir) {
			r.counts[container.ID(filepath.Base(m.Mountpoint))] = 1
		}
	}
	return r, nil
}

func (r *RootFS) snapshots() snapshots.Snapshotter { return r.l.c.SnapshotService(r.l.sn) }

// Prepare makes a writable snapshot over an image ("" is an empty root).
func (r *RootFS) Prepare(ctx context.Context, id container.ID, imageID string, storageOpt map[string]string) error {
	if len(storageOpt) > 0 {
		return fault.Invalidf("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
	}
	var t *target // of no image
	if imageID != "" {
		var err error
		if _, t, err = r.l.find(imageID); err != nil {
			return err
		}
	}
	// A root for the garbage collector: the container's row owns it.
	label := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339), rootLabel: string(id)})
	_, err := r.snapshots().Prepare(in(ctx), string(id), initKey(t), label)
	if errdefs.IsNotFound(err) { // the first container of this image
		if err := r.l.makeInit(ctx, t); err != nil {
			return err
		}
		_, err = r.snapshots().Prepare(in(ctx), string(id), initKey(t), label)
	}
	return err
}

// Mount gives the mounted root, its files with an SELinux label where one is
// given; each call needs an Unmount.
func (r *RootFS) Mount(ctx context.Context, id container.ID, label string) (string, error) {
	target := filepath.Join(r.dir, string(id))
	if err := r.working.Lock(ctx, string(id)); err != nil {
		return "", err
	}
	defer r.working.Unlock(string(id))
	if r.count(id, 1) > 1 {
		return target, nil
	}
	if err := r.mount(ctx, id, target, label); err != nil {
		r.count(id, -1)
		return "", err
	}
	return target, nil
}

func (r *RootFS) mount(ctx context.Context, id container.ID, target, label string) error {
	mounts, err := r.snapshots().Mounts(in(ctx), string(id))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	if label != "" {
		mounts = labelled(mounts, label)
	}
	if err := mount.All(mounts, target); err != nil {
		return errors.Join(fmt.Errorf("mount root of %s: %w", id.Short(), err), os.Remove(target))
	}
	return nil
}

// labelled has the kernel show all files of a mount with one SELinux context.
// A bind shows those of its source and takes no such option.
func labelled(mounts []mount.Mount, label string) []mount.Mount {
	mounts = slices.Clone(mounts)
	for i, m := range mounts {
		if m.Type != "bind" {
			mounts[i].Options = append(slices.Clone(m.Options), fmt.Sprintf("context=%q", label))
		}
	}
	return mounts
}

// Unmount gives one Mount back.
func (r *RootFS) Unmount(_ context.Context, id container.ID) error {
	if err := r.working.Lock(context.Background(), string(id)); err != nil {
		return err
	}
	defer r.working.Unlock(string(id))
	r.mu.Lock()
	held := r.counts[id] > 0
	r.mu.Unlock()
	if !held || r.count(id, -1) > 0 {
		return nil
	}
	return r.unmount(id)
}

func (r *RootFS) unmount(id container.ID) error {
	target := filepath.Join(r.dir, string(id))
	if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount root of %s: %w", id.Short(), err)
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Remove deletes the snapshot with all that was written to it, whoever held
// its mount.
func (r *RootFS) Remove(ctx context.Context, id container.ID) error {
	if err := r.working.Lock(ctx, string(id)); err != nil {
		return err
	}
	defer r.working.Unlock(string(id))
	r.mu.Lock()
	delete(r.counts, id)
	r.mu.Unlock()
	if err := r.unmount(id); err != nil {
		return err
	}
	if err := r.snapshots().Remove(in(ctx), string(id)); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// Sweep removes the roots whose container nobody knows: their daemon was
// killed while it made them. Mounts of such roots go with them.
func (r *RootFS) Sweep(ctx context.Context, known func(container.ID) bool) error {
	var lost []container.ID
	err := r.snapshots().Walk(in(ctx), func(_ context.Context, i snapshots.Info) error {
		if id := container.ID(i.Labels[rootLabel]); i.Kind == snapshots.KindActive && string(id) == i.Name && !known(id) {
			lost = append(lost, id)
		}
		return nil
	}, `labels."`+rootLabel+`"`)
	if err != nil {
		return fmt.Errorf("look for roots without a container: %w", err)
	}
	for _, id := range lost {
		r.l.o.Logger.Warn("root without a container removed", "container", id)
		if err := r.Remove(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// Usage gives the bytes of the writable layer and of the whole root.
func (r *RootFS) Usage(ctx context.Context, id container.ID) (writable, total int64, err error) {
	u, err := r.snapshots().Usage(in(ctx), string(id))
	if err != nil {
		return 0, 0, err
	}
	total = u.Size
	info, err := r.snapshots().Stat(in(ctx), string(id))
	for err == nil && info.Parent != "" {
		var below snapshots.Usage
		if below, err = r.snapshots().Usage(in(ctx), info.Parent); err == nil {
			total += below.Size
			info, err = r.snapshots().Stat(in(ctx), info.Parent)
		}
	}
	return u.Size, total, err
}

// Layers gives the paths that inspect shows as GraphDriver data.
func (r *RootFS) Layers(ctx context.Context, id container.ID) (map[string]string, error) {
	mounts, err := r.snapshots().Mounts(in(ctx), string(id))
	if err != nil {
		return nil, err
	}
	data := overlayData(mounts)
	data["MergedDir"] = filepath.Join(r.dir, string(id))
	return data, nil
}

func overlayData(mounts []mount.Mount) map[string]string {
	data := map[string]string{}
	for _, m := range mounts {
		if m.Type == "bind" {
			data["UpperDir"] = m.Source
		}
		for _, o := range m.Options {
			k, v, _ := strings.Cut(o, "=")
			switch k {
			case "lowerdir":
				data["LowerDir"] = v
			case "upperdir":
				data["UpperDir"] = v
			case "workdir":
				data["WorkDir"] = v
			}
		}
	}
	return data
}

// layerPaths gives the same for an image. They are asked for once: a view has
// to be made for that.
func (l *Library) layerPaths(ctx context.Context, t *target) map[string]string {
	if t.top() == "" || !t.unpacked.Load() {
		return nil
	}
	if known := t.paths.Load(); known != nil {
		return *known
	}
	ctx = in(context.WithoutCancel(ctx))
	key := "view-" + t.id
	if err := l.working.Lock(ctx, key); err != nil {
		return nil
	}
	defer l.working.Unlock(key)
	sn := l.c.SnapshotService(l.sn)
	mounts, err := sn.View(ctx, key, t.top())
	if errdefs.IsAlreadyExists(err) { // a killed daemon has left it
		mounts, err = sn.Mounts(ctx, key)
	}
	if err != nil {
		return nil
	}
	defer func() {
		if err := sn.Remove(ctx, key); err != nil {
			l.o.Logger.Warn("view not removed", "error", err)
		}
	}()
	data := overlayData(mounts)
	if upper, rest, ok := strings.Cut(data["LowerDir"], ":"); ok {
		data["UpperDir"], data["LowerDir"] = upper, rest
	} else if data["UpperDir"] == "" {
		data["UpperDir"] = data["LowerDir"]
		delete(data, "LowerDir")
	}
	t.paths.Store(&data)
	return data
}
