package containerd

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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

// views are images mounted read-only into containers, one for each container
// and image at <state>/images/<key>.
type views struct{ mu sync.Mutex }

func viewKey(ref string, user container.ID) string {
	sum := sha256.Sum256([]byte(string(user) + "\x00" + ref))
	return fmt.Sprintf("image-mount-%x", sum[:12])
}

func (l *Library) viewPath(key string) string {
	return filepath.Join(l.o.Engine.state, "images", key)
}

// MountImage gives a read-only path of an image's files while user holds it.
// A second call gives the same path; after a restart it is found again.
func (l *Library) MountImage(ctx context.Context, ref string, user container.ID) (string, error) {
	info, err := l.Resolve(ctx, ref, "")
	if err != nil {
		return "", err
	}
	_, t, err := l.find(info.ID)
	if err != nil {
		return "", err
	}
	if t.top() == "" {
		return "", fault.Invalidf("image %s has no files to mount", ref)
	}
	key := viewKey(ref, user)
	path := l.viewPath(key)
	l.views.mu.Lock()
	defer l.views.mu.Unlock()
	if mounted, err := mountinfo.Mounted(path); err == nil && mounted {
		return path, nil
	}
	ctx = in(ctx)
	sn := l.c.SnapshotService(l.sn)
	root := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339)})
	mounts, err := sn.View(ctx, key, t.top(), root)
	if errdefs.IsAlreadyExists(err) {
		mounts, err = sn.Mounts(ctx, key)
	}
	if err != nil {
		return "", fmt.Errorf("mount image %s: %w", ref, err)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", err
	}
	for n := range mounts {
		mounts[n].Options = append(mounts[n].Options, "ro")
	}
	if err := mount.All(mounts, path); err != nil {
		return "", errors.Join(fmt.Errorf("mount image %s: %w", ref, err), os.Remove(path), sn.Remove(ctx, key))
	}
	return path, nil
}

// UnmountImage undoes MountImage; what is not mounted is no error.
func (l *Library) UnmountImage(ctx context.Context, ref string, user container.ID) error {
	key := viewKey(ref, user)
	path := l.viewPath(key)
	l.views.mu.Lock()
	defer l.views.mu.Unlock()
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount image %s: %w", ref, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_ = os.Remove(filepath.Dir(path)) // where this was the last one
	if err := l.c.SnapshotService(l.sn).Remove(in(ctx), key); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}
