package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// The init layer lies between an image and the layer that a container writes:
// it holds the places that every container has something mounted on, so that
// they show neither in what a container changed nor in what is committed.

// initPlaces are those places, as docker makes them.
var initPlaces = []struct {
	path string
	mode fs.FileMode
	link string
}{
	{"dev/pts", fs.ModeDir | 0o755, ""},
	{"dev/shm", fs.ModeDir | 0o755, ""},
	{"proc", fs.ModeDir | 0o755, ""},
	{"sys", fs.ModeDir | 0o755, ""},
	{".dockerenv", 0o755, ""},
	{"etc/resolv.conf", 0o755, ""},
	{"etc/hosts", 0o755, ""},
	{"etc/hostname", 0o755, ""},
	{"dev/console", 0o755, ""},
	{"etc/mtab", fs.ModeSymlink, "/proc/mounts"},
}

func initKey(t *target) string {
	if t == nil {
		return "berth-init"
	}
	return "berth-init-" + t.id
}

// makeInit makes the init layer of an image (nil: of no image). It lives as
// long as the image's configuration, or as a container stands on it.
func (l *Library) makeInit(ctx context.Context, t *target) error {
	ctx, done, err := l.lease(ctx)
	if err != nil {
		return err
	}
	defer done()
	key, parent := initKey(t), ""
	labels := map[string]string{"containerd.io/gc.root": "berth"}
	if t != nil {
		parent, labels = t.top(), map[string]string{"containerd.io/gc.bref.content": t.config.Digest.String()}
	}
	if err := l.working.Lock(ctx, key); err != nil {
		return err
	}
	defer l.working.Unlock(key)
	sn := l.c.SnapshotService(l.sn)
	if _, err := sn.Stat(ctx, key); err == nil {
		return nil
	}
	active := key + "-new"
	if err := sn.Remove(ctx, active); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	mounts, err := sn.Prepare(ctx, active, parent)
	if err != nil {
		return err
	}
	err = mount.WithTempMount(ctx, mounts, fillInit)
	if err == nil {
		err = sn.Commit(ctx, key, active, snapshots.WithLabels(labels))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("make init layer: %w", err), ignoreMissing(sn.Remove(context.WithoutCancel(ctx), active)))
	}
	return nil
}

func ignoreMissing(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// fillInit makes the places in a mounted root. An image may have links there:
// the root is opened as such, and what is on the way and no folder goes.
func fillInit(path string) error {
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, p := range initPlaces {
		at := ""
		for part := range strings.SplitSeq(p.path, "/") {
			at = filepath.Join(at, part)
			info, err := root.Lstat(at)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				if at != p.path {
					err = root.Mkdir(at, 0o755)
				} else {
					err = nil
				}
			case err == nil && !info.IsDir():
				if err = root.Remove(at); err == nil && at != p.path {
					err = root.Mkdir(at, 0o755)
				}
			}
			if err != nil {
				return err
			}
		}
		if err := place(root, p.path, p.mode, p.link); err != nil {
			return err
		}
	}
	return nil
}

func place(root *os.Root, path string, mode fs.FileMode, link string) error {
	_, err := root.Lstat(path)
	switch {
	case err == nil:
		return nil // a folder of the image: what is mounted there decides
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case mode.IsDir():
		return root.Mkdir(path, mode.Perm())
	case mode&fs.ModeSymlink != 0:
		return root.Symlink(link, path)
	}
	f, err := root.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode.Perm())
	if err != nil {
		return err
	}
	return f.Close()
}
