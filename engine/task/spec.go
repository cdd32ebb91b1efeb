package task

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// initTarget is where a container finds the small init it may run under.
const initTarget = "/sbin/docker-init"

// defaultPath is moby's default for a container without a PATH.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// spec writes the OCI runtime specification of a container's first process.
func (r *Runtime) spec(b container.Bundle) (*specs.Spec, error) {
	c := b.Container
	s := &specs.Spec{
		Version:     specs.Version,
		Root:        &specs.Root{Path: b.Root, Readonly: c.Spec.ReadonlyRoot},
		Hostname:    c.Spec.Hostname,
		Domainname:  c.Spec.Domainname,
		Annotations: c.Spec.Annotations,
		Linux:       &specs.Linux{CgroupsPath: r.cgroupPath(c), RootfsPropagation: "rprivate", MountLabel: c.MountLabel},
	}
	if c.Spec.UTSMode == "host" {
		s.Hostname, s.Domainname = "", ""
	}
	var err error
	if s.Process, err = r.firstProcess(b); err != nil {
		return nil, err
	}
	r.namespaces(s, b)
	if err := r.mounts(s, b); err != nil {
		return nil, err
	}
	if s.Linux.Resources, err = r.resources(c); err != nil {
		return nil, err
	}
	if err := r.devices(s, c); err != nil {
		return nil, err
	}
	r.sysctls(s, b)
	if !c.Spec.Privileged {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = maskedPaths, readonlyPaths
	}
	if c.Spec.MaskedPaths != nil {
		s.Linux.MaskedPaths = c.Spec.MaskedPaths
	}
	if c.Spec.ReadonlyPaths != nil {
		s.Linux.ReadonlyPaths = c.Spec.ReadonlyPaths
	}
	s.Linux.Seccomp, err = r.seccomp(s, c)
	return s, err
}

func (r *Runtime) firstProcess(b container.Bundle) (*specs.Process, error) {
	c := b.Container
	p, err := r.process(b.Root, c, processSpec{
		args: append([]string{c.Path}, c.Args...),
		env:  c.Spec.Env, user: c.Spec.User, cwd: c.Spec.WorkingDir, tty: c.Spec.TTY,
		privileged: c.Spec.Privileged, size: c.Spec.ConsoleSize,
	})
	if err != nil {
		return nil, err
	}
	if r.wantsInit(c) {
		p.Args = append([]string{initTarget, "--"}, p.Args...)
	}
	return p, nil
}

func (r *Runtime) wantsInit(c container.Container) bool {
	return c.Spec.Init != nil && *c.Spec.Init && c.Spec.PidMode == ""
}

func (r *Runtime) cgroupPath(c container.Container) string {
	parent := c.Spec.Resources.CgroupParent
	if parent == "" {
		parent = r.o.CgroupParent
	}
	if r.o.Systemd {
		return parent + ":" + r.o.ScopePrefix + ":" + string(c.ID)
	}
	return filepath.Join("/", parent, string(c.ID))
}

func (r *Runtime) namespaces(s *specs.Spec, b container.Bundle) {
	c := b.Container
	add := func(kind specs.LinuxNamespaceType, path string) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
	}
	add(specs.MountNamespace, "")
	switch {
	case b.NetNS != "":
		add(specs.NetworkNamespace, b.NetNS)
	case b.Namespace["network"] != "":
		add(specs.NetworkNamespace, b.Namespace["network"])
	}
	if p := b.Namespace["pid"]; p != "" || c.Spec.PidMode == "" {
		add(specs.PIDNamespace, p)
	}
	if p := b.Namespace["ipc"]; p != "" || c.Spec.IpcMode != "host" {
		add(specs.IPCNamespace, p)
	}
	if c.Spec.UTSMode != "host" {
		add(specs.UTSNamespace, "")
	}
	if c.Spec.CgroupnsMode == "private" || c.Spec.CgroupnsMode == "" && r.facts.cgroup2 {
		add(specs.CgroupNamespace, "")
	}
}

// moby's lists (runtime-spec leaves them to the engine).
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

