// Package host tells what the kernel and the machine offer to containers. It
// only looks: it loads no module, changes no setting and knows nothing of Berth.
package host

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Cgroup modes of a host.
const (
	CgroupV1     = "v1"     // controllers are mounted one by one
	CgroupV2     = "v2"     // one tree holds all controllers
	CgroupHybrid = "hybrid" // v1 controllers beside a v2 tree without any
	CgroupNone   = "none"
)

// Facts is what a host offers, as far as an unchanging look can tell.
type Facts struct {
	Kernel       string // release, "6.1.0-18-amd64"
	Distribution string // PRETTY_NAME of os-release
	Version      string // VERSION_ID of os-release
	Arch         string // machine, "x86_64"
	Hostname     string
	CPUs         int
	MemoryBytes  int64

	CgroupMode  string
	Controllers map[string]bool // by name: memory, cpu, cpuset, pids, io or blkio, …
	SwapLimit   bool            // memory.swap can be limited
	Systemd     bool            // systemd is process 1

	// What the controllers can do beyond the common.
	Swappiness, OomKillDisable, BlkioWeight, BlkioWeightDevice, CPURealtime bool

	Overlay, Bridge, Veth, NFTables, IPv6, IPv4Forward bool
	IPVS, Macvlan                                      bool
	Seccomp, SELinux                                   bool
	AppArmor                                           bool // the kernel confines by it
	AppArmorParser                                     bool // the program that gives the kernel profiles is installed
	UserNS, CgroupNS, TimeNS                           bool
	SysResource                                        bool // CAP_SYS_RESOURCE
	Root                                               bool
	PidfdExitInfo                                      bool // kernel ≥ 6.15: exit codes of processes that are not children
}

// Look reads the facts of this host.
func Look() Facts {
	var u unix.Utsname
	_ = unix.Uname(&u)
	f := Facts{
		Kernel:   unix.ByteSliceToString(u.Release[:]),
		Arch:     unix.ByteSliceToString(u.Machine[:]),
		Hostname: unix.ByteSliceToString(u.Nodename[:]),
		Root:     os.Geteuid() == 0,
	}
	f.Distribution, f.Version = release("/etc/os-release")
	f.CPUs = countCPUs()
	f.MemoryBytes = memory("/proc/meminfo")
	f.CgroupMode, f.Controllers = cgroups("/sys/fs/cgroup")
	f.SwapLimit = swapLimit("/sys/fs/cgroup", f.CgroupMode)
	f.abilities("/sys/fs/cgroup")
	_, err := os.Stat("/run/systemd/system")
	f.Systemd = err == nil

	filesystems := words("/proc/filesystems")
	f.Overlay = filesystems["overlay"] || module(f.Kernel, "overlay")
	f.Bridge = exists("/sys/module/bridge") || module(f.Kernel, "bridge")
	f.Veth = exists("/sys/module/veth") || module(f.Kernel, "veth")
	f.Macvlan = exists("/sys/module/macvlan") || module(f.Kernel, "macvlan")
	f.NFTables = exists("/sys/module/nf_tables") || netfilter() || module(f.Kernel, "nf_tables")
	if !f.Bridge || !f.Veth || !f.Macvlan {
		built := symbols("br_dev_setup", "veth_setup", "macvlan_common_setup")
		f.Bridge = f.Bridge || built["br_dev_setup"]
		f.Veth = f.Veth || built["veth_setup"]
		f.Macvlan = f.Macvlan || built["macvlan_common_setup"]
	}
	f.IPVS = exists("/proc/net/ip_vs") || module(f.Kernel, "ip_vs")
	f.IPv6 = exists("/proc/net/if_inet6")
	f.IPv4Forward = line("/proc/sys/net/ipv4/ip_forward") == "1"
	f.Seccomp = exists("/proc/sys/kernel/seccomp/actions_avail")
	f.AppArmor = line("/sys/module/apparmor/parameters/enabled") == "Y" && exists("/sys/kernel/security/apparmor")
	_, err = exec.LookPath("apparmor_parser")
	f.AppArmorParser = err == nil || exists("/sbin/apparmor_parser")
	f.SELinux = exists("/sys/fs/selinux/enforce")
	f.UserNS = exists("/proc/self/ns/user") && line("/proc/sys/user/max_user_namespaces") != "0"
	f.CgroupNS = exists("/proc/self/ns/cgroup")
	f.TimeNS = exists("/proc/self/ns/time")
	f.SysResource = capability(unix.CAP_SYS_RESOURCE)
	f.PidfdExitInfo = AtLeast(f.Kernel, 6, 15)
	return f
}

