package serve

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// oomKills tells how often the kernel has killed in a cgroup for memory.
func oomKills(cgroups map[string]string) (int, error) {
	file := cgroups["memory"] + "/memory.oom_control"
	if cgroups["memory"] == "" {
		file = cgroups[""] + "/memory.events"
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(l, "oom_kill "); ok {
			return strconv.Atoi(strings.TrimSpace(n))
		}
	}
	return 0, nil
}

// oomWatch reads the counters of cgroups whenever they change. systemd removes
// the cgroup of a scope as soon as it is empty, and with it what happened in
// it: often before the keeper has even woken for the exit. One inotify
// instance serves all containers, because a user has few of them. It serves
// cgroup v2, whose counters tell of changes.
type oomWatch struct {
	mu   sync.Mutex
	file *os.File // nil until the first container
	in   map[int32]*oomRecord
	of   map[string]int32 // containers' watches
}

type oomRecord struct {
	cgroups map[string]string
	killed  bool
	missed  bool // a change was told and the cgroup was gone before it was read
}

// add begins to watch a container, unless its cgroup has no counter that tells.
func (o *oomWatch) add(id string, cgroups map[string]string) error {
	if cgroups[""] == "" || cgroups["memory"] != "" {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.file == nil {
		fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
		if err != nil {
			return os.NewSyscallError("inotify_init1", err)
		}
		o.file = os.NewFile(uintptr(fd), "inotify")
		o.in, o.of = map[int32]*oomRecord{}, map[string]int32{}
		go o.listen()
	}
	return o.control(func(fd int) error {
		wd, err := unix.InotifyAddWatch(fd, cgroups[""]+"/memory.events", unix.IN_MODIFY)
		if err != nil {
			return fmt.Errorf("watch memory.events: %w", err)
		}
		o.in[int32(wd)], o.of[id] = &oomRecord{cgroups: cgroups}, int32(wd)
		return nil
	})
}

// end tells whether the kernel has killed in a container's cgroup that cannot
// be read any more, and forgets the container. killed says that its first
// process ended by SIGKILL: then a last change that nobody could read was that
// kill, for a change of another kind is read while the process goes on.
func (o *oomWatch) end(id string, killed bool) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	wd, ok := o.of[id]
	if !ok {
		return false
	}
	r := o.in[wd]
	_ = o.control(func(fd int) error {
		o.drain(fd)
		_, err := unix.InotifyRmWatch(fd, uint32(wd))
		return err
	})
	delete(o.in, wd)
	delete(o.of, id)
	return r.killed || r.missed && killed
}

func (o *oomWatch) control(act func(fd int) error) error {
	raw, err := o.file.SyscallConn()
	if err != nil {
		return err
	}
	if failed := raw.Control(func(fd uintptr) { err = act(int(fd)) }); failed != nil {
		return failed
	}
	return err
}

// listen reads what comes for as long as the keeper lives.
func (o *oomWatch) listen() {
	raw, err := o.file.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.drain(int(fd))
		return false // there is always a next one
	})
}

// drain reads all that waits (inotify(7): headers of 16 bytes, names follow). o.mu is held.
func (o *oomWatch) drain(fd int) {
	var buf [4096]byte
	for {
		n, err := unix.Read(fd, buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			wd, mask := int32(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[4:])
			b = b[min(len(b), unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(b[12:]))):]
			r := o.in[wd]
			if r == nil || mask&unix.IN_MODIFY == 0 {
				continue
			}
			kills, err := oomKills(r.cgroups)
			r.killed = r.killed || kills > 0
			r.missed = err != nil
		}
	}
}

// noticeOOM watches a container whose cgroup is not the keeper's to remove.
func (k *server) noticeOOM(c *container, p *process) {
	config := c.lib.Config()
	if p.Exec != "" || config.Cgroups == nil || !config.Cgroups.Systemd {
		return
	}
	if err := k.oom.add(c.id, c.cgroups); err != nil {
		k.log.Warn("kills for memory may pass unnoticed", "container", c.id, "error", err)
	}
}
