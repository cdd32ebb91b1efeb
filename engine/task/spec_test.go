package task

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

var update = flag.Bool("update", false, "write the golden files")

// fixed is a Runtime on a host of which everything is known.
func fixed(t testing.TB, change func(*Runtime)) *Runtime {
	t.Helper()
	r := &Runtime{o: Options{CgroupParent: "/berth", ScopePrefix: "berth", InitPath: "/usr/bin/tini", Dir: t.TempDir()}, log: slog.New(slog.DiscardHandler)}
	r.facts = facts{
		cgroup2: true, seccomp: true, swapLimit: true, oomScore: -10, cpus: 2,
		capabilities: append(slices.Clone(defaultCapabilities), "CAP_SYS_ADMIN", "CAP_NET_ADMIN"),
		rlimits:      map[string]uint64{"RLIMIT_NOFILE": 1000},
	}
	if change != nil {
		change(r)
	}
	return r
}

// root makes a root with people in it.
func root(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"passwd": "root:x:0:0::/root:/bin/sh\nbob:x:1000:1001::/home/bob:/bin/sh\n",
		"group":  "root:x:0:\nbob:x:1001:\nwheel:x:10:bob\naudio:x:29:\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func bundle(t testing.TB, change func(*container.Bundle)) container.Bundle {
	b := container.Bundle{Root: root(t), NetNS: "/run/netns/x", Container: container.Container{ID: "0123456789ab", Path: "prog", Args: []string{"arg"}}}
	b.Container.Spec.Hostname = "host"
	if change != nil {
		change(&b)
	}
	return b
}

func TestThePlainSpecificationIsAsWritten(t *testing.T) {
	b := bundle(t, nil)
	s, err := fixed(t, nil).spec(b)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Linux.Seccomp.Syscalls) < 5 {
		t.Errorf("the profile has %d rules", len(s.Linux.Seccomp.Syscalls))
	}
	s.Linux.Seccomp = nil
	s.Root.Path = "ROOT"
	got, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/plain.json"
	if *update {
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(bytes.TrimSpace(want)), string(got)); d != "" {
		t.Error(d)
	}
}

// spot is one place of a specification, by what it tells.
type spot func(*specs.Spec) any

func spaces(s *specs.Spec) any {
	var list []string
	for _, n := range s.Linux.Namespaces {
		list = append(list, strings.TrimSuffix(string(n.Type)+" "+n.Path, " "))
	}
	slices.Sort(list)
	return list
}

func mountOptions(at string) spot {
	return func(s *specs.Spec) any {
		var found []string
		for _, m := range s.Mounts {
			if m.Destination == at {
				found = append(found, m.Type+":"+strings.Join(m.Options, ","))
			}
		}
		return found
	}
}

func env(s *specs.Spec) any { return s.Process.Env }