// AtLeast tells whether a kernel release is at least major.minor.
func AtLeast(release string, major, minor int) bool {
	parts := strings.FieldsFunc(release, func(r rune) bool { return r < '0' || r > '9' })
	if len(parts) < 2 {
		return false
	}
	a, _ := strconv.Atoi(parts[0])
	b, _ := strconv.Atoi(parts[1])
	return a > major || a == major && b >= minor
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// line is the trimmed content of a small file, "" where it cannot be read.
func line(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func words(path string) map[string]bool {
	m := map[string]bool{}
	for _, w := range strings.Fields(line(path)) {
		m[w] = true
	}
	return m
}

// netfilter asks the kernel for a netlink family that only nf_tables answers;
// a kernel with it built in shows no module folder.
func netfilter() bool {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return exists("/proc/sys/net/netfilter")
}

// module tells whether the kernel's package brings a module that would be
// loaded on demand, or has it built in.
func module(kernel, name string) bool {
	dir := filepath.Join("/lib/modules", kernel)
	for _, list := range []string{"modules.dep", "modules.builtin"} {
		f, err := os.Open(filepath.Join(dir, list))
		if err != nil {
			continue
		}
		found := false
		for s := bufio.NewScanner(f); s.Scan() && !found; {
			path, _, _ := strings.Cut(s.Text(), ":")
			base, _, _ := strings.Cut(filepath.Base(path), ".ko")
			found = strings.ReplaceAll(base, "-", "_") == name
		}
		_ = f.Close()
		if found {
			return true
		}
	}
	return false
}

// symbols tells which functions the running kernel has: a kernel without
// modules shows what is built in nowhere else.
func symbols(names ...string) map[string]bool {
	found := map[string]bool{}
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
		return found
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan() && len(found) < len(names); {
		for _, n := range names {
			if strings.HasSuffix(s.Text(), " "+n) {
				found[n] = true
			}
		}
	}
	return found
}

func release(path string) (pretty, version string) {
	for _, l := range strings.Split(line(path), "\n") {
		k, v, _ := strings.Cut(l, "=")
		v = strings.Trim(v, `"'`)
		switch k {
		case "PRETTY_NAME":
			pretty = v
		case "VERSION_ID":
			version = v
		}
	}
	if pretty == "" {
		pretty = "Linux"
	}
	return pretty, version
}

func countCPUs() int {
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) == nil {
		return set.Count()
	}
	return 1
}

func memory(path string) int64 {
	for _, l := range strings.Split(line(path), "\n") {
		if rest, ok := strings.CutPrefix(l, "MemTotal:"); ok {
			kib, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10
		}
	}
	return 0
}

func cgroups(root string) (mode string, controllers map[string]bool) {
	var fs unix.Statfs_t
	if unix.Statfs(root, &fs) != nil {
		return CgroupNone, nil
	}
	if fs.Type == unix.CGROUP2_SUPER_MAGIC {
		return CgroupV2, words(filepath.Join(root, "cgroup.controllers"))
	}
	controllers = map[string]bool{}
	entries, _ := os.ReadDir(root)
	for _, e := range entries {
		path := filepath.Join(root, e.Name())
		if unix.Statfs(path, &fs) == nil && fs.Type == unix.CGROUP_SUPER_MAGIC {
			for _, name := range strings.Split(e.Name(), ",") {
				controllers[name] = true
			}
		}
	}
	switch {
	case len(controllers) == 0:
		return CgroupNone, nil
	case unix.Statfs(filepath.Join(root, "unified"), &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC:
		return CgroupHybrid, controllers
	}
	return CgroupV1, controllers
}

func swapLimit(root, mode string) bool {
	if mode == CgroupV2 {
		// The root group has no such files. A kernel with swap accounting shows
		// them in any child that has the memory controller; on a machine that
		// has just started there may be none.
		swap, _ := filepath.Glob(filepath.Join(root, "*", "memory.swap.max"))
		limited, _ := filepath.Glob(filepath.Join(root, "*", "memory.max"))
		if len(limited) > 0 {
			return len(swap) > 0
		}
		return words(filepath.Join(root, "cgroup.controllers"))["memory"] && exists("/proc/swaps") && !words("/proc/cmdline")["swapaccount=0"]
	}
	return exists(filepath.Join(root, "memory", "memory.memsw.limit_in_bytes"))
}

// abilities looks for files that only some kernels' controllers have.
func (f *Facts) abilities(root string) {
	some := func(patterns ...string) bool {
		for _, p := range patterns {
			if matches, _ := filepath.Glob(filepath.Join(root, p)); len(matches) > 0 {
				return true
			}
		}
		return false
	}
	if f.CgroupMode == CgroupV2 {
		// Without any child that has the controller nothing is known: then the
		// kernel is taken at its best, and a start tells.
		f.BlkioWeight = f.Controllers["io"] && (some("*/io.weight", "*/io.bfq.weight") || !some("*/io.max"))
		f.BlkioWeightDevice = f.Controllers["io"] && some("*/io.bfq.weight")
		return
	}
	// Some files are in no root group but in its children.
	f.Swappiness = some("memory/memory.swappiness")
	f.OomKillDisable = some("memory/memory.oom_control")
	f.BlkioWeight = some("blkio/blkio.weight", "blkio/*/blkio.weight", "blkio/*/blkio.bfq.weight")
	f.BlkioWeightDevice = some("blkio/blkio.weight_device", "blkio/*/blkio.weight_device", "blkio/*/blkio.bfq.weight_device")
	f.CPURealtime = some("cpu/cpu.rt_period_us")
}

func capability(c int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) != nil {
		return false
	}
	return data[c/32].Effective&(1<<(c%32)) != 0
}
