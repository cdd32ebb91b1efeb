// Package system owns what the daemon knows of itself and of its host:
// versions, capabilities of the kernel, defaults and warnings.
package system

import "time"

// Version of the programs and of the host.
type Version struct {
	Berth, Commit, BuildTime, Go string
	Containerd, Runc, Init       string
	OS, Arch, Kernel             string
}

// Info is honest about what the kernel lacks: a false field is a feature
// that containers cannot use here, and Warnings says so in words.
type Info struct {
	ID, Name, DataRoot                                       string
	Started                                                  time.Time
	Containers, Running, Paused, Stopped, Images             int
	StorageDriver                                            string
	StorageStatus                                            [][2]string
	LogDriver                                                string
	LogDrivers, NetworkDrivers, VolumeDrivers                []string
	CgroupDriver, CgroupVersion                              string // "cgroupfs" or "systemd"; "1" or "2"
	Kernel, OperatingSystem, OSVersion, OSType, Architecture string
	CPUs                                                     int
	Memory                                                   int64 // bytes
	MemoryLimit, SwapLimit, CPUCfs, CPUShares, CPUSet, Pids  bool
	KernelMemoryTCP, OomKillDisable, IPv4Forwarding, Blkio   bool
	SecurityOptions                                          []string          // "name=seccomp,profile=builtin"
	Runtimes                                                 map[string]string // name to path or type
	DefaultRuntime, InitBinary                               string
	Debug                                                    bool
	Goroutines, OpenFiles, EventListeners                    int
	HTTPProxy, HTTPSProxy, NoProxy                           string
	Labels                                                   []string
	InsecureRegistries                                       []string
	Mirrors                                                  []string
	AddressPools                                             []AddressPool
	FirewallBackend                                          string
	Warnings                                                 []string
	ContainerdAddress                                        string
	ContainerdNamespace                                      string
}

// AddressPool is where networks take their subnets from.
type AddressPool struct {
	Base string // prefix
	Size int    // length of each subnet's prefix
}