func TestWhatIsAskedForIsInTheSpecification(t *testing.T) {
	const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	yes := true
	v1 := func(r *Runtime) { r.facts.cgroup2 = false }
	ns := func(extra ...string) []string {
		list := append([]string{"mount"}, extra...)
		slices.Sort(list)
		return list
	}
	const net = "network /run/netns/x"
	for name, c := range map[string]struct {
		host func(*Runtime)
		ask  func(*container.Bundle)
		at   spot
		want any
	}{
		"env has a path, the host's name and a home": {at: env, want: []string{path, "HOSTNAME=host", "HOME=/root"}},
		"env is the person's": {ask: func(b *container.Bundle) {
			b.Container.Spec.Env = []string{"PATH=/x", "A=b=c", "HOME=/y", "HOSTNAME", "EMPTY="}
		}, at: env, want: []string{"PATH=/x", "A=b=c", "HOME=/y", "EMPTY="}},
		"a terminal has a kind": {ask: func(b *container.Bundle) { b.Container.Spec.TTY = true; b.Container.Spec.User = "bob" }, at: env, want: []string{path, "HOSTNAME=host", "TERM=xterm", "HOME=/home/bob"}},
		"a user is found by name": {ask: func(b *container.Bundle) { b.Container.Spec.User = "bob" }, at: func(s *specs.Spec) any { return s.Process.User },
			want: specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{1001, 10}}},
		"a user and groups by number and name": {ask: func(b *container.Bundle) {
			b.Container.Spec.User, b.Container.Spec.GroupAdd = "7:audio", []string{"wheel", "99"}
		}, at: func(s *specs.Spec) any { return s.Process.User }, want: specs.User{UID: 7, GID: 29, AdditionalGids: []uint32{29, 10, 99}}},
		"init runs the program": {ask: func(b *container.Bundle) { b.Container.Spec.Init = &yes }, at: func(s *specs.Spec) any { return s.Process.Args },
			want: []string{"/sbin/docker-init", "--", "prog", "arg"}},
		"no init in another's pid namespace": {ask: func(b *container.Bundle) {
			b.Container.Spec.Init, b.Container.Spec.PidMode = &yes, "host"
		}, at: func(s *specs.Spec) any { return s.Process.Args }, want: []string{"prog", "arg"}},

		"namespaces on v2":      {at: spaces, want: ns("pid", "ipc", "uts", "cgroup", net)},
		"namespaces on v1":      {host: v1, at: spaces, want: ns("pid", "ipc", "uts", net)},
		"privileged on v2":      {ask: func(b *container.Bundle) { b.Container.Spec.Privileged = true }, at: spaces, want: ns("pid", "ipc", "uts", "cgroup", net)},
		"private cgroups on v1": {host: v1, ask: func(b *container.Bundle) { b.Container.Spec.CgroupnsMode = "private" }, at: spaces, want: ns("pid", "ipc", "uts", "cgroup", net)},
		"all of the host's": {ask: func(b *container.Bundle) {
			b.NetNS = ""
			sp := &b.Container.Spec
			sp.PidMode, sp.IpcMode, sp.UTSMode, sp.CgroupnsMode = "host", "host", "host", "host"
		}, at: spaces, want: ns()},
		"those of another": {ask: func(b *container.Bundle) {
			b.NetNS = ""
			b.Namespace = map[string]string{"network": "/proc/5/ns/net", "pid": "/proc/5/ns/pid", "ipc": "/proc/5/ns/ipc"}
			sp := &b.Container.Spec
			sp.NetworkMode, sp.PidMode, sp.IpcMode = "container:a", "container:a", "container:a"
		}, at: spaces, want: ns("cgroup", "uts", "ipc /proc/5/ns/ipc", "network /proc/5/ns/net", "pid /proc/5/ns/pid")},
		"the host's uts keeps its name": {ask: func(b *container.Bundle) { b.Container.Spec.UTSMode = "host" }, at: func(s *specs.Spec) any { return s.Hostname }, want: ""},

		"shared memory has a size":       {ask: func(b *container.Bundle) { b.Container.Spec.ShmSize = 1 << 20 }, at: mountOptions("/dev/shm"), want: []string{"tmpfs:nosuid,noexec,nodev,mode=1777,size=1048576"}},
		"no shared memory with ipc none": {ask: func(b *container.Bundle) { b.Container.Spec.IpcMode = "none" }, at: mountOptions("/dev/shm"), want: []string(nil)},
		"a person's shared memory wins": {ask: func(b *container.Bundle) {
			b.Mounts = []container.BundleMount{{Source: "/x", Target: "/dev/shm/", Type: "bind", Options: []string{"rbind"}}}
		}, at: mountOptions("/dev/shm"), want: []string(nil)},
		"a person's /dev hides the standard ones in it": {ask: func(b *container.Bundle) {
			b.Mounts = []container.BundleMount{{Source: "/x", Target: "/dev", Type: "bind", Options: []string{"rbind"}}}
		}, at: func(s *specs.Spec) any {
			var under []string
			for _, m := range s.Mounts {
				if strings.HasPrefix(m.Destination, "/dev") {
					under = append(under, m.Destination)
				}
			}
			return under
		}, want: []string{"/dev"}},
		"mounts are made from the top down": {ask: func(b *container.Bundle) {
			b.Mounts = []container.BundleMount{{Target: "/a/b/c", Type: "bind"}, {Target: "/a", Type: "bind"}, {Target: "/a/b", Type: "tmpfs"}}
		}, at: func(s *specs.Spec) any {
			var under []string
			for _, m := range s.Mounts[len(s.Mounts)-3:] {
				under = append(under, m.Destination)
			}
			return under
		}, want: []string{"/a", "/a/b", "/a/b/c"}},
		"sysfs is read-only":         {at: mountOptions("/sys"), want: []string{"sysfs:nosuid,noexec,nodev,ro"}},
		"sysfs is writable if asked": {ask: func(b *container.Bundle) { b.Container.Spec.Privileged = true }, at: mountOptions("/sys"), want: []string{"sysfs:nosuid,noexec,nodev,rw"}},
		"cgroups are read-only":      {at: mountOptions("/sys/fs/cgroup"), want: []string{"cgroup:ro,nosuid,noexec,nodev"}},
		"propagation widens the root": {ask: func(b *container.Bundle) {
			b.Mounts = []container.BundleMount{{Target: "/a", Type: "bind", Options: []string{"rbind", "rshared"}}}
		}, at: func(s *specs.Spec) any { return s.Linux.RootfsPropagation }, want: "shared"},

		"capabilities are added and dropped": {ask: func(b *container.Bundle) {
			b.Container.Spec.CapAdd, b.Container.Spec.CapDrop = []string{"net_admin"}, []string{"ALL"}
		}, at: func(s *specs.Spec) any { return *s.Process.Capabilities }, want: specs.LinuxCapabilities{Bounding: []string{"CAP_NET_ADMIN"}, Effective: []string{"CAP_NET_ADMIN"}, Permitted: []string{"CAP_NET_ADMIN"}}},
		"all but one": {ask: func(b *container.Bundle) {
			b.Container.Spec.CapAdd, b.Container.Spec.CapDrop = []string{"ALL"}, []string{"CAP_SYS_ADMIN"}
		}, at: func(s *specs.Spec) any {
			return []bool{slices.Contains(s.Process.Capabilities.Bounding, "CAP_SYS_ADMIN"), slices.Contains(s.Process.Capabilities.Bounding, "CAP_NET_ADMIN")}
		}, want: []bool{false, true}},
		"no new privileges":         {ask: func(b *container.Bundle) { b.Container.Spec.SecurityOpt = []string{"no-new-privileges"} }, at: func(s *specs.Spec) any { return s.Process.NoNewPrivileges }, want: true},
		"no new privileges is off":  {host: func(r *Runtime) { r.o.NoNewPrivileges = true }, ask: func(b *container.Bundle) { b.Container.Spec.SecurityOpt = []string{"no-new-privileges=false"} }, at: func(s *specs.Spec) any { return s.Process.NoNewPrivileges }, want: false},
		"seccomp unconfined":        {ask: func(b *container.Bundle) { b.Container.Spec.SecurityOpt = []string{"seccomp=unconfined"} }, at: func(s *specs.Spec) any { return s.Linux.Seccomp == nil }, want: true},
		"privileged has no seccomp": {ask: func(b *container.Bundle) { b.Container.Spec.Privileged = true }, at: func(s *specs.Spec) any { return s.Linux.Seccomp == nil }, want: true},
		"privileged keeps its own seccomp": {ask: func(b *container.Bundle) {
			b.Container.Spec.Privileged, b.Container.Spec.SecurityOpt = true, []string{`seccomp={"defaultAction":"SCMP_ACT_ALLOW"}`}
		}, at: func(s *specs.Spec) any { return s.Linux.Seccomp.DefaultAction }, want: specs.ActAllow},
		"privileged masks nothing": {ask: func(b *container.Bundle) { b.Container.Spec.Privileged = true }, at: func(s *specs.Spec) any { return len(s.Linux.MaskedPaths) + len(s.Linux.ReadonlyPaths) }, want: 0},
		"masks are a person's": {ask: func(b *container.Bundle) {
			b.Container.Spec.MaskedPaths, b.Container.Spec.ReadonlyPaths = []string{}, []string{"/x"}
		}, at: func(s *specs.Spec) any { return append(slices.Clone(s.Linux.MaskedPaths), s.Linux.ReadonlyPaths...) }, want: []string{"/x"}},

		"limits are clamped to this process's": {ask: func(b *container.Bundle) {
			b.Container.Spec.Resources.Ulimits = []container.Ulimit{{Name: "nofile", Soft: 2000, Hard: -1}, {Name: "core", Soft: -1, Hard: -1}}
		}, at: func(s *specs.Spec) any { return s.Process.Rlimits }, want: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1000, Hard: 1000}, {Type: "RLIMIT_CORE", Soft: 1<<64 - 1, Hard: 1<<64 - 1}}},
		"limits rise with the capability": {host: func(r *Runtime) { r.facts.sysResource = true }, ask: func(b *container.Bundle) {
			b.Container.Spec.Resources.Ulimits = []container.Ulimit{{Name: "nofile", Soft: 2000, Hard: 3000}}
		}, at: func(s *specs.Spec) any { return s.Process.Rlimits }, want: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 2000, Hard: 3000}}},
		"the keeper's oom score is not the container's": {host: func(r *Runtime) { r.facts.oomScore = -500 }, at: func(s *specs.Spec) any { return *s.Process.OOMScoreAdj }, want: 0},
		"an oom score is clamped":                       {ask: func(b *container.Bundle) { b.Container.Spec.Resources.OomScoreAdj = -900 }, at: func(s *specs.Spec) any { return *s.Process.OOMScoreAdj }, want: -10},
		"cgroups lie below the parent":                  {at: func(s *specs.Spec) any { return s.Linux.CgroupsPath }, want: "/berth/0123456789ab"},
		"a person's parent cannot climb":                {ask: func(b *container.Bundle) { b.Container.Spec.Resources.CgroupParent = "../../x" }, at: func(s *specs.Spec) any { return s.Linux.CgroupsPath }, want: "/x/0123456789ab"},
		"systemd has slices": {host: func(r *Runtime) { r.o.Systemd, r.o.CgroupParent = true, "berth.slice" }, at: func(s *specs.Spec) any { return s.Linux.CgroupsPath },
			want: "berth.slice:berth:0123456789ab"},
		"low ports are free in an own network": {at: func(s *specs.Spec) any { return s.Linux.Sysctl }, want: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}},
		"but not in the host's":                {ask: func(b *container.Bundle) { b.NetNS = "" }, at: func(s *specs.Spec) any { return s.Linux.Sysctl }, want: map[string]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := fixed(t, c.host).spec(bundle(t, c.ask))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, c.at(s)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestWhatCannotBeIsRefusedByName(t *testing.T) {
	yes := true
	for name, c := range map[string]struct {
		host func(*Runtime)
		ask  func(*container.Bundle)
		text string
		is   error
	}{
		"an unknown user":            {ask: func(b *container.Bundle) { b.Container.Spec.User = "alice" }, text: "unable to find user alice: no matching entries in passwd file", is: fault.ErrInvalid},
		"an unknown group":           {ask: func(b *container.Bundle) { b.Container.Spec.User = "bob:nobody" }, text: "unable to find group nobody: no matching entries in group file", is: fault.ErrInvalid},
		"an unknown further group":   {ask: func(b *container.Bundle) { b.Container.Spec.GroupAdd = []string{"nobody"} }, text: "Unable to find group", is: fault.ErrInvalid},
		"a user number too large":    {ask: func(b *container.Bundle) { b.Container.Spec.User = "2147483648" }, text: "uids and gids must be in range", is: fault.ErrInvalid},
		"a user number below zero":   {ask: func(b *container.Bundle) { b.Container.Spec.User = "-1" }, text: "uids and gids must be in range", is: fault.ErrInvalid},
		"a user with a blank":        {ask: func(b *container.Bundle) { b.Container.Spec.User = " 1000" }, text: "unable to find user", is: fault.ErrInvalid},
		"a hexadecimal user":         {ask: func(b *container.Bundle) { b.Container.Spec.User = "0x0" }, text: "unable to find user", is: fault.ErrInvalid},
		"a capability nobody knows":  {ask: func(b *container.Bundle) { b.Container.Spec.CapAdd = []string{"MOON"} }, text: "CAP_MOON", is: fault.ErrInvalid},
		"a relative folder":          {ask: func(b *container.Bundle) { b.Container.Spec.WorkingDir = "x" }, text: "needs to be an absolute path", is: fault.ErrInvalid},
		"a broken profile":           {ask: func(b *container.Bundle) { b.Container.Spec.SecurityOpt = []string{"seccomp={"} }, text: "seccomp profile", is: fault.ErrInvalid},
		"a profile without a kernel": {host: func(r *Runtime) { r.facts.seccomp = false }, ask: func(b *container.Bundle) { b.Container.Spec.SecurityOpt = []string{"seccomp={}"} }, text: "seccomp is not enabled in your kernel", is: fault.ErrInvalid},
		"no init on the host":        {host: func(r *Runtime) { r.o.InitPath = "" }, ask: func(b *container.Bundle) { b.Container.Spec.Init = &yes }, text: "no init program", is: fault.ErrUnsupported},
		"a device that is none": {ask: func(b *container.Bundle) {
			b.Container.Spec.Resources.Devices = []container.Device{{PathOnHost: "/etc/passwd"}}
		}, text: "not a device node", is: fault.ErrInvalid},
		"a device that is not there": {ask: func(b *container.Bundle) {
			b.Container.Spec.Resources.Devices = []container.Device{{PathOnHost: "/dev/nope"}}
		}, text: "no such file or directory", is: fault.ErrInvalid},
		"a driver of devices": {ask: func(b *container.Bundle) {
			b.Container.Spec.Resources.DeviceRequests = []container.DeviceRequest{{Driver: "nvidia"}}
		}, text: `could not select device driver "nvidia"`, is: fault.ErrUnsupported},
		"a rule for devices": {ask: func(b *container.Bundle) { b.Container.Spec.Resources.DeviceCgroupRules = []string{"c 1:x rwm"} }, text: "invalid device cgroup rule format", is: fault.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := fixed(t, c.host).spec(bundle(t, c.ask))
			if err == nil || !strings.Contains(err.Error(), c.text) || !errors.Is(err, c.is) {
				t.Errorf("%v, want %q of class %v", err, c.text, c.is)
			}
		})
	}
}

