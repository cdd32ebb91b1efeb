package task

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// clockTick is USER_HZ: /proc/stat counts in hundredths of a second.
const clockTick = uint64(time.Second / 100)

// Stats reads the counters of a container's cgroups.
func (r *Runtime) Stats(_ context.Context, c container.Container) (container.Stats, error) {
	r.mu.Lock()
	groups := r.cgroups[c.ID]
	r.mu.Unlock()
	if f := r.foreign.find(c.ID); f != nil {
		groups = f.cgroups
	}
	if groups == nil {
		return container.Stats{}, fault.NotFound("container", string(c.ID))
	}
	s := container.Stats{Read: time.Now(), SystemCPU: systemCPU(), OnlineCPUs: uint32(r.facts.cpus), CgroupV2: r.facts.cgroup2}
	if r.facts.cgroup2 {
		unified(groups[""], &s)
	} else {
		separate(groups, &s)
	}
	return s, nil
}

func systemCPU() (total uint64) {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return 0
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	fields := strings.Fields(line)
	if err != nil || len(fields) < 8 {
		return 0
	}
	for _, text := range fields[1:8] {
		n, _ := strconv.ParseUint(text, 10, 64)
		total += n
	}
	return total * clockTick
}

// number reads a file with one number; "max" is no limit.
func number(dir, file string) uint64 {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0
	}
	text := strings.TrimSpace(string(b))
	if text == "max" {
		return 0
	}
	n, _ := strconv.ParseUint(text, 10, 64)
	return n
}

// table reads a file of "key number" lines.
func table(dir, file string) map[string]uint64 {
	m := map[string]uint64{}
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return m
	}
	for _, l := range strings.Split(string(b), "\n") {
		if k, v, ok := strings.Cut(l, " "); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(v), 10, 64)
			m[k] = n
		}
	}
	return m
}

// separate reads cgroup v1 (Documentation/admin-guide/cgroup-v1).
func separate(g map[string]string, s *container.Stats) {
	s.Pids, s.PidsLimit = number(g["pids"], "pids.current"), number(g["pids"], "pids.max")

	cpu := g["cpuacct"]
	s.CPU.Total = number(cpu, "cpuacct.usage")
	use := table(cpu, "cpuacct.stat")
	s.CPU.User, s.CPU.Kernel = use["user"]*clockTick, use["system"]*clockTick
	if b, err := os.ReadFile(filepath.Join(cpu, "cpuacct.usage_percpu")); err == nil {
		for _, text := range strings.Fields(string(b)) {
			n, _ := strconv.ParseUint(text, 10, 64)
			s.CPU.PerCPU = append(s.CPU.PerCPU, n)
		}
	}
	throttled := table(g["cpu"], "cpu.stat")
	s.CPU.Periods, s.CPU.ThrottledPeriods, s.CPU.ThrottledTime = throttled["nr_periods"], throttled["nr_throttled"], throttled["throttled_time"]

	m := g["memory"]
	s.Memory = container.MemoryStats{
		Usage: number(m, "memory.usage_in_bytes"), MaxUsage: number(m, "memory.max_usage_in_bytes"),
		Failcnt: number(m, "memory.failcnt"), Limit: bounded(number(m, "memory.limit_in_bytes")), Stats: table(m, "memory.stat"),
	}
	for _, f := range []struct {
		to    *[]container.BlkioEntry
		names []string
	}{
		{&s.Blkio.ServiceBytes, []string{"blkio.bfq.io_service_bytes_recursive", "blkio.throttle.io_service_bytes_recursive"}},
		{&s.Blkio.Serviced, []string{"blkio.bfq.io_serviced_recursive", "blkio.throttle.io_serviced_recursive"}},
	} {
		for _, name := range f.names {
			if *f.to = blkio(g["blkio"], name); len(*f.to) > 0 {
				break
			}
		}
	}
}

// bounded turns the kernel's word for "no limit" into the host's memory.
func bounded(limit uint64) uint64 {
	if limit > 1<<60 {
		return hostMemory()
	}
	return limit
}

func hostMemory() uint64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	var kib uint64
	_, _ = fmt.Sscanf(string(b), "MemTotal: %d kB", &kib)
	return kib << 10
}

func blkio(dir, file string) (list []container.BlkioEntry) {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return nil
	}
	for _, l := range strings.Split(string(b), "\n") {
		var e container.BlkioEntry
		if n, _ := fmt.Sscanf(l, "%d:%d %s %d", &e.Major, &e.Minor, &e.Op, &e.Value); n == 4 {
			list = append(list, e)
		}
	}
	return list
}

// unified reads cgroup v2 (Documentation/admin-guide/cgroup-v2.rst).
func unified(dir string, s *container.Stats) {
	s.Pids, s.PidsLimit = number(dir, "pids.current"), number(dir, "pids.max")
	cpu := table(dir, "cpu.stat")
	const microsecond = uint64(time.Microsecond)
	s.CPU = container.CPUStats{
		Total: cpu["usage_usec"] * microsecond, User: cpu["user_usec"] * microsecond, Kernel: cpu["system_usec"] * microsecond,
		Periods: cpu["nr_periods"], ThrottledPeriods: cpu["nr_throttled"], ThrottledTime: cpu["throttled_usec"] * microsecond,
	}
	s.Memory = container.MemoryStats{
		Usage: number(dir, "memory.current"), MaxUsage: number(dir, "memory.peak"), Limit: number(dir, "memory.max"),
		Failcnt: table(dir, "memory.events")["max"], Stats: table(dir, "memory.stat"),
	}
	if s.Memory.Limit == 0 {
		s.Memory.Limit = hostMemory()
	}
	b, err := os.ReadFile(filepath.Join(dir, "io.stat"))
	if err != nil {
		return
	}
	for _, l := range strings.Split(string(b), "\n") {
		fields := strings.Fields(l)
		if len(fields) < 2 {
			continue
		}
		var major, minor uint64
		if n, _ := fmt.Sscanf(fields[0], "%d:%d", &major, &minor); n != 2 {
			continue
		}
		for _, pair := range fields[1:] {
			k, v, _ := strings.Cut(pair, "=")
			n, _ := strconv.ParseUint(v, 10, 64)
			e := container.BlkioEntry{Major: major, Minor: minor, Value: n}
			switch k {
			case "rbytes", "wbytes":
				e.Op = map[string]string{"rbytes": "read", "wbytes": "write"}[k]
				s.Blkio.ServiceBytes = append(s.Blkio.ServiceBytes, e)
			case "rios", "wios":
				e.Op = map[string]string{"rios": "read", "wios": "write"}[k]
				s.Blkio.Serviced = append(s.Blkio.Serviced, e)
			}
		}
	}
}

// cgroupsOf finds the cgroups of a process: controller ("" on v2) to path.
func cgroupsOf(pid int) map[string]string {
	groups := map[string]string{}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return groups
	}
	for _, l := range strings.Split(string(b), "\n") {
		parts := strings.SplitN(l, ":", 3)
		if len(parts) != 3 || strings.HasPrefix(parts[1], "name=") {
			continue
		}
		for _, controller := range strings.Split(parts[1], ",") {
			groups[controller] = filepath.Join("/sys/fs/cgroup", controller, parts[2])
		}
	}
	return groups
}

// oomKilled tells whether the kernel has killed anything in a cgroup for memory.
func oomKilled(g map[string]string) bool {
	if g["memory"] != "" {
		return table(g["memory"], "memory.oom_control")["oom_kill"] > 0
	}
	return g[""] != "" && table(g[""], "memory.events")["oom_kill"] > 0
}
