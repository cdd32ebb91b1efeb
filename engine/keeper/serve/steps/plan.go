//go:build cgo

// Package steps writes down what a container's process does between its
// namespaces and its program, and walks that in C: libcontainer's own way
// through it starts a Go runtime in every container and every exec. It must
// know no more than libcontainer's configuration says, and leaves to
// libcontainer whatever is not plain.
package steps

/*
#cgo CFLAGS: -O2 -Wall -Wextra
#cgo LDFLAGS: -Wl,--wrap=nsexec
#include "steps.h"
*/
import "C"

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// errNotPlain says that libcontainer is to walk these steps itself.
var errNotPlain = errors.New("not plain")

// plan is steps as they are walked: see steps.h.
type plan struct{ b []byte }

func (p *plan) add(op uint32, numbers []uint64, texts ...string) {
	size := 16 + 8*len(numbers)
	for _, t := range texts {
		size += len(t) + 1
	}
	size = (size + 7) &^ 7
	start := len(p.b)
	for _, n := range []uint32{op, uint32(len(numbers)), uint32(len(texts)), uint32(size)} {
		p.b = binary.NativeEndian.AppendUint32(p.b, n)
	}
	for _, n := range numbers {
		p.b = binary.NativeEndian.AppendUint64(p.b, n)
	}
	for _, t := range texts {
		p.b = append(append(p.b, t...), 0)
	}
	p.b = append(p.b, make([]byte, start+size-len(p.b))...)
}

func num(n ...uint64) []uint64 { return n }

func truth(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// File gives the plan of a process as a sealed file that it is to inherit
// right after its filter, or nil where the process is not plain: then
// libcontainer walks its steps. Closing it is the caller's.
func File(c *configs.Config, p *libcontainer.Process, id string) (*os.File, error) {
	if !able() {
		return nil, nil
	}
	return file(c, p, id, nil)
}

func file(c *configs.Config, p *libcontainer.Process, id string, j *joining) (*os.File, error) {
	b, err := write(c, p, id, j)
	if err != nil || len(b) > C.PLAN_LIMIT {
		return nil, nil // libcontainer says what is wrong, if anything is
	}
	fd, err := unix.MemfdCreate("container-steps", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "container-steps")
	if _, err := f.Write(b); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE); err != nil {
		return nil, errors.Join(os.NewSyscallError("fcntl", err), f.Close())
	}
	return f, nil
}

// able tells whether the kernel has what walk.c calls (Linux 5.12), and lets us.
var able = sync.OnceValue(func() bool {
	fd, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	if fd, err = unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}) == nil
})

// write gives a plan, or errNotPlain. A process that joins by itself has
// nobody at the other end who answers; j is nil for others.
func write(c *configs.Config, lp *libcontainer.Process, id string, j *joining) ([]byte, error) {
	if !plainConfig(c) || !plainProcess(c, lp) {
		return nil, errNotPlain
	}
	p := &plan{b: []byte(C.PLAN_MAGIC)}
	console := 0
	if j != nil {
		p.join(c, j)
		console = j.console
	}
	if !c.NoNewKeyring {
		p.add(C.STEP_KEYRING, num(truth(lp.Init), 0x80000), "_ses."+id)
	}
	p.add(C.STEP_PROC, nil)
	if lp.Init && len(c.Networks) > 0 {
		p.add(C.STEP_LOOPBACK, nil)
	}
	if lp.Init {
		if err := p.root(c); err != nil {
			return nil, err
		}
		p.finishRoot(c, lp)
	} else {
		p.terminal(lp, console)
	}
	noNew := c.NoNewPrivileges
	if lp.NoNewPrivileges != nil {
		noNew = *lp.NoNewPrivileges
	}
	if noNew {
		p.add(C.STEP_NO_NEW_PRIVILEGES, nil)
	}
	if !lp.Init && c.Umask != nil {
		p.add(C.STEP_UMASK, num(uint64(*c.Umask)))
	}
	if j != nil {
		p.limits(c, lp)
	}
	p.add(C.STEP_READY, nil)
	// Loading a filter is a privilege where the process may gain some; else
	// it comes as late as can be.
	if c.Seccomp != nil && !noNew {
		p.add(C.STEP_FILTER, nil)
	}
	if err := p.privileges(c, lp); err != nil {
		return nil, err
	}
	if lp.Init {
		p.add(C.STEP_PARENT, nil)
	} else {
		p.appArmor(c, lp)
	}
	p.add(C.STEP_ARGUMENTS, num(truth(lp.Init)), lp.Args...)
	env, search, err := environment(lp.Env)
	if err != nil {
		return nil, err
	}
	p.add(C.STEP_ENVIRONMENT, nil, append([]string{search}, env...)...)
	p.add(C.STEP_LOOK_UP, nil)
	if c.Seccomp != nil && noNew {
		p.add(C.STEP_FILTER, nil)
	}
	p.add(C.STEP_FINISH, nil)
	p.b = append(p.b, make([]byte, 8)...) // ends in zero, whatever the last step is
	return p.b, nil
}

