package container

import (
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/moby/sys/capability"
	"github.com/moby/sys/signal"

	"github.com/berth-project/berth/lib/fault"
)

// Bounds of what may be asked for.
const (
	minMemory    = 6 << 20
	minCPUShares = 2
	maxCPUShares = 262144
)

// validate refuses what cannot be, in Docker's words, and warns of what this
// host will not enforce. It sees the whole effect, from whatever door it came.
func (s *Service) validate(spec *Spec) (warnings []string, err error) {
	for _, check := range []func(*Spec) error{validateMounts, validateProcess, validateNames, validatePolicy, validateModes, validateSecurity} {
		if err := check(spec); err != nil {
			return nil, err
		}
	}
	if err := s.validateResources(&spec.Resources); err != nil {
		return nil, err
	}
	if spec.ShmSize < 0 {
		return nil, fault.Invalidf("SHM size can not be less than 0")
	}
	if spec.Resources.MemorySwap > 0 && !s.o.Host.SwapLimit {
		warnings = append(warnings, "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.")
		spec.Resources.MemorySwap = -1
	}
	warnings = append(warnings, s.discard(&spec.Resources)...)
	if spec.NetworkMode == "host" && len(spec.Publish) > 0 {
		warnings = append(warnings, "Published ports are discarded when using host network mode")
	}
	if parent := spec.Resources.CgroupParent; s.o.Host.Slices && parent != "" && !strings.HasSuffix(parent, ".slice") {
		return nil, fault.Invalidf("cgroup-parent for systemd cgroup should be a valid slice named as \"xxx.slice\"")
	}
	if d := spec.Resources.OomKillDisable; d != nil && *d && spec.Resources.Memory == 0 {
		warnings = append(warnings, "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.")
	}
	return warnings, nil
}

// discard takes out what this host's cgroups do not have, and says so.
func (s *Service) discard(r *Resources) (warnings []string) {
	h := s.o.Host
	warn := func(what, gone string) {
		warnings = append(warnings, "Your kernel does not support "+what+" or the cgroup is not mounted. "+gone+" discarded.")
	}
	if r.MemorySwappiness != nil && *r.MemorySwappiness != -1 && !h.Swappiness {
		warn("memory swappiness capabilities", "Memory swappiness")
		r.MemorySwappiness = nil
	}
	if r.OomKillDisable != nil && !h.OomKillDisable {
		if *r.OomKillDisable {
			warnings = append(warnings, "Your kernel does not support OomKillDisable. OomKillDisable discarded.")
		}
		r.OomKillDisable = nil
	}
	if r.BlkioWeight > 0 && !h.BlkioWeight {
		warn("Block I/O weight", "Weight")
		r.BlkioWeight = 0
	}
	if len(r.BlkioWeightDevice) > 0 && !h.BlkioWeightDevice {
		warn("Block I/O weight_device", "Weight-device")
		r.BlkioWeightDevice = nil
	}
	return warnings
}

