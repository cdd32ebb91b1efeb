package keeper_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/engine/keeper"
)

// look prints all that a process can see of how it was made.
const look = `
cd_is=$(busybox pwd); echo "cwd $cd_is"
busybox grep -E '^(Umask|Uid|Gid|Groups|NoNewPrivs|Seccomp|Cap|Sig[^Q]|Speculation)' /proc/self/status
echo mounts; cat /proc/self/mountinfo
echo devices; busybox ls -lan /dev
echo limits; cat /proc/self/limits
echo fds; busybox ls -l /proc/self/fd
echo names; busybox hostname; cat /proc/sys/kernel/domainname
echo environment; busybox env
echo cgroups; cat /proc/self/cgroup
echo session; busybox cut -d' ' -f5-8 /proc/1/stat
echo sysctl; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range
echo masked; busybox stat -c '%F %t %T' /proc/keys /proc/acpi /sys/firmware 2>&1
echo made; busybox stat -c '%A %u %g %n' /* /made/* /made/below/* /dev/* 2>&1
echo oom; cat /proc/self/oom_score_adj
busybox touch /root-is-writable 2>&1; busybox touch /proc/sys/kernel/hostname 2>&1; busybox touch /tmp-ro/x 2>&1; busybox touch /made/bound/x 2>&1
`

var volatile = regexp.MustCompile(`\b\d\d:\d\d\b|pipe:\[\d+\]|(master|shared):\d+|/proc/\d+|-> \S*/fd$`)

// seen runs look in a fresh container and in an exec, and tells how many
// threads the container had before its program: one where no Go has run.
func (w *world) seen(id string, s *specs.Spec) (first, exec string, threads int) {
	w.t.Helper()
	ctx := context.Background()
	wait := keeper.StreamSet{Stdin: true, Stdout: true, Stderr: true}
	started, p, err := w.client.Create(ctx, keeper.CreateRequest{ID: id, Spec: s, Streams: wait})
	if err != nil {
		w.t.Fatal(err)
	}
	defer p.Close()
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", started.Pid))
	if err := w.client.Start(ctx, id); err != nil {
		w.t.Fatal(err)
	}
	until := make([]byte, 64<<10)
	for n := 0; ; {
		more, err := p.Stdout.Read(until[n:])
		if n += more; err != nil || strings.HasSuffix(string(until[:n]), "done\n") {
			first = string(until[:n])
			break
		}
	}
	process := *s.Process
	process.Args = []string{"sh", "-c", look}
	_, x, err := w.client.Exec(ctx, keeper.ExecRequest{Ref: keeper.Ref{ID: id, Exec: "e"}, Process: &process, Streams: outputs})
	if err != nil {
		w.t.Fatal(err)
	}
	out, _ := io.ReadAll(x.Stdout)
	x.Close()
	return w.plain(first), w.plain(string(out)), len(tasks)
}

// plain takes out what differs from one container to another.
func (w *world) plain(text string) string {
	var lines []string
	for l := range strings.Lines(text) {
		l = strings.ReplaceAll(strings.ReplaceAll(l, w.dir, "DIR"), w.group, "/GROUP")
		if f := strings.Fields(l); len(f) > 9 && strings.Contains(l, " - ") && strings.HasPrefix(f[4], "/") {
			l = strings.Join(f[3:], " ") + "\n" // without numbers of mounts and devices
		}
		lines = append(lines, volatile.ReplaceAllString(l, "…"))
	}
	return strings.Join(lines, "")
}