// limits are of the process, where it has any, else of the container.
func (p *plan) limits(c *configs.Config, lp *libcontainer.Process) {
	limits := c.Rlimits
	if len(lp.Rlimits) > 0 {
		limits = lp.Rlimits
	}
	for _, l := range limits {
		p.add(C.STEP_LIMIT, num(uint64(l.Type), l.Soft, l.Hard))
	}
}

func plainConfig(c *configs.Config) bool {
	for _, ns := range c.Namespaces {
		if ns.Type == configs.NEWUSER || ns.Type == configs.NEWTIME {
			return false
		}
	}
	hooks := 0
	for _, h := range c.Hooks {
		hooks += len(h)
	}
	return c.Namespaces.Contains(configs.NEWNS) && !c.NoPivotRoot && c.ParentDeathSignal == 0 && len(c.NetDevices) == 0 && c.MountLabel == "" &&
		c.ProcessLabel == "" && !slices.ContainsFunc(c.Networks, func(n *configs.Network) bool { return n.Type != "loopback" }) && len(c.Routes) == 0 && hooks == 0 && c.IntelRdt == nil && c.MemoryPolicy == nil && !c.RootlessEUID &&
		!c.RootlessCgroups && c.Scheduler == nil && c.Personality == nil && c.IOPriority == nil && c.ExecCPUAffinity == nil &&
		(c.Seccomp == nil || c.Seccomp.ListenerPath == "")
}

func plainProcess(c *configs.Config, p *libcontainer.Process) bool {
	text := append(append([]string{p.Cwd, c.Rootfs, c.Hostname, c.Domainname}, p.Args...), p.Env...)
	return p.PidfdSocket == nil && p.Label == "" && p.Scheduler == nil && p.IOPriority == nil && p.CPUAffinity == nil &&
		len(p.AdditionalGroups) < 1024 && len(p.Args) > 0 && p.UID >= 0 && p.GID >= 0 &&
		!slices.ContainsFunc(text, func(s string) bool { return strings.IndexByte(s, 0) >= 0 })
}

// root is what is done before the process is in its root, and the way there.
func (p *plan) root(c *configs.Config) error {
	propagation := c.RootPropagation
	switch propagation &^ unix.MS_REC {
	case 0:
		propagation = unix.MS_SLAVE | unix.MS_REC
	case unix.MS_SLAVE, unix.MS_PRIVATE:
	default:
		return errNotPlain
	}
	p.add(C.STEP_ROOT, num(uint64(propagation)), c.Rootfs)
	for _, m := range c.Mounts {
		if err := p.mount(c, m); err != nil {
			return err
		}
	}
	// A folder of the host in the place of /dev stays as it is.
	own := !slices.ContainsFunc(c.Mounts, func(m *configs.Mount) bool { return m.Device == "bind" && path.Clean("/"+m.Destination) == "/dev" })
	if own {
		for _, d := range c.Devices {
			if err := p.device(d); err != nil {
				return err
			}
		}
		p.add(C.STEP_LINK, num(1), "pts/ptmx", "/dev/ptmx")
		p.add(C.STEP_LINK, num(0), "/proc/self/fd", "/dev/fd")
		for i, name := range []string{"stdin", "stdout", "stderr"} {
			p.add(C.STEP_LINK, num(0), "/proc/self/fd/"+string('0'+rune(i)), "/dev/"+name)
		}
		if _, err := os.Stat("/proc/kcore"); !errors.Is(err, fs.ErrNotExist) {
			p.add(C.STEP_LINK, num(0), "/proc/kcore", "/dev/core")
		}
	}
	p.add(C.STEP_HOOKS, nil)
	p.add(C.STEP_PIVOT, nil)
	if own {
		p.add(C.STEP_NULL, nil)
	}
	return nil
}

