// Package mount copies and places mount trees by descriptors, so that a path
// of a hostile tree is resolved once and never again by name. It knows
// nothing of containers.
package mount

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Clone copies the mount at an open path (O_PATH does), with all below it if
// recursive, into a tree that is attached nowhere yet.
func Clone(at *os.File, recursive bool) (*os.File, error) {
	fd, err := unix.OpenTree(int(at.Fd()), "", flags(recursive)|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, os.NewSyscallError("open_tree", err)
	}
	return os.NewFile(uintptr(fd), at.Name()), nil
}

func flags(recursive bool) uint {
	f := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		f |= unix.AT_RECURSIVE
	}
	return f
}

// Foreign copies the mount at a path as a process of another mount namespace
// sees it. Links are resolved in that namespace, whose files stay its own.
func Foreign(pid int, path string) (*os.File, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	type result struct {
		tree *os.File
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// The thread has entered a container: it is never used again.
		runtime.LockOSThread()
		tree, err := enter(ns, path)
		done <- result{tree, err}
	}()
	r := <-done
	return r.tree, r.err
}

func enter(ns *os.File, path string) (*os.File, error) {
	// setns wants a thread that shares its root with no other.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, os.NewSyscallError("unshare", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return nil, os.NewSyscallError("setns", err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags(true))
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// ReadOnly makes a cloned tree read-only, with all mounts in it.
func ReadOnly(tree *os.File) error {
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	return os.NewSyscallError("mount_setattr", unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr))
}

// Attach places a cloned tree over an open path.
func Attach(tree, onto *os.File) error {
	return os.NewSyscallError("move_mount", unix.MoveMount(int(tree.Fd()), "", int(onto.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// Drop takes away all that is mounted at a path, now for names and at the
// last use for those who still have it open, and removes the path's entry.
func Drop(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			continue
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		default:
			return &os.PathError{Op: "unmount", Path: path, Err: err}
		}
		// Only the empty entry: what else may be there is not ours to remove.
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
}
