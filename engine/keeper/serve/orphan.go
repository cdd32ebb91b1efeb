package serve

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// children knows which children libcontainer waits for, so that only those
// are reaped here that were left by a container without a pid namespace of its
// own: the keeper is their subreaper.
type children struct {
	// forks is held for reading while libcontainer starts or destroys
	// something: it has children then that running does not name.
	forks sync.RWMutex

	mu      sync.Mutex
	running map[int]bool // processes that attend will reap
}

// How long a reaper waits for what keeps it from reaping: at first, and at
// most. It never waits for the lock itself, which would hold up every other
// start: one that a container's processes hold up can last for ever.
const (
	orphanPause = 50 * time.Millisecond
	orphanLimit = 5 * time.Second
)

// Hold keeps the reaper away until a child that is not known yet is Known.
func (c *children) Hold() { c.forks.RLock() }

// Known ends a Hold; pid, if there is one, is a child that somebody waits for.
func (c *children) Known(pid int) {
	if pid > 0 {
		c.add(pid)
	}
	c.forks.RUnlock()
}

func (c *children) add(pid int) {
	c.mu.Lock()
	c.running[pid] = true
	c.mu.Unlock()
}

// Gone forgets a child.
func (c *children) Gone(pid int) {
	c.mu.Lock()
	delete(c.running, pid)
	c.mu.Unlock()
}

// adoptOrphans makes this process the parent of orphans below it.
func adoptOrphans() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
}

// reapOrphans runs until ctx ends.
func (c *children) reapOrphans(ctx context.Context) {
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	for {
		select {
		case <-died:
		case <-ctx.Done():
			return
		}
		for pause := orphanPause; !c.reap(); pause = min(2*pause, orphanLimit) {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
		}
	}
}

// reap takes all orphans that have ended. It tells whether it could be sure of
// that: not while a start is under way.
func (c *children) reap() bool {
	if dead, err := peek(); err != nil || dead == 0 {
		return true
	}
	if !c.forks.TryLock() {
		return false
	}
	defer c.forks.Unlock()
	for {
		pid, err := peek()
		if err != nil || pid == 0 {
			return true
		}
		c.mu.Lock()
		known := c.running[pid]
		c.mu.Unlock()
		if known {
			return false // it hides others until it is reaped
		}
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil {
			return true
		}
	}
}

// peek gives a child that has ended, without reaping it; 0 where there is none.
func peek() (int, error) {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		return siginfoPid(&info), err
	}
}

// siginfoPid reads si_pid, the first field of the union in siginfo_t, which
// follows three ints at a pointer's alignment (sigaction(2)).
func siginfoPid(info *unix.Siginfo) int {
	const pointer = unsafe.Sizeof(uintptr(0))
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(info), (12+pointer-1)&^(pointer-1))))
}
