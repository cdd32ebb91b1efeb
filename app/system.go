package app

import (
	"context"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/version"
	"github.com/google/uuid"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/core/system"
	"github.com/berth-project/berth/engine/output"
	"github.com/berth-project/berth/lib/host"
)

// report answers what the daemon knows of itself and of its host.
type report struct {
	d       *daemon
	version system.Version

	mu     sync.Mutex
	static system.Info
}

// reload takes over what may change while the daemon runs.
func (r *report) reload(c Config) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.static.Debug, r.static.Labels, r.static.InsecureRegistries, r.static.Mirrors = c.Debug, c.Labels, c.Insecure, c.Mirrors
}

func (d *daemon) system(ctx context.Context, f host.Facts, b Build, snapshotter, socket string) *report {
	r := &report{d: d}
	keeperInfo, err := d.keeper.Version(ctx)
	if err != nil {
		d.log.Warn("keeper's version is not known", "error", err)
	}
	r.version = system.Version{
		Berth: b.Version, Commit: b.Commit, BuildTime: b.Time, Go: runtime.Version(), Containerd: version.Version, Runc: keeperInfo.Runc,
		OS: "linux", Arch: runtime.GOARCH, Kernel: f.Kernel,
	}
	id, err := d.store.Meta(ctx, "engine-id", uuid.NewString)
	if err != nil {
		d.log.Warn("engine id is not stored", "error", err)
	}
	c := d.c
	r.static = system.Info{
		ID: id, Name: f.Hostname, DataRoot: c.DataRoot, Started: time.Now(), StorageDriver: driverName(snapshotter),
		StorageStatus: [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}, {"snapshotter", snapshotter}},
		LogDriver:     c.LogDriver, LogDrivers: output.Drivers(), NetworkDrivers: []string{"bridge", "host", "ipvlan", "macvlan", "null"}, VolumeDrivers: []string{"local"},
		CgroupDriver: d.cgroups, CgroupVersion: "1", Kernel: f.Kernel, OperatingSystem: f.Distribution, OSVersion: f.Version, OSType: "linux", Architecture: f.Arch,
		CPUs: f.CPUs, Memory: f.MemoryBytes, MemoryLimit: f.Controllers["memory"], SwapLimit: f.SwapLimit, CPUCfs: f.Controllers["cpu"], CPUShares: f.Controllers["cpu"],
		CPUSet: f.Controllers["cpuset"], Pids: f.Controllers["pids"], OomKillDisable: f.OomKillDisable, Blkio: f.Controllers["blkio"] || f.Controllers["io"],
		Runtimes: d.c.runtimeNames(), DefaultRuntime: d.c.Runtime, InitBinary: initPath(c.InitPath), Debug: c.Debug, Labels: c.Labels,
		HTTPProxy: os.Getenv("HTTP_PROXY"), HTTPSProxy: os.Getenv("HTTPS_PROXY"), NoProxy: os.Getenv("NO_PROXY"),
		InsecureRegistries: c.Insecure, Mirrors: c.Mirrors, ContainerdAddress: socket, ContainerdNamespace: "moby",
	}
	if c.IPTables {
		r.static.FirewallBackend = "nftables"
	}
	for _, p := range c.AddressPools {
		r.static.AddressPools = append(r.static.AddressPools, system.AddressPool{Base: p.Base, Size: p.Size})
	}
	if f.CgroupMode == host.CgroupV2 {
		r.static.CgroupVersion = "2"
	}
	if f.AppArmor && f.AppArmorParser {
		r.static.SecurityOptions = append(r.static.SecurityOptions, "name=apparmor")
	}
	if f.Seccomp {
		profile := "builtin"
		if c.Seccomp != "" {
			profile = c.Seccomp
		}
		r.static.SecurityOptions = append(r.static.SecurityOptions, "name=seccomp,profile="+profile)
	}
	if f.SELinux && c.SELinux {
		r.static.SecurityOptions = append(r.static.SecurityOptions, "name=selinux")
	}
	if f.CgroupMode == host.CgroupV2 {
		r.static.SecurityOptions = append(r.static.SecurityOptions, "name=cgroupns")
	}
	r.warn(f)
	return r
}

// warn says what the kernel lacks.
func (r *report) warn(f host.Facts) {
	add := func(good bool, text string) {
		if !good {
			r.static.Warnings = append(r.static.Warnings, "WARNING: "+text)
		}
	}
	add(r.static.MemoryLimit, "No memory limit support")
	add(f.SwapLimit, "No swap limit support")
	add(r.static.CPUCfs, "No cpu cfs quota support")
	add(r.static.CPUSet, "No cpuset support")
	add(r.static.Pids, "No pids limit support")
	add(f.Seccomp, "No seccomp support: system calls are not filtered")
	add(!f.AppArmor || f.AppArmorParser, "AppArmor is on, but apparmor_parser is not installed: containers are not confined by it")
	add(f.SysResource, "CAP_SYS_RESOURCE is missing: limits above this daemon's own are clamped")
}

// Version of the programs and of the host.
func (r *report) Version() system.Version { return r.version }

// Info is honest about what the kernel lacks.
func (r *report) Info(ctx context.Context) (system.Info, error) {
	r.mu.Lock()
	i := r.static
	r.mu.Unlock()
	i.EventListeners = r.d.events.Listeners()
	for _, c := range r.d.containers.All() {
		i.Containers++
		switch c.State.Status {
		case container.Running, container.Restarting:
			i.Running++
		case container.Paused:
			i.Paused++
		default:
			i.Stopped++
		}
	}
	images, err := r.d.images.List(ctx, image.ListOptions{All: true})
	if err != nil {
		return i, err
	}
	i.Images, i.Goroutines = len(images), runtime.NumGoroutine()
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err == nil && len(b) > 0 {
		i.IPv4Forwarding = b[0] == '1'
	}
	if entries, err := os.ReadDir("/proc/self/fd"); err == nil {
		i.OpenFiles = len(entries)
	}
	return i, nil
}
