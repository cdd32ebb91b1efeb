package serve

import (
	"errors"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/keeper"
	"github.com/berth-project/berth/lib/proc"
)

// watch waits for the end of a process, whoever its parent is, without
// holding a thread: a pidfd in the runtime's poller.
type watch struct{ file *os.File }

func newWatch(pid int) (*watch, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return &watch{os.NewFile(uintptr(fd), "pidfd")}, nil
}

func (w *watch) close() { _ = w.file.Close() }

// wait returns when the process has exited (and is perhaps not yet reaped).
func (w *watch) wait() error { return w.poll(unix.POLLIN) }

func (w *watch) poll(events int16) error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: events}}
		n, err := unix.Poll(p, 0)
		return err == nil && n > 0
	})
}

// signal reaches this process and no other that has its number later.
func (w *watch) signal(s unix.Signal) error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	if failed := raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), s, nil, 0) }); failed != nil {
		return failed
	}
	return err
}

// duplicate gives the pidfd to be handed on.
func (w *watch) duplicate() (*os.File, error) {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if failed := raw.Control(func(from uintptr) { fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 3) }); failed != nil {
		return nil, failed
	}
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// attend waits for a process's end, says so, and keeps its pipes until it is deleted.
func (k *server) attend(c *container, p *process) {
	w := p.watch
	defer w.close()
	if err := w.wait(); err != nil {
		k.log.Error("process not watched", "container", c.id, "error", err)
	}
	now := time.Now()
	e := keeper.Exit{Ref: p.Ref, Pid: p.Pid, Time: now}
	var kills int
	var unread error
	if p.Exec == "" {
		// Before anything else: systemd removes the cgroup of a scope that is empty.
		kills, unread = oomKills(c.cgroups)
	}
	if p.child != nil {
		e.Code = reap(p)
		k.kids.Gone(p.Pid)
	} else {
		e.Code, e.Unknown = w.code()
	}
	if p.Exec == "" {
		noticed := k.oom.end(c.id, e.Code == 128+int(unix.SIGKILL))
		e.OOM = kills > 0 || unread != nil && noticed
	}
	if p.Exec == "" && c.shared {
		// Without a pid namespace nobody else ends what the first left behind.
		_ = c.signalAll(unix.SIGKILL)
	}
	// First the journal: a keeper that dies after it has the exit, and one
	// that dies before it finds the process gone and asks the kernel.
	if err := k.exits.keep(e); err != nil {
		k.log.Error("exit not journaled", "container", c.id, "error", err)
	}
	c.mu.Lock()
	p.Exit = &e
	if err := write(k.procPath(p.Ref), p.Process); err != nil {
		k.log.Error("record not written", "container", c.id, "error", err)
	}
	c.mu.Unlock()
	if p.answered != nil {
		<-p.answered
	}
	k.exits.tell(e)
	close(p.gone)
}

// reap takes the exit code of our own child, which has exited: it does not block.
func reap(p *process) int {
	state, err := p.child.Wait()
	if state == nil {
		var exit interface{ ExitCode() int }
		if errors.As(err, &exit) {
			return exit.ExitCode()
		}
		return 137
	}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return state.ExitCode()
}

// pidfdInfo is struct pidfd_info of linux/pidfd.h (kernel 6.15).
type pidfdInfo struct {
	Mask, CgroupID                                                    uint64
	Pid, Tgid, Ppid, RUID, RGID, EUID, EGID, SUID, SGID, FSUID, FSGID uint32
	ExitCode                                                          int32
	CoredumpMask, CoredumpSignal                                      uint32
}

const (
	pidfdInfoExit = 1 << 3
	// _IOWR(0xFF, 11, struct pidfd_info), of the first published size of 64 bytes
	// and of ours; the kernel takes any size from the first on.
	pidfdGetInfo = 3<<30 | 0xFF<<8 | 11 | unsafe.Sizeof(pidfdInfo{})<<16
	reapLimit    = 2 * time.Second
)

// code asks the kernel for the exit code of a process whose parent is another.
// The kernel has it once that parent has reaped it.
func (w *watch) code() (code int, unknown bool) {
	_ = w.file.SetReadDeadline(time.Now().Add(reapLimit))
	_ = w.poll(unix.POLLHUP)
	info := pidfdInfo{Mask: pidfdInfoExit}
	raw, err := w.file.SyscallConn()
	if err != nil {
		return 137, true
	}
	var errno syscall.Errno
	_ = raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	})
	if errno != 0 || info.Mask&pidfdInfoExit == 0 {
		return 137, true
	}
	if ws := syscall.WaitStatus(info.ExitCode); ws.Signaled() {
		return 128 + int(ws.Signal()), false
	} else {
		return ws.ExitStatus(), false
	}
}

// startTime is in clock ticks since boot; 0 of no process.
func startTime(pid int) uint64 { return proc.Of(pid).Start }
