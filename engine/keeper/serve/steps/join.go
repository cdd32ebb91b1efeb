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
	if err := cmd.Start(); err != nil {
		return nil, nil // an older kernel, a cgroup with others below: libcontainer knows another way
	}
	_ = theirs.Close()
	pid, err := hear(ours)
	state, waited := cmd.Process.Wait() // the first of two
	if err == nil && waited == nil && !state.Success() {
		err = fmt.Errorf("join: %s", state)
	}
	if pid == 0 {
		return nil, fmt.Errorf("unable to start container process: %w", errors.Join(err, waited))
	}
	child, found := os.FindProcess(pid)
	if err = errors.Join(err, found); err != nil {
		if found == nil {
			_ = child.Kill()
			_, _ = child.Wait()
		}
		return nil, fmt.Errorf("unable to start container process: %w", err)
	}
	return child, nil
}

// hear reads what the two processes say until the pipe closes for the program.
func hear(from io.Reader) (pid int, err error) {
	ready := false
	for d := json.NewDecoder(io.LimitReader(from, answerLimit)); ; {
		var m struct {
			Pid  int
			Type string
			Arg  struct{ Message string }
		}
		switch err := d.Decode(&m); {
		case errors.Is(err, io.EOF) && ready && pid > 0:
			return pid, nil
		case errors.Is(err, io.EOF):
			return pid, errors.New("the process ended before its program began")
		case err != nil:
			return pid, err
		case m.Pid > 0:
			pid = m.Pid
		case m.Type == "procReady":
			ready = true
		default:
			return pid, errors.New(m.Arg.Message)
		}
	}
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