// finishRoot is what is done inside of it.
func (p *plan) finishRoot(c *configs.Config, lp *libcontainer.Process) {
	if lp.Cwd != "" {
		p.add(C.STEP_FOLDER, nil, lp.Cwd)
	}
	p.terminal(lp, 0)
	for _, m := range c.Mounts {
		if m.Flags&unix.MS_RDONLY != 0 && (m.Device == "tmpfs" || path.Clean("/"+m.Destination) == "/dev") {
			p.add(C.STEP_REMOUNT, num(uint64(m.Flags)), m.Destination)
		}
	}
	if c.Readonlyfs {
		p.add(C.STEP_REMOUNT, num(0), "/")
	}
	umask := uint64(0o022)
	if c.Umask != nil {
		umask = uint64(*c.Umask)
	}
	p.add(C.STEP_UMASK, num(umask))
	if c.Hostname != "" {
		p.add(C.STEP_HOSTNAME, nil, c.Hostname)
	}
	if c.Domainname != "" {
		p.add(C.STEP_DOMAIN, nil, c.Domainname)
	}
	p.appArmor(c, lp)
	for _, key := range slices.Sorted(maps.Keys(c.Sysctl)) {
		p.add(C.STEP_SYSCTL, nil, "sys/"+strings.ReplaceAll(key, ".", "/"), c.Sysctl[key])
	}
	for _, r := range c.ReadonlyPaths {
		p.add(C.STEP_READONLY, nil, r)
	}
	masked := map[string]bool{}
	for _, m := range c.MaskPaths {
		if clean := path.Clean("/" + m); !masked[clean] {
			masked[clean] = true
			p.add(C.STEP_MASK, nil, m)
		}
	}
}

// terminal goes to a descriptor, or with 0 to that which libcontainer names.
func (p *plan) terminal(lp *libcontainer.Process, descriptor int) {
	if lp.ConsoleSocket != nil {
		p.add(C.STEP_TERMINAL, num(uint64(descriptor), uint64(lp.ConsoleWidth), uint64(lp.ConsoleHeight), truth(lp.Init)))
	}
}

func (p *plan) appArmor(c *configs.Config, lp *libcontainer.Process) {
	profile := c.AppArmorProfile
	if lp.AppArmorProfile != "" {
		profile = lp.AppArmorProfile
	}
	if profile != "" {
		p.add(C.STEP_APPARMOR, nil, "exec "+profile)
	}
}

// attributes translates flags of mount(2); known says whether it knows all.
func attributes(flags int) (attr uint64, known bool) {
	for _, f := range []struct {
		ms   int
		attr uint64
	}{
		{unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY}, {unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID}, {unix.MS_NODEV, unix.MOUNT_ATTR_NODEV},
		{unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC}, {unix.MS_STRICTATIME, unix.MOUNT_ATTR_STRICTATIME},
	} {
		if flags&f.ms != 0 {
			attr |= f.attr
			flags &^= f.ms
		}
	}
	return attr, flags == 0
}

func (p *plan) mount(c *configs.Config, m *configs.Mount) error {
	at := path.Clean("/" + m.Destination)
	inProc := at == "/proc" || strings.HasPrefix(at, "/proc/")
	if m.Extensions != 0 || m.IDMapping != nil || m.RecAttr != nil || at == "/" || inProc && (m.Device != "proc" || at != "/proc") || !strings.HasPrefix(m.Destination, "/") {
		return errNotPlain
	}
	propagation := 0
	if len(m.PropagationFlags) > 0 {
		propagation = m.PropagationFlags[0]
	}
	if len(m.PropagationFlags) > 1 || propagation != 0 && propagation&^unix.MS_REC != unix.MS_PRIVATE {
		return errNotPlain
	}
	if m.Device == "bind" || m.IsBind() {
		attr, known := attributes(m.Flags &^ (unix.MS_BIND | unix.MS_REC))
		if !known || m.Device != "bind" || attr&unix.MOUNT_ATTR_STRICTATIME != 0 || m.ClearedFlags != 0 || m.Data != "" {
			return errNotPlain
		}
		p.add(C.STEP_BIND, num(truth(m.Flags&unix.MS_REC != 0), truth(attr != 0), attr, uint64(propagation&^unix.MS_REC), truth(propagation&unix.MS_REC != 0)), m.Source, m.Destination)
		return nil
	}
	if propagation != 0 {
		return errNotPlain
	}
	flags, options := m.Flags, m.Data
	attr, known := attributes(flags)
	if !known {
		return errNotPlain
	}
	kind := m.Device
	switch kind {
	case "tmpfs":
		attr &^= unix.MOUNT_ATTR_RDONLY // until it is filled
	case "proc", "sysfs", "devpts", "mqueue":
	case "cgroup":
		if !cgroups.IsCgroup2UnifiedMode() {
			return p.cgroup1(c, m, attr)
		}
		kind = "cgroup2"
	default:
		return errNotPlain
	}
	if attr&unix.MOUNT_ATTR_RDONLY != 0 {
		if at == "/dev" {
			return errNotPlain
		}
		options = strings.TrimPrefix(options+",ro", ",") // of the file system too, as mount(2) has it
	}
	p.add(C.STEP_FRESH, num(attr), kind, m.Source, m.Destination, options)
	return nil
}

