// Package serve is berth-keeper: it makes containers with libcontainer, is
// their parent, holds their pipes and terminals, and journals their ends until
// the daemon has them. It must stay small and change rarely: it is not
// restarted by an upgrade. It knows processes, and nothing of images, names or networks.
package serve

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	_ "github.com/opencontainers/cgroups/devices" // device rules of cgroups
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/exeseal"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // the C half of a container's first steps
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/keeper/serve/filter"
)

// Main is the whole program; it returns the exit code.
func Main(args []string, build string) int {
	if len(args) > 1 {
		switch args[1] {
		case "init":
			filter.Use()
			libcontainer.Init() // never returns
		case filter.Word:
			return filter.Compile()
		}
	}
	if err := run(args, build); err != nil {
		fmt.Fprintln(os.Stderr, "berth-keeper:", err)
		return 1
	}
	return 0
}

func run(args []string, build string) error {
	flags := flag.NewFlagSet("berth-keeper", flag.ContinueOnError)
	dir := flags.String("dir", "", "folder of the keeper's state and socket")
	readyFD := flags.Int("ready-fd", 0, "descriptor on which to say that the socket listens")
	cgroup := flags.String("cgroup", "", "cgroup to move to, away from the daemon's; empty to stay")
	showVersion := flags.Bool("version", false, "print the version and quit")
	if err := flags.Parse(args[1:]); err != nil {
		return nil // flag has said why
	}
	if *showVersion {
		fmt.Println("berth-keeper", build)
		return nil
	}
	if *dir == "" {
		return errors.New("--dir is missing (berthd starts this program)")
	}
	if err := seal(args); err != nil {
		return err
	}
	if err := os.MkdirAll(*dir, 0o700); err != nil {
		return err
	}
	// One keeper for each folder; the lock goes with the process.
	lock, err := os.OpenFile(filepath.Join(*dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another keeper holds %s: %w", lock.Name(), err)
	}
	defer lock.Close()

	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	// The kernel names a process after its file, which is a number since the seal.
	_ = os.WriteFile("/proc/self/comm", []byte("berth-keeper"), 0)
	// Only an order ends a keeper: a stop of the daemon's session does not.
	// Caught and dropped, not ignored: what is ignored stays ignored in every
	// container, where a shell could then not trap it.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
	if *cgroup != "" {
		leave, err := joinCgroup(*cgroup)
		if err != nil {
			// Containers are in cgroups of their own in any case.
			log.Warn("keeper stays in the daemon's cgroup", "error", err)
		} else {
			defer func() {
				if err := leave(); err != nil {
					log.Warn("cgroup of the keeper not removed", "error", err)
				}
			}()
		}
	}
	if err := adoptOrphans(); err != nil {
		return err
	}
	k, err := newKeeper(*dir, build, log)
	if err != nil {
		return err
	}
	socket := filepath.Join(*dir, "keeper.sock")
	_ = os.Remove(socket)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	if *readyFD > 2 {
		f := os.NewFile(uintptr(*readyFD), "ready")
		_, _ = f.WriteString("ok")
		_ = f.Close()
	}
	return k.serve(context.Background(), l)
}

// seal runs this program again from a sealed copy in memory, so that nothing
// in a container can reach the file on the host through /proc/self/exe, and
// no copy is made for each container.
func seal(args []string) error {
	if exeseal.IsSelfExeCloned() {
		return nil
	}
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer exe.Close()
	info, err := exe.Stat()
	if err != nil {
		return err
	}
	// CloneBinary may fall back to a file; then libcontainer protects each start itself.
	clone, err := exeseal.CloneBinary(exe, info.Size(), "berth-keeper", os.TempDir())
	if err != nil {
		return err
	}
	if !exeseal.IsCloned(clone) {
		return clone.Close()
	}
	return unix.Exec(fmt.Sprintf("/proc/self/fd/%d", clone.Fd()), args, os.Environ())
}