// ordinary is a container as docker makes it.
func (w *world) ordinary(id string) *specs.Spec {
	s := w.spec(id, "sh", "-c", look+"echo done; read x")
	s.Hostname, s.Domainname = "host", "domain"
	s.Process.Env = []string{"PATH=/nowhere", "HOME=/root", "A=1", "PATH=/bin", "A=2"}
	s.Process.Cwd = "/made/cwd" // is made
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}
	score := 7
	s.Process.OOMScoreAdj = &score
	ro := []string{"nosuid", "noexec", "nodev", "ro"}
	bound := filepath.Join(w.dir, "bound")
	s.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: ro[:3]},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: ro},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: ro[:3]},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append(ro[:3:3], "mode=1777", "size=1m")},
		{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: ro[:3]},
		{Destination: "/tmp-ro", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro", "noexec", "size=64k"}},
		{Destination: "/made/bound", Type: "bind", Source: bound, Options: []string{"rbind", "rprivate", "ro"}},
		{Destination: "/made/below/file", Type: "bind", Source: bound + "/file", Options: []string{"rbind", "rprivate"}},
		{Destination: "/link/inside", Type: "bind", Source: bound, Options: []string{"bind", "private", "nosuid"}},
	}
	s.Linux.MaskedPaths = []string{"/proc/acpi", "/proc/keys", "/proc/keys", "/proc/not-there", "/sys/firmware"}
	s.Linux.ReadonlyPaths = []string{"/proc/bus", "/proc/sys", "/proc/not-there"}
	s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
	s.Linux.RootfsPropagation = "rprivate"
	s.Linux.Seccomp = moby(w.t)
	return s
}

func TestStepsEqualThoseOfLibcontainer(t *testing.T) {
	ways := map[string]*world{}
	for _, way := range []string{"plan", "libcontainer"} {
		t.Setenv("BERTH_KEEPER_STEPS", way)
		w := newWorld(t)
		for path, target := range map[string]string{"link": "/made/linked", "made/linked": ""} {
			at := filepath.Join(w.dir, "root", path)
			if err := os.MkdirAll(filepath.Dir(at), 0o750); err != nil {
				t.Fatal(err)
			}
			var err error
			if target != "" {
				err = os.Symlink(target, at)
			} else {
				err = os.MkdirAll(at, 0o711)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Mkdir(filepath.Join(w.dir, "bound"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(w.dir, "bound/file"), []byte("text"), 0o640); err != nil {
			t.Fatal(err)
		}
		ways[way] = w
	}
	for name, change := range map[string]func(s *specs.Spec){
		"as docker makes it": func(*specs.Spec) {},
		"a user with groups, a umask and a read-only root": func(s *specs.Spec) {
			mask := uint32(0o027)
			s.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{1001, 27, 44}, Umask: &mask}
			s.Root.Readonly = true
			s.Process.Cwd = "/"
		},
		"no new privileges and an ambient capability": func(s *specs.Spec) {
			s.Process.NoNewPrivileges = true
			s.Process.User = specs.User{UID: 5, GID: 5}
			c := s.Process.Capabilities
			c.Inheritable, c.Ambient = []string{"CAP_KILL"}, []string{"CAP_KILL"}
		},
		"no filter, no capabilities, the host's names": func(s *specs.Spec) {
			s.Linux.Seccomp, s.Process.Capabilities = nil, nil
			s.Linux.Namespaces = s.Linux.Namespaces[:3]
			s.Hostname, s.Domainname, s.Linux.Sysctl = "", "", nil
			s.Mounts[3] = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "rprivate", "ro"}}
		},
		"devices of its own": func(s *specs.Spec) {
			mode, id := os.FileMode(0o640), uint32(3)
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/deep/zero", Type: "c", Major: 1, Minor: 5, FileMode: &mode, UID: &id, GID: &id}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := map[string][2]string{}
			for way, w := range ways {
				id := regexp.MustCompile(`\W`).ReplaceAllString(name, "-")
				s := w.ordinary(id)
				change(s)
				first, exec, threads := w.seen(id, s)
				if (threads == 1) != (way == "plan") {
					t.Errorf("%s: the process had %d threads before its program", way, threads)
				}
				got[way] = [2]string{first, exec}
			}
			for i, what := range []string{"first process", "exec"} {
				if got["plan"][i] == "" {
					t.Fatalf("the %s saw nothing", what)
				}
				if d := cmp.Diff(strings.Split(got["libcontainer"][i], "\n"), strings.Split(got["plan"][i], "\n")); d != "" {
					t.Errorf("%s (-libcontainer +plan):\n%s", what, d)
				}
			}
		})
	}
}