func TestAppArmorProfilesAreChosen(t *testing.T) {
	for name, c := range map[string]struct {
		host       bool
		option     string
		privileged bool // the container
		exec       bool // a privileged exec
		want       string
		fails      bool
	}{
		"no AppArmor":                           {want: ""},
		"no AppArmor and unconfined":            {option: "apparmor=unconfined", want: ""},
		"no AppArmor and a profile":             {option: "apparmor=mine", fails: true},
		"a profile":                             {host: true, option: "apparmor=mine", want: "mine"},
		"a profile in Docker's old form":        {host: true, option: "apparmor:mine", want: "mine"},
		"unconfined":                            {host: true, option: "apparmor=unconfined", want: "unconfined"},
		"privileged":                            {host: true, privileged: true, want: "unconfined"},
		"privileged with a profile":             {host: true, privileged: true, option: "apparmor=mine", want: "mine"},
		"a privileged exec leaves the profile":  {host: true, exec: true, option: "apparmor=mine", want: "unconfined"},
		"a privileged exec leaves the standard": {host: true, exec: true, want: "unconfined"},
	} {
		t.Run(name, func(t *testing.T) {
			r := fixed(t, func(r *Runtime) { r.facts.appArmor = c.host })
			var x container.Container
			x.Spec.Privileged = c.privileged
			if c.option != "" {
				x.Spec.SecurityOpt = []string{c.option}
			}
			got, err := r.profile(x, c.privileged || c.exec)
			if got != c.want || (err != nil) != c.fails {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

func TestALargePasswdIsRefused(t *testing.T) {
	b := bundle(t, nil)
	if err := os.Truncate(filepath.Join(b.Root, "etc/passwd"), accountLimit+1); err != nil {
		t.Fatal(err)
	}
	if _, err := fixed(t, nil).spec(b); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Error(err)
	}
}

func TestPasswdIsReadInsideTheRoot(t *testing.T) {
	b := bundle(t, func(b *container.Bundle) { b.Container.Spec.User = "intruder" })
	secret := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(secret, []byte("intruder:x:0:0::/:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(b.Root, "etc/passwd")
	if err := errors.Join(os.Remove(p), os.Symlink(secret, p)); err != nil {
		t.Fatal(err)
	}
	if _, err := fixed(t, nil).spec(b); err == nil || !strings.Contains(err.Error(), "no matching entries") {
		t.Error(err)
	}
}

func TestFailuresAreWordedForClients(t *testing.T) {
	for text, want := range map[string]error{
		`exec: "x": executable file not found in $PATH`:  fault.ErrNotFound,
		`exec: "/x": stat /x: no such file or directory`: fault.ErrNotFound,
		`exec: "/x": permission denied`:                  fault.ErrPermission,
		`exec: "/etc": is a directory`:                   fault.ErrPermission,
		`mkdir /etc/passwd: not a directory`:             fault.ErrNotFound,
		`something else`:                                 fault.ErrInternal,
	} {
		err := word("prefix: ", errors.New(text))
		if !errors.Is(err, want) || !strings.HasPrefix(err.Error(), "prefix: "+text) || !strings.HasSuffix(err.Error(), ": unknown") {
			t.Errorf("%s: %v", text, err)
		}
	}
}
