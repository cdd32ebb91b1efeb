package volume

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/volume"
)

// A volume's first content is written into a folder inside of it, the stage,
// whose entries move up when all is there. Two links beside the volume's folder,
// which no container sees, tell a daemon that comes after a killed one what a
// stage is worth:
//
//	filling → <stage>  it is not whole, and is deleted
//	filled  → <stage>  it is whole: what is still in it moves up
const (
	filling = "filling"
	filled  = "filled"

	stagePrefix = ".berth-"
)

// Fill gives a mounted volume that is empty what write writes, all of it or nothing.
func (l *Local) Fill(v volume.Volume, write func(into func() (dir string, err error)) error) error {
	if err := l.settle(v); err != nil {
		return err
	}
	there, err := os.ReadDir(v.Mountpoint)
	if err != nil || len(there) > 0 {
		return err
	}
	top, err := openFolder(unix.AT_FDCWD, v.Mountpoint)
	if err != nil {
		return err
	}
	defer top.Close()
	var stage *os.File
	defer func() {
		if stage != nil {
			_ = stage.Close()
		}
	}()
	err = write(func() (string, error) {
		if stage == nil {
			if stage, err = l.stage(v, top); err != nil {
				return "", err
			}
		}
		// By what is open: a container that has the volume may put a link in
		// the place of the name.
		return fmt.Sprintf("/proc/self/fd/%d", stage.Fd()), nil
	})
	if err == nil && stage != nil {
		err = os.Rename(l.record(v, filling), l.record(v, filled))
	}
	return errors.Join(err, l.settle(v))
}

// record is the link that tells of a stage.
func (l *Local) record(v volume.Volume, state string) string {
	return filepath.Join(l.dir, v.Name, state)
}

// stage makes the folder to write into, with the owner and mode of the volume.
func (l *Local) stage(v volume.Volume, top *os.File) (*os.File, error) {
	random := make([]byte, 8)
	_, _ = rand.Read(random) // never fails
	name := stagePrefix + hex.EncodeToString(random)
	if err := os.Symlink(name, l.record(v, filling)); err != nil {
		return nil, err
	}
	if err := unix.Mkdirat(int(top.Fd()), name, 0o700); err != nil {
		return nil, &fs.PathError{Op: "mkdir", Path: filepath.Join(v.Mountpoint, name), Err: err}
	}
	stage, err := openFolder(int(top.Fd()), name)
	if err != nil {
		return nil, err
	}
	if err := own(stage, top); err != nil {
		return nil, errors.Join(err, stage.Close())
	}
	return stage, nil
}

// openFolder opens a folder that is no link.
func openFolder(at int, name string) (*os.File, error) {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// own gives a folder the owner and mode of another.
func own(to, from *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if err := unix.Fchown(int(to.Fd()), int(st.Uid), int(st.Gid)); err != nil {
		return os.NewSyscallError("fchown", err)
	}
	return os.NewSyscallError("fchmod", unix.Fchmod(int(to.Fd()), st.Mode&0o7777))
}

// settle ends what a filling has left: a volume holds all that it was given, or nothing.
func (l *Local) settle(v volume.Volume) error {
	for _, state := range []string{filling, filled} {
		record := l.record(v, state)
		name, err := os.Readlink(record)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if state == filled {
			if err := raise(v.Mountpoint, name); err != nil {
				return fmt.Errorf("fill volume %s: %w", v.Name, err)
			}
		}
		if err := errors.Join(os.RemoveAll(filepath.Join(v.Mountpoint, filepath.Base(name))), os.Remove(record)); err != nil {
			return fmt.Errorf("fill volume %s: %w", v.Name, err)
		}
	}
	return nil
}

// raise moves what is in a stage up into the volume, and gives the volume its
// owner and mode. What a container has written meanwhile stays.
func raise(mountpoint, name string) error {
	top, err := openFolder(unix.AT_FDCWD, mountpoint)
	if err != nil {
		return err
	}
	defer top.Close()
	stage, err := openFolder(int(top.Fd()), name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer stage.Close()
	if err := own(top, stage); err != nil {
		return err
	}
	names, err := stage.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		err := unix.Renameat2(int(stage.Fd()), n, int(top.Fd()), n, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EINVAL) { // a file system that cannot look (NFS)
			var st unix.Stat_t
			if err = unix.Fstatat(int(top.Fd()), n, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
				continue
			}
			err = unix.Renameat(int(stage.Fd()), n, int(top.Fd()), n)
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return &fs.PathError{Op: "rename", Path: n, Err: err}
		}
	}
	return nil
}
