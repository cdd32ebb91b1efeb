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
	// Fork runs a function that starts a child and waits for it.
	Fork func(run func() error) error

	mu   sync.Mutex
	made map[[sha256.Size]byte]*os.File // nil while it is compiled, and where that failed
}

// Files gives what a process with this profile is to inherit as its first
// extra descriptor: the filter, sealed, or nothing where it is not yet made.
// Asking begins the making; a first process does not wait for it, since it
// can compile for itself.
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
	defer c.mu.Unlock()
	f, known := c.made[key]
	switch {
	case f != nil:
		return []*os.File{f}
	case known:
		return nil
	case c.made == nil || len(c.made) >= keep:
		// Files still in use close when their last user lets go of them.
		c.made = map[[sha256.Size]byte]*os.File{}
	}
	c.made[key] = nil
	go c.make(key, text)
	return nil
}

func (c *Cache) make(key [sha256.Size]byte, profile []byte) {
	var f *os.File
	err := c.Fork(func() (err error) {
		f, err = run(profile)
		return err
	})
	if err != nil {
		// libcontainer will say the same to whoever starts a process with it.
		c.Log.Warn("filter not compiled ahead", "error", err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, wanted := c.made[key]; wanted {
		c.made[key] = f
	}
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