// lookAtTerminal prints what a process can see of its terminal.
const lookAtTerminal = look + `
echo terminal; tty; busybox stty size; busybox stty -a
for f in /dev/console /dev/pts/ptmx /proc/self/fd/0; do busybox stat -L -c '%A %u %g %t %T %n' $f; done
set -- $(busybox cut -d' ' -f5-8 /proc/$$/stat); echo group $(($1 == $$)) session $(($2 == $$)) terminal $3 foreground $(($4 == $$))
`

func TestTerminalsEqualThoseOfLibcontainer(t *testing.T) {
	got := map[string][2]string{}
	for _, way := range []string{"plan", "libcontainer"} {
		t.Setenv("BERTH_KEEPER_STEPS", way)
		w := newWorld(t)
		if err := os.MkdirAll(filepath.Join(w.dir, "bound/file"), 0o755); err != nil {
			t.Fatal(err)
		}
		s := w.ordinary("c")
		s.Mounts = s.Mounts[:9]
		s.Process.Terminal, s.Process.ConsoleSize = true, &specs.Box{Width: 77, Height: 33}
		s.Process.User = specs.User{UID: 1000, GID: 1001}
		s.Process.Args = []string{"sh", "-c", lookAtTerminal + "echo done; read x"}
		ctx := context.Background()
		started, p, err := w.client.Create(ctx, keeper.CreateRequest{ID: "c", Spec: s, Streams: keeper.StreamSet{TTY: true}})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", started.Pid)); (len(tasks) == 1) != (way == "plan") {
			t.Errorf("%s: the process had %d threads before its program", way, len(tasks))
		}
		if err := w.client.Start(ctx, "c"); err != nil {
			t.Fatal(err)
		}
		process := *s.Process
		process.Args = []string{"sh", "-c", lookAtTerminal + "echo done"}
		first := until(t, p.TTY, "done\r\n")
		_, x, err := w.client.Exec(ctx, keeper.ExecRequest{Ref: keeper.Ref{ID: "c", Exec: "e"}, Process: &process, Streams: keeper.StreamSet{TTY: true}})
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		got[way] = [2]string{w.plain(first), w.plain(until(t, x.TTY, "done\r\n"))}
	}
	for i, what := range []string{"first process", "exec"} {
		if d := cmp.Diff(strings.Split(got["libcontainer"][i], "\n"), strings.Split(got["plan"][i], "\n")); d != "" {
			t.Errorf("%s (-libcontainer +plan):\n%s", what, d)
		}
	}
}

// until reads as far as the text ends so.
func until(t *testing.T, from io.Reader, end string) string {
	t.Helper()
	text, b := []byte{}, make([]byte, 4096)
	for !strings.HasSuffix(string(text), end) {
		n, err := from.Read(b)
		if err != nil {
			t.Fatalf("%v after %q", err, text)
		}
		text = append(text, b[:n]...)
	}
	return string(text)
}

