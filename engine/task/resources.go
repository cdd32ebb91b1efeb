package task

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// defaultPids bounds the processes of a container that asks for no bound.
const defaultPids = 4096

func (r *Runtime) resources(c container.Container) (*specs.LinuxResources, error) {
	res := c.Spec.Resources
	if res.Memory > 0 && res.MemorySwap == 0 {
		// As moby: without a word on swap, as much again.
		res.MemorySwap = res.Memory * 2
	}
	out, err := r.limits(res)
	if err != nil {
		return nil, err
	}
	if res.PidsLimit == nil || *res.PidsLimit == 0 {
		// Docker's command sends 0 where nobody asked for anything; -1 is what lifts the bound.
		n := int64(defaultPids)
		out.Pids = &specs.LinuxPids{Limit: &n}
	}
	if c.Spec.Privileged {
		out.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	} else {
		out.Devices = deviceRules()
	}
	for _, rule := range res.DeviceCgroupRules {
		d, err := deviceRule(rule)
		if err != nil {
			return nil, err
		}
		out.Devices = append(out.Devices, d)
	}
	return out, nil
}

// limits translates what a person asked for; zero fields stay out.
func (r *Runtime) limits(res container.Resources) (*specs.LinuxResources, error) {
	if !r.facts.swapLimit {
		res.MemorySwap = 0 // the kernel has no file for it
	}
	out := &specs.LinuxResources{}
	m := specs.LinuxMemory{Swappiness: unsigned(res.MemorySwappiness), DisableOOMKiller: res.OomKillDisable}
	used := res.OomKillDisable != nil && *res.OomKillDisable
	if !used {
		m.DisableOOMKiller = nil
	}
	used = used || m.Swappiness != nil
	for _, f := range []struct {
		to    **int64
		value int64
	}{{&m.Limit, res.Memory}, {&m.Reservation, res.MemoryReservation}, {&m.Swap, res.MemorySwap}, {&m.KernelTCP, res.KernelMemoryTCP}} {
		if f.value != 0 {
			v := f.value
			*f.to, used = &v, true
		}
	}
	if used {
		out.Memory = &m
	}
	if cpu := cpuLimits(res); cpu != nil {
		out.CPU = cpu
	}
	if n := res.PidsLimit; n != nil {
		limit := *n
		if limit <= 0 {
			limit = -1
		}
		out.Pids = &specs.LinuxPids{Limit: &limit}
	}
	return out, blockIO(res, out)
}

func cpuLimits(res container.Resources) *specs.LinuxCPU {
	cpu := specs.LinuxCPU{Cpus: res.CpusetCpus, Mems: res.CpusetMems}
	used := cpu.Cpus != "" || cpu.Mems != ""
	if res.CPUShares > 0 {
		// The kernel's lowest is 2.
		v := uint64(max(res.CPUShares, 2))
		cpu.Shares, used = &v, true
	}
	if res.NanoCPUs > 0 {
		period := uint64(100_000)
		quota := res.NanoCPUs * int64(period) / 1e9
		cpu.Period, cpu.Quota, used = &period, &quota, true
	}
	if res.CPUPeriod > 0 {
		v := uint64(res.CPUPeriod)
		cpu.Period, used = &v, true
	}
	if res.CPUQuota != 0 {
		v := res.CPUQuota
		cpu.Quota, used = &v, true
	}
	if res.CPURealtimePeriod > 0 {
		v := uint64(res.CPURealtimePeriod)
		cpu.RealtimePeriod, used = &v, true
	}
	if res.CPURealtimeRuntime > 0 {
		v := res.CPURealtimeRuntime
		cpu.RealtimeRuntime, used = &v, true
	}
	if !used {
		return nil
	}
	return &cpu
}

func unsigned(v *int64) *uint64 {
	if v == nil || *v < 0 {
		return nil
	}
	u := uint64(*v)
	return &u
}

func blockIO(res container.Resources, out *specs.LinuxResources) error {
	var b specs.LinuxBlockIO
	used := false
	if res.BlkioWeight > 0 {
		w := res.BlkioWeight
		b.Weight, used = &w, true
	}
	for _, d := range res.BlkioWeightDevice {
		major, minor, err := deviceNumbers(d.Path)
		if err != nil {
			return err
		}
		w := d.Weight
		one := specs.LinuxWeightDevice{Weight: &w}
		one.Major, one.Minor = major, minor
		b.WeightDevice, used = append(b.WeightDevice, one), true
	}
	for _, list := range []struct {
		to   *[]specs.LinuxThrottleDevice
		from []container.ThrottleDevice
	}{
		{&b.ThrottleReadBpsDevice, res.BlkioReadBps}, {&b.ThrottleWriteBpsDevice, res.BlkioWriteBps},
		{&b.ThrottleReadIOPSDevice, res.BlkioReadIOps}, {&b.ThrottleWriteIOPSDevice, res.BlkioWriteIOps},
	} {
		for _, d := range list.from {
			major, minor, err := deviceNumbers(d.Path)
			if err != nil {
				return err
			}
			one := specs.LinuxThrottleDevice{Rate: d.Rate}
			one.Major, one.Minor = major, minor
			*list.to, used = append(*list.to, one), true
		}
	}
	if used {
		out.BlockIO = &b
	}
	return nil
}

