// Package filter compiles a seccomp profile once and gives the result to every
// process that would compile it again. It owns the way between libcontainer
// and libseccomp, and must not know what a profile allows.
package filter

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

const (
	// Word is the argument with which the program is called to compile.
	Word = "compile-filter"

	given     = 3       // number of the descriptor in a container's first steps
	header    = 32      // bytes before it: sizes of making and program, flags and size of what is loaded in the end
	sizeLimit = 1 << 20 // bytes of a filter with its making
	keep      = 64      // filters in memory, about 30 kB each
	sealed    = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
)

// Compile is the program's whole work when it is called with Word.
func Compile() int {
	if err := compile(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return 1
}

// Cache holds filters by their profile.
type Cache struct {
	Log *slog.Logger

	mu   sync.Mutex
	made map[[sha256.Size]byte]*filter
}

type filter struct {
	done chan struct{} // closed when file is known
	file *os.File      // nil where it could not be made
}

// Files gives what a process with this profile is to inherit as its first
// extra descriptor: the filter, sealed, or nothing where none can be made.
// The first to ask makes it, with a child that it waits for: not the process
// itself, which may have the least of processors.
func (c *Cache) Files(profile *configs.Seccomp) []*os.File {
	if profile == nil {
		return nil
	}
	text, err := json.Marshal(profile)
	if err != nil {
		return nil
	}
	key := sha256.Sum256(text)
	c.mu.Lock()
	f := c.made[key]
	mine := f == nil
	if mine {
		if c.made == nil || len(c.made) >= keep {
			// Files still in use close when their last user lets go of them.
			c.made = map[[sha256.Size]byte]*filter{}
		}
		f = &filter{done: make(chan struct{})}
		c.made[key] = f
	}
	c.mu.Unlock()
	if mine {
		if f.file, err = run(text); err != nil {
			// libcontainer will say the same to whoever starts a process with it.
			c.Log.Warn("filter not compiled", "error", err)
		}
		close(f.done)
	}
	<-f.done
	if f.file == nil {
		return nil
	}
	return []*os.File{f.file}
}

// run compiles a profile in a process of its own, which libseccomp's memory
// and faults go away with.
func run(profile []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("seccomp-filter", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "seccomp-filter")
	fail := func(err error) (*os.File, error) {
		_ = f.Close()
		return nil, err
	}
	var said bytes.Buffer
	cmd := exec.Command("/proc/self/exe", Word)
	cmd.Env = []string{}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(profile), f, &said
	if err := cmd.Run(); err != nil {
		return fail(fmt.Errorf("%w: %s", err, strings.TrimSpace(said.String())))
	}
	if size, err := f.Seek(0, io.SeekEnd); err != nil || size > sizeLimit {
		return fail(fmt.Errorf("filter of %d bytes: %w", size, err))
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, sealed); err != nil {
		return fail(os.NewSyscallError("fcntl", err))
	}
	return f, nil
}
