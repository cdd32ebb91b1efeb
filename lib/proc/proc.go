// Package proc names processes for ever: the kernel gives a pid to another
// process once its own has ended.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrGone says that a process has ended, whoever has its pid now.
var ErrGone = errors.New("the process has ended")

// Process is a pid with the time it was given, which no two processes share.
type Process struct {
	Pid   int
	Start uint64 // clock ticks since boot; 0 where it was not known
}

// Of names the process that has a pid now.
func Of(pid int) Process {
	p := Process{Pid: pid}
	dir, err := folder(pid)
	if err != nil {
		return p
	}
	defer dir.Close()
	p.Start, _ = start(dir)
	return p
}

// Open gives the process's folder in /proc, which stays its own: what is opened
// in it is of no other process.
func (p Process) Open() (*os.File, error) {
	dir, err := folder(p.Pid)
	if err != nil {
		return nil, ErrGone
	}
	if at, err := start(dir); err != nil || p.Start == 0 || at != p.Start {
		return nil, errors.Join(ErrGone, dir.Close())
	}
	return dir, nil
}

// Root opens the process's root as it sees it.
func (p Process) Root() (*os.File, error) {
	dir, err := p.Open()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Openat(int(dir.Fd()), "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("open root of process %d: %w", p.Pid, err)
	}
	return os.NewFile(uintptr(fd), "root"), nil
}

func folder(pid int) (*os.File, error) {
	return os.OpenFile("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// start reads field 22 of stat (proc(5)).
func start(dir *os.File) (uint64, error) {
	fd, err := unix.Openat(int(dir.Fd()), "stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	f := os.NewFile(uintptr(fd), "stat")
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold anything; fields are counted after it.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("%q is not understood", b)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}