func TestStepsRefuseWhatLibcontainerRefuses(t *testing.T) {
	links := func(link, target string) func(w *world) {
		return func(w *world) {
			at := filepath.Join(w.dir, "root", link)
			_ = os.Remove(at)
			if err := os.Symlink(target, at); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	bind := func(source, target string) func(w *world, s *specs.Spec) {
		return func(w *world, s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: target, Type: "bind", Source: w.dir + source, Options: []string{"bind"}})
		}
	}
	run := func(name string) func(w *world, s *specs.Spec) {
		return func(_ *world, s *specs.Spec) { s.Process.Args = []string{name} }
	}
	cases := []struct {
		name, said string
		root       func(w *world)
		change     func(w *world, s *specs.Spec)
	}{
		{"a mount through a link into proc", "cannot be mounted because it is inside /proc", links("link", "/proc"), bind("", "/link/sys")},
		{"a mount on the root through a link", "is on the top of rootfs", links("link", "/"), bind("", "/link")},
		{"proc over a link", `filesystem "proc" must be mounted on ordinary directory`, links("proc", "/tmp"), nil},
		{"a working folder that is a file", "mkdir /bin/true: not a directory", nil, func(_ *world, s *specs.Spec) { s.Process.Cwd = "/bin/true" }},
		{"a folder mounted on a file", "not a directory", nil, bind("", "/bin/true")},
		{"a source that is missing", "no such file or directory", nil, bind("/nonsuch", "/x")},
		{"a program that is a folder", `exec: "/bin": is a directory`, nil, run("/bin")},
		{"a program that is none", `exec: "/bin/nonsuch": stat /bin/nonsuch: no such file or directory`, nil, run("/bin/nonsuch")},
		{"a program that may not be run", `exec: "/dev/null": permission denied`, nil, run("/dev/null")},
		{"a name that is not in the PATH", `exec: "a\"b\\c": executable file not found in $PATH`, nil, run(`a"b\c`)},
	}
	for _, way := range []string{"plan", "libcontainer"} {
		t.Run(way, func(t *testing.T) {
			t.Setenv("BERTH_KEEPER_STEPS", way)
			w := newWorld(t)
			for i, c := range cases {
				if c.root != nil {
					c.root(w)
				}
				id := fmt.Sprint("c", i)
				s := w.spec(id, "true")
				s.Process.Env = append(s.Process.Env, "HOME=/")
				s.Linux.Seccomp = nil
				if c.change != nil {
					c.change(w, s)
				}
				_, _, err := w.client.Create(context.Background(), keeper.CreateRequest{ID: id, Spec: s, Streams: outputs})
				if err == nil || !strings.Contains(err.Error(), c.said) {
					t.Errorf("%s: %v", c.name, err)
				}
				for _, name := range []string{"link", "proc"} {
					if info, err := os.Lstat(filepath.Join(w.dir, "root", name)); err == nil && info.Mode()&os.ModeSymlink != 0 {
						_ = os.Remove(filepath.Join(w.dir, "root", name))
					}
				}
			}
		})
	}
}

func TestExecRefusesWhatLibcontainerRefuses(t *testing.T) {
	said := map[string][]string{}
	for _, way := range []string{"plan", "libcontainer"} {
		t.Setenv("BERTH_KEEPER_STEPS", way)
		w := newWorld(t)
		ctx := context.Background()
		s := w.spec("c", "sleep", "1000")
		s.Process.Env = append(s.Process.Env, "HOME=/")
		_, p, err := w.client.Create(ctx, keeper.CreateRequest{ID: "c", Spec: s, Streams: outputs})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if err := w.client.Start(ctx, "c"); err != nil {
			t.Fatal(err)
		}
		for i, change := range []func(p *specs.Process){
			func(p *specs.Process) { p.Args = []string{"/bin"} },
			func(p *specs.Process) { p.Args = []string{"/bin/nonsuch"} },
			func(p *specs.Process) { p.Args = []string{"/dev/null"} },
			func(p *specs.Process) { p.Args = []string{`a"b\c`} },
			func(p *specs.Process) { p.Cwd = "/nonsuch" },
			func(p *specs.Process) { p.Cwd = "/bin/true" },
			func(p *specs.Process) { p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 2, Hard: 1}} },
		} {
			process := *s.Process
			process.Args = []string{"true"}
			change(&process)
			_, x, err := w.client.Exec(ctx, keeper.ExecRequest{Ref: keeper.Ref{ID: "c", Exec: fmt.Sprint("e", i)}, Process: &process, Streams: outputs})
			if err == nil {
				x.Close()
				t.Errorf("%s: exec %d was not refused", way, i)
			}
			said[way] = append(said[way], fmt.Sprint(err))
		}
		all, err := w.client.List(ctx)
		if err != nil || len(all) != 1 {
			t.Errorf("%s: %d processes are left of one, %v", way, len(all), err)
		}
	}
	if d := cmp.Diff(said["libcontainer"], said["plan"]); d != "" {
		t.Errorf("(-libcontainer +plan):\n%s", d)
	}
}
