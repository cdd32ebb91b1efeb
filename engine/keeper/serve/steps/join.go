//go:build cgo

package steps

/*
#include "steps.h"
*/
import "C"

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// Place is where a process is put: beside a container's first process.
type Place struct {
	First   *os.File          // pidfd of that process
	Cgroups map[string]string // folders by controller, "" is version 2
	Forks   Forks
}

// Forks is told of children that others are not to wait for: Hold before there
// is one that is not known yet, Known once it is, or with 0 where there is none,
// Gone when nobody will wait for it.
type Forks interface {
	Hold()
	Known(pid int)
	Gone(pid int)
}

// joining says at which descriptors a process finds what it needs to join.
// The files of its cgroups follow that of the container's first process.
type joining struct{ pipe, first, groups, console int }

func (p *plan) join(c *configs.Config, j *joining) {
	score := ""
	if c.OomScoreAdj != nil {
		score = strconv.Itoa(*c.OomScoreAdj)
	}
	p.add(C.STEP_JOIN, num(uint64(j.pipe), uint64(j.first), namespaces(), uint64(j.groups)), score)
}

// answerLimit bounds what a process says before its program, in bytes.
const answerLimit = 64 << 10

// Join starts a further process in a running container by its plan alone. It
// gives nil where the process or its place is not plain, having done nothing:
// then libcontainer starts it. p's ExtraFiles hold its filter, if it has one.
func Join(c *configs.Config, p *libcontainer.Process, id string, in Place) (*os.Process, error) {
	if !able() || p.Init {
		return nil, nil
	}
	groups, unified, ok := openGroups(in.Cgroups)
	defer func() {
		for _, f := range append(groups, unified) {
			if f != nil {
				_ = f.Close()
			}
		}
	}()
	if !ok {
		return nil, nil
	}
	ours, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	defer theirs.Close()
	pipe := 3 + len(p.ExtraFiles) + 1 // after the plan
	plan, err := file(c, p, id, &joining{pipe: pipe, first: pipe + 1, groups: len(groups), console: pipe + 2 + len(groups)})
	if err != nil || plan == nil {
		return nil, err
	}
	defer plan.Close()

	cmd := exec.Command("/proc/self/exe", "init")
	cmd.Args[0], cmd.Env = os.Args[0], []string{C.PLAN_JOINS + "=1"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.Stdin, p.Stdout, p.Stderr
	cmd.ExtraFiles = slices.Concat(p.ExtraFiles, []*os.File{plan, theirs, in.First}, groups)
	if p.ConsoleSocket != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, p.ConsoleSocket)
	}
	if unified != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(unified.Fd())}
	}
	in.Forks.Hold()
	if err := cmd.Start(); err != nil {
		in.Forks.Known(0)
		return nil, nil // an older kernel, a cgroup with others below: libcontainer knows another way
	}
	_ = theirs.Close()
	h := hearing{d: json.NewDecoder(io.LimitReader(ours, answerLimit))}
	for h.pid == 0 && h.next() {
	}
	_, waited := cmd.Process.Wait() // the first of two has told of the other, or failed
	in.Forks.Known(h.pid)
	// From here on processes of the container can hold the other up: nobody
	// else may have to wait for this.
	for h.said == nil && h.next() {
	}
	if h.said == nil && !h.ready {
		h.said = errors.New("the process ended before its program began")
	}
	if err = errors.Join(h.said, waited); err == nil {
		return os.FindProcess(h.pid)
	}
	if child, found := os.FindProcess(h.pid); h.pid > 0 && found == nil {
		_ = child.Kill()
		_, _ = child.Wait()
	}
	in.Forks.Gone(h.pid)
	return nil, fmt.Errorf("unable to start container process: %w", err)
}

// hearing is what the two processes say until the pipe closes for the program.
// Their words may come in any order.
type hearing struct {
	d     *json.Decoder
	pid   int // of the second
	ready bool
	said  error
}

// next hears one word more; it is false at the end.
func (h *hearing) next() bool {
	var m struct {
		Pid  int
		Type string
		Arg  struct{ Message string }
	}
	switch err := h.d.Decode(&m); {
	case errors.Is(err, io.EOF):
		return false
	case err != nil:
		h.said = err
		return false
	case m.Pid > 0:
		h.pid = m.Pid
	case m.Type == "procReady":
		h.ready = true
	default:
		h.said = errors.New(m.Arg.Message)
	}
	return true
}

// openGroups opens what a process writes itself to, in each hierarchy of
// version 1, and the folder of version 2 that it is born in.
func openGroups(cgroups map[string]string) (groups []*os.File, unified *os.File, ok bool) {
	seen := map[string]bool{}
	for controller, dir := range cgroups {
		if seen[dir] || dir == "" {
			continue
		}
		seen[dir] = true
		if controller == "" {
			f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
			if err != nil {
				return groups, nil, false
			}
			unified = f
			continue
		}
		f, err := os.OpenFile(dir+"/tasks", os.O_WRONLY, 0)
		if err != nil {
			return groups, unified, false
		}
		groups = append(groups, f)
	}
	return groups, unified, len(seen) > 0
}

// namespaces gives all kinds that a plain container has, its own or another's.
// A user namespace and a time namespace are never a plain container's own.
func namespaces() (flags uint64) {
	for kind, flag := range map[configs.NamespaceType]uint64{
		configs.NEWNS: unix.CLONE_NEWNS, configs.NEWUTS: unix.CLONE_NEWUTS, configs.NEWIPC: unix.CLONE_NEWIPC,
		configs.NEWNET: unix.CLONE_NEWNET, configs.NEWPID: unix.CLONE_NEWPID, configs.NEWCGROUP: unix.CLONE_NEWCGROUP,
	} {
		if configs.IsNamespaceSupported(kind) {
			flags |= flag
		}
	}
	return flags
}