func validateMounts(spec *Spec) error {
	seen := map[string]bool{}
	for _, m := range spec.Mounts {
		switch {
		case m.Target == "":
			return fault.Invalidf("invalid mount config for type %q: field Target must not be empty", m.Type)
		case !path.IsAbs(m.Target):
			return fault.Invalidf("invalid mount path: '%s' mount path must be absolute", m.Target)
		case path.Clean(m.Target) == "/":
			return fault.Invalidf("invalid specification: destination can't be '/'")
		case strings.ContainsRune(m.Target+m.Source, 0):
			return fault.Invalidf("invalid mount path: it contains a null byte")
		case seen[path.Clean(m.Target)]:
			return fault.Invalidf("Duplicate mount point: %s", m.Target)
		}
		seen[path.Clean(m.Target)] = true
		for _, o := range []struct {
			kind, field string
			given       bool
		}{{MountBind, "BindOptions", m.HasBindOptions}, {MountVolume, "VolumeOptions", m.HasVolumeOptions}, {MountTmpfs, "TmpfsOptions", m.HasTmpfsOptions}, {MountImage, "ImageOptions", m.HasImageOptions}} {
			if o.given && m.Type != o.kind {
				return fault.Invalidf("invalid mount config for type %q: field %s must not be specified", m.Type, o.field)
			}
		}
		switch m.Type {
		case MountBind:
			if m.Source == "" {
				return fault.Invalidf("invalid mount config for type \"bind\": field Source must not be empty")
			}
			if !path.IsAbs(m.Source) {
				return fault.Invalidf("invalid mount config for type \"bind\": invalid mount path: '%s' mount path must be absolute", m.Source)
			}
			switch m.Propagation {
			case "", "private", "rprivate", "shared", "rshared", "slave", "rslave":
			default:
				return fault.Invalidf("invalid propagation mode: %s", m.Propagation)
			}
		case MountTmpfs:
			if m.Source != "" {
				return fault.Invalidf("invalid mount config for type \"tmpfs\": field Source must not be specified")
			}
		case MountVolume:
			if m.Origin == FromMounts && m.Source == "" && m.ReadOnly {
				return fault.Invalidf("invalid mount config for type \"volume\": must not set ReadOnly mode when using anonymous volumes")
			}
			if m.Subpath != "" && (path.IsAbs(m.Subpath) || strings.HasPrefix(path.Clean(m.Subpath), "..")) {
				return fault.Invalidf("invalid mount config for type \"volume\": subpath must be a relative path within the volume")
			}
		case MountImage:
			if m.Source == "" {
				return fault.Invalidf("invalid mount config for type \"image\": field Source must not be empty")
			}
			if m.Subpath != "" && (path.IsAbs(m.Subpath) || strings.HasPrefix(path.Clean(m.Subpath), "..")) {
				return fault.Invalidf("invalid mount config for type \"image\": subpath must be a relative path within the image")
			}
		default:
			return fault.Invalidf("invalid mount config for type %q: mount type unknown", m.Type)
		}
	}
	return nil
}

// maxPath is the kernel's bound of a path, in bytes with its end (PATH_MAX).
const maxPath = 4096

func validateProcess(spec *Spec) error {
	if len(spec.WorkingDir) >= maxPath {
		return fault.Invalidf("the working directory has %d characters: a path has at most %d", len(spec.WorkingDir), maxPath-1)
	}
	if spec.WorkingDir != "" && !path.IsAbs(spec.WorkingDir) {
		return fault.Invalidf("the working directory '%s' is invalid, it needs to be an absolute path", spec.WorkingDir)
	}
	if spec.StopSignal != "" {
		if _, err := ParseSignal(spec.StopSignal); err != nil {
			return err
		}
	}
	for _, e := range spec.Env {
		if strings.HasPrefix(e, "=") || e == "" {
			return fault.Invalidf("invalid environment variable: %s", e)
		}
		if strings.ContainsRune(e, 0) {
			return fault.Invalidf("invalid environment variable: it contains a null byte")
		}
	}
	for _, a := range append(slices.Clone(spec.Entrypoint), spec.Cmd...) {
		if strings.ContainsRune(a, 0) {
			return fault.Invalidf("invalid argument: it contains a null byte")
		}
	}
	if h := spec.Health; h != nil {
		for _, d := range []struct {
			name string
			is   time.Duration
		}{{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval}} {
			if d.is != 0 && d.is < time.Millisecond {
				return fault.Invalidf("%s in Healthcheck cannot be less than 1ms", d.name)
			}
		}
		if h.Retries < 0 {
			return fault.Invalidf("Retries in Healthcheck cannot be negative")
		}
	}
	for k := range spec.Sysctls {
		if strings.ContainsAny(k, "/ \x00") {
			return fault.Invalidf("sysctl '%s' is not allowed", k)
		}
	}
	return nil
}

// validateNames refuses what would write further lines into a container's
// hosts and resolv.conf.
func validateNames(spec *Spec) error {
	for _, field := range []struct {
		what string
		list []string
	}{
		{"hostname", []string{spec.Hostname}}, {"domain name", []string{spec.Domainname}}, {"DNS option", spec.DNSOptions}, {"DNS search domain", spec.DNSSearch},
		{"extra host", spec.ExtraHosts}, {"link", spec.Links}, {"cgroup parent", []string{spec.Resources.CgroupParent}},
	} {
		for _, text := range field.list {
			if strings.ContainsFunc(text, unicode.IsControl) {
				return fault.Invalidf("invalid %s %q: it contains control characters", field.what, text)
			}
		}
	}
	for _, extra := range spec.ExtraHosts {
		name, address, ok := CutHost(extra)
		if !ok || name == "" || strings.ContainsFunc(name, unicode.IsSpace) {
			return fault.Invalidf("bad format for add-host: %q", extra)
		}
		if _, err := netip.ParseAddr(address); err != nil && address != HostGateway {
			return fault.Invalidf("invalid IP address in add-host: %q", address)
		}
	}
	for _, link := range spec.Links {
		if target, alias, aliased := strings.Cut(link, ":"); target == "" || aliased && alias == "" || strings.Contains(alias, ":") {
			return fault.Invalidf("bad format for links: %s", link)
		}
	}
	return nil
}

