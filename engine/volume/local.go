// Package volume keeps volumes' content on the host: the driver "local",
// folders under the data root, or whatever its options type, o and device mount there.
package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/volume"
	"github.com/berth-project/berth/lib/fault"
)

// Local implements core's volume.Driver under a folder.
type Local struct{ dir string }

// NewLocal keeps volumes under dir.
func NewLocal(dir string) (*Local, error) {
	return &Local{dir}, os.MkdirAll(dir, 0o711)
}

// Check refuses options that are not known or do not make sense together.
func (l *Local) Check(options map[string]string) error {
	for k := range options {
		switch k {
		case "type", "o", "device":
		case "size":
			return fault.Invalidf("quota size requested but no quota support")
		default:
			return fault.Invalidf("invalid option: %q", k)
		}
	}
	if len(options) > 0 && options["device"] == "" && options["type"] != "tmpfs" {
		return fault.Invalidf("missing device in volume options")
	}
	if len(options) > 0 && options["type"] == "" && !strings.Contains(options["o"], "bind") {
		return fault.Invalidf("missing required option: \"type\"")
	}
	return nil
}

// Create makes the folder.
func (l *Local) Create(v volume.Volume) (string, error) {
	path := filepath.Join(l.dir, v.Name, "_data")
	if err := os.MkdirAll(filepath.Dir(path), 0o701); err != nil {
		return "", err
	}
	return path, os.MkdirAll(path, 0o755)
}

// Remove deletes the folder with all that is in it; what is mounted there is
// taken off first, so that nothing of it is deleted.
func (l *Local) Remove(v volume.Volume) error {
	if err := l.Unmount(v); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(l.dir, v.Name))
}

// Mount mounts what the options say; without options it is the folder itself.
func (l *Local) Mount(v volume.Volume) error {
	if len(v.Options) == 0 {
		return nil
	}
	mounted, err := mountinfo.Mounted(v.Mountpoint)
	if err != nil || mounted {
		return err
	}
	m := mount.Mount{Type: v.Options["type"], Source: v.Options["device"]}
	if o := v.Options["o"]; o != "" {
		m.Options = strings.Split(o, ",")
	}
	if m.Source == "" {
		m.Source = m.Type
	}
	if err := m.Mount(v.Mountpoint); err != nil {
		var errno syscall.Errno
		text := err.Error()
		if errors.As(err, &errno) {
			text = errno.Error()
		}
		return fault.Internalf("failed to mount local volume: mount %s:%s, flags: %s, data: %s: %s", m.Source, v.Mountpoint, v.Options["type"], v.Options["o"], text)
	}
	return nil
}

// Unmount undoes Mount.
func (l *Local) Unmount(v volume.Volume) error {
	if len(v.Options) == 0 {
		return nil
	}
	err := unix.Unmount(v.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // nothing is mounted
	}
	return err
}

// Size counts the bytes on disk.
func (l *Local) Size(ctx context.Context, v volume.Volume) (size int64, err error) {
	seen := map[[2]uint64]bool{}
	err = filepath.WalkDir(v.Mountpoint, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		info, err := e.Info()
		if err != nil {
			return nil // it went away
		}
		st := info.Sys().(*syscall.Stat_t)
		if key := [2]uint64{st.Dev, st.Ino}; !e.IsDir() && !seen[key] {
			seen[key] = true
			size += info.Size()
		}
		return nil
	})
	return size, err
}