func deviceNumbers(path string) (major, minor int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, fault.Invalidf("no such device: %s: %w", path, err)
	}
	return int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)), nil
}

// deviceRules are moby's: everything may be made, only harmless devices used.
func deviceRules() []specs.LinuxDeviceCgroup {
	rule := func(kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
		d := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access}
		if major >= 0 {
			d.Major = &major
		}
		if minor >= 0 {
			d.Minor = &minor
		}
		return d
	}
	return []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		rule("c", 1, 5, "rwm"), rule("c", 1, 3, "rwm"), rule("c", 1, 9, "rwm"), rule("c", 1, 8, "rwm"), rule("c", 1, 7, "rwm"),
		rule("c", 5, 0, "rwm"), rule("c", 5, 1, "rwm"), rule("c", 5, 2, "rwm"), rule("c", 136, -1, "rwm"),
		rule("c", -1, -1, "m"), rule("b", -1, -1, "m"),
	}
}

func deviceRule(text string) (specs.LinuxDeviceCgroup, error) {
	bad := fault.Invalidf("invalid device cgroup rule format: '%s'", text)
	fields := strings.Fields(text)
	if len(fields) != 3 || len(fields[0]) != 1 || !strings.Contains("acb", fields[0]) || strings.Trim(fields[2], "rwm") != "" {
		return specs.LinuxDeviceCgroup{}, bad
	}
	d := specs.LinuxDeviceCgroup{Allow: true, Type: fields[0], Access: fields[2]}
	major, minor, ok := strings.Cut(fields[1], ":")
	if !ok {
		return d, bad
	}
	for _, n := range []struct {
		to   **int64
		text string
	}{{&d.Major, major}, {&d.Minor, minor}} {
		if n.text == "*" {
			continue
		}
		v, err := strconv.ParseInt(n.text, 10, 32)
		if err != nil || v < 0 {
			return d, bad
		}
		*n.to = &v
	}
	return d, nil
}

// devices adds nodes and their rules to a specification.
func (r *Runtime) devices(s *specs.Spec, c container.Container) error {
	if len(c.Spec.Resources.DeviceRequests) > 0 {
		d := c.Spec.Resources.DeviceRequests[0]
		return fault.Unsupportedf("could not select device driver %q with capabilities: %v", d.Driver, d.Capabilities)
	}
	if c.Spec.Privileged {
		all, err := nodes("/dev", "/dev")
		if err != nil {
			return err
		}
		s.Linux.Devices = all
	}
	for _, d := range c.Spec.Resources.Devices {
		if err := device(s, d, c.Spec.Privileged); err != nil {
			return err
		}
	}
	return nil
}

// device adds one device, or a folder of them, to a specification. Privileged
// containers may use all devices already and see those of the host's names.
func device(s *specs.Spec, d container.Device, privileged bool) error {
	host, err := filepath.EvalSymlinks(d.PathOnHost)
	if err != nil || !filepath.IsAbs(d.PathOnHost) {
		return &fault.Error{Class: fault.ErrInvalid, Msg: fmt.Sprintf("error gathering device information while adding custom device %q: no such file or directory", d.PathOnHost)}
	}
	inside := d.PathInContainer
	if inside == "" {
		inside = d.PathOnHost
	}
	found, err := nodes(host, inside)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fault.Invalidf("error gathering device information while adding custom device %q: not a device node", d.PathOnHost)
	}
	access := d.CgroupPermissions
	if access == "" {
		access = "rwm"
	}
	if strings.Trim(access, "rwm") != "" {
		return fault.Invalidf("invalid permissions %q of the device %q: use r, w and m", access, d.PathOnHost)
	}
	for _, n := range found {
		if !slices.ContainsFunc(s.Linux.Devices, func(o specs.LinuxDevice) bool { return o.Path == n.Path }) {
			s.Linux.Devices = append(s.Linux.Devices, n)
		}
		if privileged {
			continue
		}
		major, minor := n.Major, n.Minor
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices,
			specs.LinuxDeviceCgroup{Allow: true, Type: n.Type, Major: &major, Minor: &minor, Access: access})
	}
	return nil
}

// nodes finds a device node, or all of a folder, as the container will see them.
func nodes(host, inside string) ([]specs.LinuxDevice, error) {
	var all []specs.LinuxDevice
	err := filepath.WalkDir(host, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
				return nil
			}
			return err
		}
		if e.IsDir() {
			switch e.Name() {
			case "pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev":
				if path != host {
					return filepath.SkipDir
				}
			}
			return nil
		}
		if e.Name() == "console" && host == "/dev" || e.Type()&os.ModeDevice == 0 {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return nil // it went away
		}
		rel, err := filepath.Rel(host, path)
		if err != nil {
			return err
		}
		mode := os.FileMode(st.Mode & 0o777)
		uid, gid := st.Uid, st.Gid
		d := specs.LinuxDevice{Path: filepath.Join(inside, rel), Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)), FileMode: &mode, UID: &uid, GID: &gid, Type: "b"}
		if e.Type()&os.ModeCharDevice != 0 {
			d.Type = "c"
		}
		all = append(all, d)
		return nil
	})
	return all, err
}
