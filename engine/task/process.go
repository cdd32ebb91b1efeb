package task

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
	"github.com/berth-project/berth/lib/inroot"
)

// accountLimit bounds /etc/passwd and /etc/group of a container, in bytes.
const accountLimit = 8 << 20

// defaultCapabilities is moby's set.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// processSpec is what differs between a first process and an exec.
type processSpec struct {
	args, env  []string
	user, cwd  string
	tty        bool
	privileged bool
	size       [2]uint
}

func (r *Runtime) process(root string, c container.Container, s processSpec) (*specs.Process, error) {
	p := &specs.Process{
		Terminal: s.tty, Args: s.args, Cwd: s.cwd,
		Env: environment(c, s), NoNewPrivileges: r.o.NoNewPrivileges,
		SelinuxLabel: c.ProcessLabel,
	}
	var err error
	if p.ApparmorProfile, err = r.profile(c, s.privileged); err != nil {
		return nil, err
	}
	if p.ApparmorProfile == berthProfile {
		if err := r.loadProfile(); err != nil {
			return nil, err
		}
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	if !path.IsAbs(p.Cwd) {
		return nil, fault.Invalidf("the working directory %q is invalid, it needs to be an absolute path", p.Cwd)
	}
	if s.tty && s.size != [2]uint{} {
		p.ConsoleSize = &specs.Box{Height: s.size[0], Width: s.size[1]}
	}
	for _, o := range c.Spec.SecurityOpt {
		if o == "no-new-privileges" {
			p.NoNewPrivileges = true
		}
		if v, ok := option(o, "no-new-privileges"); ok {
			on, err := strconv.ParseBool(v)
			if err != nil {
				return nil, fault.Invalidf("invalid --security-opt 2: %q", o)
			}
			p.NoNewPrivileges = on
		}
	}
	account, home, err := lookup(root, s.user, c.Spec.GroupAdd)
	if err != nil {
		return nil, err
	}
	p.User = account
	if c.Spec.Umask != nil {
		p.User.Umask = c.Spec.Umask
	}
	if !slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		p.Env = append(p.Env, "HOME="+home)
	}
	if p.Capabilities, err = r.capabilities(c, s.privileged); err != nil {
		return nil, err
	}
	for _, u := range c.Spec.Resources.Ulimits {
		kind := strings.ToUpper(u.Name)
		soft, hard := r.clamp(uint64(u.Soft), uint64(u.Hard), kind)
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_" + kind, Soft: soft, Hard: hard})
	}
	// Zero too: the keeper's own score is not the container's.
	p.OOMScoreAdj = r.oomScore(c.Spec.Resources.OomScoreAdj)
	return p, nil
}

// oomScore leaves out a score that this process may not give.
func (r *Runtime) oomScore(score int) *int {
	if !r.facts.sysResource && score < r.facts.oomScore {
		if score != 0 {
			r.log.Warn("oom score clamped: CAP_SYS_RESOURCE is missing", "wanted", score, "given", r.facts.oomScore)
		}
		score = r.facts.oomScore
	}
	return &score
}

func environment(c container.Container, s processSpec) []string {
	env := []string{defaultPath}
	if c.Spec.UTSMode != "host" && c.Spec.Hostname != "" {
		env = append(env, "HOSTNAME="+c.Spec.Hostname)
	}
	if s.tty {
		env = append(env, "TERM=xterm")
	}
	return container.MergeEnv(env, s.env)
}

// lookup finds a user in the files of a root.
func lookup(root, name string, groups []string) (u specs.User, home string, err error) {
	r, err := inroot.Open(root)
	if err != nil {
		return u, "", err
	}
	defer r.Close()
	passwd, err := account(r, "etc/passwd")
	if err != nil {
		return u, "", err
	}
	group, err := account(r, "etc/group")
	if err != nil {
		return u, "", err
	}
	found, err := user.GetExecUser(name, &user.ExecUser{Home: "/"}, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return u, "", fault.Invalidf("%w", err)
	}
	u.UID, u.GID = uint32(found.Uid), uint32(found.Gid)
	extra := found.Sgids
	if len(groups) > 0 {
		more, err := user.GetAdditionalGroups(groups, bytes.NewReader(group))
		if err != nil {
			return u, "", fault.Invalidf("Unable to find group: %w", err)
		}
		slices.Sort(more) // they come in no order
		extra = append(extra, more...)
	}
	// The primary group first, as moby does: it must survive setgroups.
	u.AdditionalGids = []uint32{u.GID}
	for _, g := range extra {
		if !slices.Contains(u.AdditionalGids, uint32(g)) {
			u.AdditionalGids = append(u.AdditionalGids, uint32(g))
		}
	}
	return u, found.Home, nil
}

func account(r *inroot.Root, name string) ([]byte, error) {
	b, err := r.ReadFile(name, accountLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

func (r *Runtime) capabilities(c container.Container, privileged bool) (*specs.LinuxCapabilities, error) {
	set := slices.Clone(defaultCapabilities)
	all := r.facts.capabilities
	if privileged {
		set = slices.Clone(all)
	} else {
		parse := func(list []string) (names []string, every bool, err error) {
			for _, n := range list {
				n = strings.ToUpper(n)
				if n == "ALL" {
					every = true
					continue
				}
				if !strings.HasPrefix(n, "CAP_") {
					n = "CAP_" + n
				}
				if !slices.Contains(all, n) {
					return nil, false, fault.Invalidf("invalid capability: %q", n)
				}
				names = append(names, n)
			}
			return names, every, nil
		}
		add, addAll, err := parse(c.Spec.CapAdd)
		if err != nil {
			return nil, err
		}
		dropped, dropAll, err := parse(c.Spec.CapDrop)
		if err != nil {
			return nil, err
		}
		if addAll {
			set = slices.Clone(all)
		}
		if dropAll {
			set = nil
		}
		set = slices.DeleteFunc(set, func(n string) bool { return slices.Contains(dropped, n) })
		for _, n := range add {
			if !slices.Contains(set, n) {
				set = append(set, n)
			}
		}
	}
	set = slices.DeleteFunc(set, func(n string) bool { return !slices.Contains(all, n) })
	slices.Sort(set)
	// No inheritable and no ambient ones: another user than root loses them at exec.
	return &specs.LinuxCapabilities{Bounding: set, Effective: set, Permitted: set}, nil
}

// knownCapabilities lists what this process may pass on.
func knownCapabilities() ([]string, error) {
	mine, err := capability.NewPid2(0)
	if err != nil {
		return nil, err
	}
	if err := mine.Load(); err != nil {
		return nil, err
	}
	last, err := capability.LastCap()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, c := range capability.ListKnown() {
		if c <= last && mine.Get(capability.BOUNDING, c) {
			names = append(names, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("this process holds no capabilities")
	}
	return names, nil
}
