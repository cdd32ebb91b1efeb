// Package volume keeps volumes' content on the host: the driver "local",
// folders under the data root, or whatever its options type, o and device
// mount there. It must not know who uses a volume.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"

	"github.com/berth-project/berth/core/volume"
	"github.com/berth-project/berth/lib/fault"
)

const (
	dataFolder = "_data"
	removing   = ".removing-" // before the name of a volume that is gone but not yet deleted
)

// Local implements core's volume.Driver under a folder:
//
//	<dir>/<name>/_data      what is in the volume
//	<dir>/<name>/filling    and "filled": it is being given its first content
//	<dir>/.removing-<name>  was removed
type Local struct{ dir string }

// NewLocal keeps volumes under dir.
func NewLocal(dir string) (*Local, error) {
	return &Local{dir}, os.MkdirAll(dir, 0o701)
}

// Check refuses options that are not known or do not make sense together, in docker's words.
func (l *Local) Check(options map[string]string) error {
	if len(options) == 0 {
		return nil
	}
	for k := range options {
		if !slices.Contains([]string{"type", "o", "device", "size"}, k) {
			return fault.Invalidf("invalid option: %q", k)
		}
	}
	for _, need := range [][2]string{{"type", "device"}, {"device", "type"}, {"o", "device"}, {"o", "type"}} {
		_, has := options[need[0]]
		if _, ok := options[need[1]]; has && !ok {
			return fault.Invalidf("missing required option: %q", need[1])
		}
	}
	if _, ok := options["size"]; ok {
		return fault.Invalidf("quota size requested but no quota support")
	}
	return nil
}

// Mountpoint is the folder of what is in the volume.
func (l *Local) Mountpoint(v volume.Volume) string {
	return filepath.Join(l.dir, v.Name, dataFolder)
}

// Create makes the folder.
func (l *Local) Create(v volume.Volume) error {
	path := l.Mountpoint(v)
	if err := os.MkdirAll(filepath.Dir(path), 0o701); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chmod(path, 0o755) // whatever the umask is
}

// Remove renames the folder, which is done or not done; what its options
// mounted is taken off first, so that nothing of it is deleted. Where
// something else is mounted in it, it stays.
func (l *Local) Remove(v volume.Volume) error {
	if err := l.Unmount(v); err != nil {
		return err
	}
	dir := filepath.Join(l.dir, v.Name)
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	if len(mounts) > 0 {
		return fault.Conflictf("volume is in use: %s is mounted", mounts[0].Mountpoint)
	}
	if err := l.Purge(v); err != nil { // of one with this name, long ago
		return err
	}
	err = os.Rename(dir, l.trash(v))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (l *Local) trash(v volume.Volume) string { return filepath.Join(l.dir, removing+v.Name) }

// Purge deletes what was in a removed volume.
func (l *Local) Purge(v volume.Volume) error { return os.RemoveAll(l.trash(v)) }

// Find lists the folders.
func (l *Local) Find(context.Context) (found, removed []volume.Volume, err error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		if name, ok := strings.CutPrefix(e.Name(), removing); ok {
			removed = append(removed, volume.Volume{Name: name})
			continue
		}
		v := volume.Volume{Name: e.Name()}
		v.Mountpoint = l.Mountpoint(v)
		info, err := os.Lstat(v.Mountpoint)
		if !e.IsDir() || err != nil || !info.IsDir() {
			continue
		}
		v.Created = info.ModTime()
		found = append(found, v)
	}
	return found, removed, nil
}

// Size counts the bytes of a volume's files, each inode once. What options
// mount is not this host's to count.
func (l *Local) Size(ctx context.Context, v volume.Volume) (size int64, err error) {
	if len(v.Options) > 0 {
		return -1, nil
	}
	seen := map[[2]uint64]bool{}
	err = filepath.WalkDir(v.Mountpoint, func(_ string, e fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went away
		}
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil || e.IsDir() {
			return nil
		}
		st := info.Sys().(*syscall.Stat_t)
		key := [2]uint64{st.Dev, st.Ino}
		if st.Nlink > 1 {
			if seen[key] {
				return nil
			}
			seen[key] = true
		}
		size += info.Size()
		return nil
	})
	if err != nil {
		return -1, fmt.Errorf("size of volume %s: %w", v.Name, err)
	}
	return size, nil
}
