package serve

import (
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/lib/fault"
)

func now() time.Time { return time.Now() }

// rlimits by their names in the OCI runtime specification.
var rlimits = map[string]int{
	"CPU": unix.RLIMIT_CPU, "FSIZE": unix.RLIMIT_FSIZE, "DATA": unix.RLIMIT_DATA, "STACK": unix.RLIMIT_STACK,
	"CORE": unix.RLIMIT_CORE, "RSS": unix.RLIMIT_RSS, "NPROC": unix.RLIMIT_NPROC, "NOFILE": unix.RLIMIT_NOFILE,
	"MEMLOCK": unix.RLIMIT_MEMLOCK, "AS": unix.RLIMIT_AS, "LOCKS": unix.RLIMIT_LOCKS, "SIGPENDING": unix.RLIMIT_SIGPENDING,
	"MSGQUEUE": unix.RLIMIT_MSGQUEUE, "NICE": unix.RLIMIT_NICE, "RTPRIO": unix.RLIMIT_RTPRIO, "RTTIME": unix.RLIMIT_RTTIME,
}

// newProcess translates a process of the OCI runtime specification for libcontainer.
func newProcess(p *specs.Process) (*libcontainer.Process, error) {
	if len(p.Args) == 0 {
		return nil, fault.Invalidf("args must not be empty")
	}
	if !strings.HasPrefix(p.Cwd, "/") {
		return nil, fault.Invalidf("Cwd must be an absolute path")
	}
	lp := &libcontainer.Process{
		Args: p.Args, Env: p.Env, Cwd: p.Cwd,
		UID: int(p.User.UID), GID: int(p.User.GID),
		Label: p.SelinuxLabel, AppArmorProfile: p.ApparmorProfile, NoNewPrivileges: &p.NoNewPrivileges,
		Scheduler: p.Scheduler, IOPriority: p.IOPriority,
	}
	for _, g := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(g))
	}
	if s := p.ConsoleSize; s != nil {
		lp.ConsoleWidth, lp.ConsoleHeight = uint16(s.Width), uint16(s.Height)
	}
	if c := p.Capabilities; c != nil {
		lp.Capabilities = &configs.Capabilities{
			Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable, Permitted: c.Permitted, Ambient: c.Ambient,
		}
	}
	for _, r := range p.Rlimits {
		kind, ok := rlimits[strings.TrimPrefix(r.Type, "RLIMIT_")]
		if !ok {
			return nil, fault.Invalidf("unknown limit %q", r.Type)
		}
		lp.Rlimits = append(lp.Rlimits, configs.Rlimit{Type: kind, Soft: r.Soft, Hard: r.Hard})
	}
	return lp, nil
}

// apply writes the fields of an update that are set over the present limits
// (OCI runtime specification, config-linux.md, "Control groups").
func apply(to *cgroups.Resources, from *specs.LinuxResources) {
	if m := from.Memory; m != nil {
		set(&to.Memory, m.Limit)
		set(&to.MemoryReservation, m.Reservation)
		set(&to.MemorySwap, m.Swap)
		if m.Swappiness != nil {
			to.MemorySwappiness = m.Swappiness
		}
	}
	if c := from.CPU; c != nil {
		set(&to.CpuShares, c.Shares)
		if c.Shares != nil {
			to.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*c.Shares)
		}
		set(&to.CpuQuota, c.Quota)
		set(&to.CpuPeriod, c.Period)
		set(&to.CpuRtRuntime, c.RealtimeRuntime)
		set(&to.CpuRtPeriod, c.RealtimePeriod)
		if c.Cpus != "" {
			to.CpusetCpus = c.Cpus
		}
		if c.Mems != "" {
			to.CpusetMems = c.Mems
		}
	}
	if p := from.Pids; p != nil {
		to.PidsLimit = p.Limit
	}
	if b := from.BlockIO; b != nil {
		set(&to.BlkioWeight, b.Weight)
		devices := func(list []specs.LinuxThrottleDevice) (out []*cgroups.ThrottleDevice) {
			for _, d := range list {
				out = append(out, cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate))
			}
			return out
		}
		for _, pair := range []struct {
			to   *[]*cgroups.ThrottleDevice
			from []specs.LinuxThrottleDevice
		}{
			{&to.BlkioThrottleReadBpsDevice, b.ThrottleReadBpsDevice},
			{&to.BlkioThrottleWriteBpsDevice, b.ThrottleWriteBpsDevice},
			{&to.BlkioThrottleReadIOPSDevice, b.ThrottleReadIOPSDevice},
			{&to.BlkioThrottleWriteIOPSDevice, b.ThrottleWriteIOPSDevice},
		} {
			if pair.from != nil {
				*pair.to = devices(pair.from)
			}
		}
	}
	if to.Unified == nil && len(from.Unified) > 0 {
		to.Unified = map[string]string{}
	}
	for k, v := range from.Unified {
		to.Unified[k] = v
	}
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}
