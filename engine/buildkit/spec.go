package buildkit

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// place puts a step into a network namespace: that of a path, or the host's.
type place struct{ path string }

func (p place) Close() error                          { return nil }
func (p place) Sample() (*types.NetworkSample, error) { return nil, nil }
func (p place) Set(s *specs.Spec) error {
	s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
	if p.path != "" {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: p.path})
	}
	return nil
}

// limits are what this process may give to others.
type limits struct {
	capabilities map[string]bool
	resource     bool // it may raise hard limits
	hard         map[string]uint64
}

var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE,
	"RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

func hostLimits() limits {
	l := limits{capabilities: map[string]bool{}, hard: map[string]uint64{}}
	mine, err := capability.NewPid2(0)
	if err == nil && mine.Load() == nil {
		for _, c := range capability.ListKnown() {
			if mine.Get(capability.BOUNDING, c) {
				l.capabilities["CAP_"+strings.ToUpper(c.String())] = true
			}
		}
		l.resource = mine.Get(capability.EFFECTIVE, capability.CAP_SYS_RESOURCE)
	}
	for name, n := range rlimits {
		var r unix.Rlimit
		if unix.Getrlimit(n, &r) == nil {
			l.hard[name] = r.Max
		}
	}
	return l
}

// clamp takes from a specification what the kernel would refuse to this process.
func (l limits) clamp(s *specs.Spec) {
	if c := s.Process.Capabilities; c != nil && len(l.capabilities) > 0 {
		for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Permitted, &c.Inheritable, &c.Ambient} {
			*set = slices.DeleteFunc(*set, func(n string) bool { return !l.capabilities[n] })
		}
	}
	for i := range s.Process.Rlimits {
		r := &s.Process.Rlimits[i]
		if hard, known := l.hard[r.Type]; known && !l.resource && r.Hard > hard {
			r.Hard, r.Soft = hard, min(r.Soft, hard)
		}
	}
}

// stepPids bounds the processes of a step, as a container's are bounded.
const stepPids = 4096

// parentName is what a step's parent cgroup may be called: it stays below the
// engine's own, and names nothing else.
var parentName = regexp.MustCompile(`^/?[A-Za-z0-9_@-][A-Za-z0-9_.@-]{0,127}(/[A-Za-z0-9_@-][A-Za-z0-9_.@-]{0,127}){0,7}$`)

// leaveCgroup gives what removes the parent cgroups that a step is about to
// make below the engine's; those that are there already, or that others use by
// then, stay.
func leaveCgroup(engine, parent string) func() error {
	var places []string
	hierarchies := []string{"/sys/fs/cgroup"}
	if list, err := os.ReadDir("/sys/fs/cgroup"); err == nil {
		for _, e := range list {
			if e.IsDir() {
				hierarchies = append(hierarchies, filepath.Join("/sys/fs/cgroup", e.Name()))
			}
		}
	}
	for _, h := range hierarchies {
		for p := filepath.Clean("/" + parent); p != "/"; p = filepath.Dir(p) {
			place := filepath.Join(h, engine, p)
			if _, err := os.Lstat(place); err != nil {
				places = append(places, place)
			}
		}
	}
	return func() error {
		for _, p := range places {
			_ = unix.Rmdir(p)
		}
		return nil
	}
}