// HostGateway is the address of an extra host that means this machine.
const HostGateway = "host-gateway"

// CutHost splits an extra host, "name:address" or "name=address". An address of
// IPv6 may stand in brackets.
func CutHost(text string) (name, address string, ok bool) {
	if name, address, ok = strings.Cut(text, "="); !ok {
		name, address, ok = strings.Cut(text, ":")
	}
	if inner, is := strings.CutPrefix(address, "["); is {
		address = strings.TrimSuffix(inner, "]")
	}
	return name, address, ok
}

func validatePolicy(spec *Spec) error {
	switch spec.Restart.Name {
	case RestartNo, RestartAlways, RestartUnlessStopped:
		if spec.Restart.MaxRetries != 0 {
			return fault.Invalidf("invalid restart policy: maximum retry count can only be used with 'on-failure'")
		}
	case RestartOnFailure:
		if spec.Restart.MaxRetries < 0 {
			return fault.Invalidf("invalid restart policy: maximum retry count cannot be negative")
		}
	default:
		return fault.Invalidf("invalid restart policy: unknown policy '%s'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'", spec.Restart.Name)
	}
	if spec.AutoRemove && spec.Restart.Name != RestartNo {
		return fault.Invalidf("can't create 'AutoRemove' container with restart policy")
	}
	return nil
}

func validateModes(spec *Spec) error {
	bad := func(what, mode string) error { return fault.Invalidf("invalid %s mode: %s", what, mode) }
	other := func(mode string) bool {
		ref, ok := strings.CutPrefix(mode, "container:")
		return ok && ref != ""
	}
	switch m := spec.IpcMode; {
	case m == "", m == "private", m == "shareable", m == "host", m == "none", other(m):
	default:
		return bad("IPC", m)
	}
	switch m := spec.PidMode; {
	case m == "", m == "host", other(m):
	default:
		return bad("PID", m)
	}
	if m := spec.UTSMode; m != "" && m != "host" {
		return bad("UTS", m)
	}
	if m := spec.CgroupnsMode; m != "" && m != "host" && m != "private" {
		return bad("cgroup namespace", m)
	}
	if m := spec.UsernsMode; m != "" && m != "host" {
		return bad("USER", m)
	}
	if spec.UTSMode == "host" && spec.Hostname != "" {
		return fault.Invalidf("conflicting options: hostname and the UTS mode")
	}
	if other(spec.NetworkMode) {
		switch {
		case spec.Hostname != "":
			return fault.Invalidf("conflicting options: hostname and the network mode")
		case len(spec.Publish) > 0 || spec.PublishAll:
			return fault.Invalidf("conflicting options: port publishing and the container type network mode")
		case len(spec.Links) > 0:
			return fault.Invalidf("conflicting options: container type network can't be used with links. This would result in undefined behavior")
		case len(spec.ExtraHosts) > 0:
			return fault.Invalidf("conflicting options: custom host-to-IP mapping and the network mode")
		}
	}
	return nil
}

func validateSecurity(spec *Spec) error {
	for field, list := range map[string][]string{"CapAdd": spec.CapAdd, "CapDrop": spec.CapDrop} {
		for _, name := range list {
			plain := strings.TrimPrefix(strings.ToUpper(name), "CAP_")
			if plain != "ALL" && !slices.ContainsFunc(capability.ListKnown(), func(c capability.Cap) bool { return strings.ToUpper(c.String()) == plain }) {
				return fault.Invalidf("invalid %s: unknown capability: %q", field, "CAP_"+plain)
			}
		}
	}
	for _, o := range spec.SecurityOpt {
		if o == "no-new-privileges" || o == "disable" || strings.HasPrefix(o, "systempaths=") {
			continue
		}
		i := strings.IndexAny(o, "=:")
		if i < 0 {
			return fault.Invalidf("invalid --security-opt 1: %q", o)
		}
		switch o[:i] {
		case "label", "apparmor", "seccomp":
		case "no-new-privileges":
			if _, err := strconv.ParseBool(o[i+1:]); err != nil {
				return fault.Invalidf("invalid --security-opt 2: %q", o)
			}
		default:
			return fault.Invalidf("invalid --security-opt 2: %q", o)
		}
	}
	return nil
}