// cgroup1 shows each hierarchy of version 1 from the container's own place in it.
func (p *plan) cgroup1(c *configs.Config, m *configs.Mount, attr uint64) error {
	if c.Namespaces.Contains(configs.NEWCGROUP) {
		return errNotPlain
	}
	mounts, err := cgroups.GetCgroupMounts(false)
	if err != nil {
		return err
	}
	p.add(C.STEP_FRESH, num(unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC), "tmpfs", "tmpfs", m.Destination, "mode=755")
	for _, mm := range mounts {
		if mm.Root != "/" || len(mm.Subsystems) == 0 {
			return errNotPlain
		}
		base := filepath.Base(mm.Mountpoint)
		p.add(C.STEP_CGROUP, num(attr), mm.Mountpoint, mm.Subsystems[0], filepath.Join(m.Destination, base))
		if strings.Contains(base, ",") {
			for one := range strings.SplitSeq(base, ",") {
				p.add(C.STEP_LINK, num(0), base, filepath.Join(m.Destination, one))
			}
		}
	}
	return nil
}

func (p *plan) device(d *devices.Device) error {
	clean := path.Clean("/" + d.Path)
	if d.Path == "" || clean == "/dev/ptmx" {
		return nil
	}
	kinds := map[devices.Type]uint64{devices.BlockDevice: unix.S_IFBLK, devices.CharDevice: unix.S_IFCHR, devices.FifoDevice: unix.S_IFIFO}
	dev, err := d.Mkdev()
	if err != nil || kinds[d.Type] == 0 {
		return errNotPlain
	}
	p.add(C.STEP_DEVICE, num(kinds[d.Type]|uint64(d.FileMode), dev, uint64(d.Uid), uint64(d.Gid)), clean)
	return nil
}

// numbers of capabilities by their names, of those that the kernel has.
var numbers = sync.OnceValues(func() (map[string]uint, error) {
	list, err := capability.ListSupported()
	known := map[string]uint{}
	for _, c := range list {
		known["CAP_"+strings.ToUpper(c.String())] = uint(c)
	}
	return known, err
})

func bits(known map[string]uint, names []string) (set uint64) {
	for _, n := range names {
		if c, ok := known[n]; ok { // others are ignored, as libcontainer does
			set |= 1 << c
		}
	}
	return set
}

func (p *plan) privileges(c *configs.Config, lp *libcontainer.Process) error {
	known, err := numbers()
	if err != nil {
		return err
	}
	caps := c.Capabilities
	if lp.Capabilities != nil {
		caps = lp.Capabilities
	}
	n := num(uint64(lp.UID), uint64(lp.GID), truth(caps != nil), 0, 0, 0, 0, 0, uint64(len(lp.AdditionalGroups)))
	if caps != nil {
		for i, set := range [][]string{caps.Bounding, caps.Effective, caps.Permitted, caps.Inheritable, caps.Ambient} {
			n[3+i] = bits(known, set)
		}
	}
	for _, g := range lp.AdditionalGroups {
		n = append(n, uint64(g))
	}
	p.add(C.STEP_PRIVILEGES, n, lp.Cwd)
	return nil
}

// environment keeps the last of each variable, in order, and gives PATH by
// itself. Where HOME is not set it is the container's passwd that says it.
func environment(env []string) (out []string, search string, err error) {
	seen := map[string]bool{}
	for _, e := range slices.Backward(env) {
		name, value, ok := strings.Cut(e, "=")
		if !ok || name == "" || name == "HOME" && value == "" {
			return nil, "", errNotPlain
		}
		if seen[name] {
			continue
		}
		seen[name] = true
		if name == "PATH" {
			search = value
		}
		out = append(out, e)
	}
	slices.Reverse(out)
	if !seen["HOME"] {
		return nil, "", errNotPlain
	}
	return out, search, nil
}