func (r *Runtime) mounts(s *specs.Spec, b container.Bundle) error {
	c := b.Container
	ro := "ro"
	if c.Spec.Privileged {
		ro = "rw"
	}
	standard := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", ro}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{ro, "nosuid", "noexec", "nodev"}},
	}
	ipc := c.Spec.IpcMode
	switch {
	case ipc == "host":
		standard = append(standard,
			specs.Mount{Destination: "/dev/mqueue", Type: "bind", Source: "/dev/mqueue", Options: []string{"bind", "nosuid", "noexec", "nodev"}},
			specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm", Options: []string{"bind", "nosuid", "noexec", "nodev"}})
	case ipc == "none":
		standard = append(standard, specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}})
	case b.Namespace["ipc"] != "":
		// Its shared memory is among the bundle's mounts.
		standard = append(standard, specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}})
	default:
		size := c.Spec.ShmSize
		if size == 0 {
			size = 64 << 20
		}
		standard = append(standard,
			specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", size)}})
	}
	// A mount that the person asked for replaces the standard one of its place.
	for _, m := range standard {
		if !covered(b.Mounts, m.Destination) {
			s.Mounts = append(s.Mounts, m)
		}
	}
	sorted := slices.Clone(b.Mounts)
	slices.SortStableFunc(sorted, func(a, b container.BundleMount) int {
		return strings.Count(filepath.Clean(a.Target), "/") - strings.Count(filepath.Clean(b.Target), "/")
	})
	for _, m := range sorted {
		if slices.ContainsFunc(m.Options, func(o string) bool { return strings.HasSuffix(o, "shared") || strings.HasSuffix(o, "slave") }) {
			// Propagation reaches a container only through a root that lets it pass.
			s.Linux.RootfsPropagation = widest(s.Linux.RootfsPropagation, m.Options)
		}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: m.Target, Type: m.Type, Source: m.Source, Options: m.Options})
	}
	if r.wantsInit(c) {
		if r.o.InitPath == "" {
			return fault.Unsupportedf("no init program is installed on this host: --init needs tini or docker-init (Debian: apt-get install tini)")
		}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: initTarget, Type: "bind", Source: r.o.InitPath, Options: []string{"bind", "ro"}})
	}
	return nil
}

func widest(now string, options []string) string {
	for _, o := range options {
		if strings.HasSuffix(o, "shared") {
			return "shared"
		}
	}
	if now == "shared" {
		return now
	}
	return "rslave"
}

func (r *Runtime) sysctls(s *specs.Spec, b container.Bundle) {
	set := map[string]string{}
	ownNetwork := b.NetNS != "" || b.Namespace["network"] != ""
	if ownNetwork && b.Namespace["network"] == "" {
		// As moby: ports below 1024 and ping need no capability inside.
		set["net.ipv4.ip_unprivileged_port_start"] = "0"
		set["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	for k, v := range b.Container.Spec.Sysctls {
		set[k] = v
	}
	s.Linux.Sysctl = set
}

func (r *Runtime) seccomp(s *specs.Spec, c container.Container) (*specs.LinuxSeccomp, error) {
	asked := ""
	for _, o := range c.Spec.SecurityOpt {
		if v, ok := option(o, "seccomp"); ok {
			asked = v
		}
	}
	profile := asked
	if profile == "" && !c.Spec.Privileged {
		profile = r.o.SeccompProfile
	}
	switch profile {
	case "unconfined":
		return nil, nil
	case "", "builtin", "default":
		if c.Spec.Privileged || !r.facts.seccomp {
			return nil, nil
		}
		return r.defaultSeccomp(s)
	}
	if !r.facts.seccomp {
		if asked == "" {
			return nil, nil
		}
		return nil, fault.Invalidf("seccomp is not enabled in your kernel, cannot run a custom seccomp profile")
	}
	p, err := seccomp.LoadProfile(profile, s)
	if err != nil {
		return nil, fault.Invalidf("seccomp profile: %w", err)
	}
	return p, nil
}

// defaultSeccomp builds moby's profile once for each set of capabilities.
func (r *Runtime) defaultSeccomp(s *specs.Spec) (*specs.LinuxSeccomp, error) {
	key := ""
	if s.Process.Capabilities != nil {
		key = strings.Join(s.Process.Capabilities.Bounding, ",")
	}
	if p, ok := r.profiles.Load(key); ok {
		return p.(*specs.LinuxSeccomp), nil
	}
	p, err := seccomp.GetDefaultProfile(s)
	if err != nil {
		return nil, err
	}
	r.profiles.Store(key, p)
	return p, nil
}

// option reads "name=value" or "name:value" of a security option.
func option(s, name string) (string, bool) {
	if v, ok := strings.CutPrefix(s, name+"="); ok {
		return v, true
	}
	return strings.CutPrefix(s, name+":")
}

func (r *Runtime) clamp(soft, hard uint64, kind string) (uint64, uint64) {
	limit, ok := r.facts.rlimits["RLIMIT_"+kind]
	if !ok || r.facts.sysResource || hard <= limit {
		return soft, hard
	}
	r.log.Warn("limit clamped: CAP_SYS_RESOURCE is missing", "limit", kind, "wanted", hard, "given", limit)
	return min(soft, limit), limit
}