func (s *Service) validateResources(r *Resources) error {
	switch {
	case r.Memory != 0 && r.Memory < minMemory:
		return fault.Invalidf("Minimum memory limit allowed is 6MB")
	case r.MemorySwap > 0 && r.Memory == 0:
		return fault.Invalidf("You should always set the Memory limit when using Memoryswap limit, see usage")
	case r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory:
		return fault.Invalidf("Minimum memoryswap limit should be larger than memory limit, see usage")
	case r.MemoryReservation != 0 && r.MemoryReservation < minMemory:
		return fault.Invalidf("Minimum memory reservation allowed is 6MB")
	case r.Memory > 0 && r.MemoryReservation > 0 && r.Memory < r.MemoryReservation:
		return fault.Invalidf("Minimum memory limit can not be less than memory reservation limit, see usage")
	case r.MemorySwappiness != nil && (*r.MemorySwappiness < -1 || *r.MemorySwappiness > 100):
		return fault.Invalidf("Invalid value: %d, valid memory swappiness range is 0-100", *r.MemorySwappiness)
	case r.NanoCPUs > 0 && r.CPUPeriod > 0:
		return fault.Invalidf("Conflicting options: Nano CPUs and CPU Period cannot both be set")
	case r.NanoCPUs > 0 && r.CPUQuota > 0:
		return fault.Invalidf("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	case r.NanoCPUs < 0 || s.o.Host.CPUs > 0 && r.NanoCPUs > int64(s.o.Host.CPUs)*1e9:
		return fault.Invalidf("range of CPUs is from 0.01 to %.2f, as there are only %d CPUs available", float64(s.o.Host.CPUs), s.o.Host.CPUs)
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1_000_000):
		return fault.Invalidf("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case r.CPUQuota > 0 && r.CPUQuota < 1000:
		return fault.Invalidf("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	case (r.CPURealtimePeriod != 0 || r.CPURealtimeRuntime != 0) && !s.o.Host.CPURealtime:
		return fault.Invalidf("Your kernel does not support CPU real-time scheduler")
	case r.CPUShares < 0:
		return fault.Invalidf("invalid CPU shares (%d): value must be a positive integer", r.CPUShares)
	case r.BlkioWeight > 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000):
		return fault.Invalidf("Range of blkio weight is from 10 to 1000")
	case r.OomScoreAdj < -1000 || r.OomScoreAdj > 1000:
		return fault.Invalidf("Invalid value %d, range for oom score adj is [-1000, 1000]", r.OomScoreAdj)
	}
	if r.CPUShares > 0 {
		r.CPUShares = min(max(r.CPUShares, minCPUShares), maxCPUShares)
	}
	if err := validateCpuset("cpuset cpus", r.CpusetCpus, s.o.Host.CPUs); err != nil {
		return err
	}
	for _, u := range r.Ulimits {
		if u.Hard != -1 && (u.Soft > u.Hard || u.Soft == -1) {
			return fault.Invalidf("ulimit soft limit must be less than or equal to hard limit: %d > %d", u.Soft, u.Hard)
		}
	}
	return nil
}

func validateCpuset(what, list string, have int) error {
	if list == "" {
		return nil
	}
	for _, part := range strings.Split(list, ",") {
		first, last, ranged := strings.Cut(part, "-")
		if !ranged {
			last = first
		}
		a, err1 := strconv.ParseUint(first, 10, 16)
		b, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || b < a {
			return fault.Invalidf("Invalid value %s for %s", list, what)
		}
		if have > 0 && b >= uint64(have) {
			return fault.Invalidf("Requested CPUs are not available - requested %s, available: 0-%d", list, have-1)
		}
	}
	return nil
}

// ParseSignal reads a signal's name, with or without SIG, or its number.
func ParseSignal(text string) (syscall.Signal, error) {
	if text == "" {
		return syscall.SIGTERM, nil
	}
	if n, err := strconv.Atoi(text); err == nil {
		if n <= 0 || n > 64 {
			return 0, fault.Invalidf("invalid signal: %s", text)
		}
		return syscall.Signal(n), nil
	}
	sig, err := signal.ParseSignal(text)
	if err != nil {
		return 0, fault.Invalidf("invalid signal: %s", text)
	}
	return sig, nil
}
