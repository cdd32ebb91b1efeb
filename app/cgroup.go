package app

import (
	"fmt"
	"strings"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/host"
)

// Drivers of cgroups, as clients name them.
const (
	driverSystemd  = "systemd"
	driverCgroupfs = "cgroupfs"
)

// cgroupDriver is who makes the containers' cgroups: systemd where it is
// process 1 on cgroup v2, this engine elsewhere, unless --exec-opt names one.
func (c Config) cgroupDriver(f host.Facts) (string, error) {
	driver := driverCgroupfs
	if f.Systemd && f.CgroupMode == host.CgroupV2 {
		driver = driverSystemd
	}
	for _, o := range c.ExecOpts {
		name, value, _ := strings.Cut(o, "=")
		switch {
		case name != "native.cgroupdriver":
			return "", fmt.Errorf("--exec-opt %s is not known: use native.cgroupdriver=systemd or native.cgroupdriver=cgroupfs", o)
		case value == driverSystemd && !f.Systemd:
			return "", fmt.Errorf("--exec-opt %s: systemd is not process 1 here", o)
		case value != driverSystemd && value != driverCgroupfs:
			return "", fmt.Errorf("native.cgroupdriver option %s not supported", value)
		}
		driver = value
	}
	if driver == driverSystemd && c.CgroupParent != "" && !strings.HasSuffix(c.CgroupParent, ".slice") {
		return "", fmt.Errorf("--cgroup-parent %s: cgroup-parent for systemd cgroup should be a valid slice named as \"xxx.slice\"", c.CgroupParent)
	}
	return driver, nil
}

// cgroupName is the folder of the containers' cgroups, or what the names of
// their scopes begin with.
func (c Config) cgroupName() string {
	if k := c.key(); k != "" {
		return "berth-" + k
	}
	return "berth"
}

// cgroupParent is where the containers' cgroups are unless they say otherwise.
func (c Config) cgroupParent(driver string) string {
	switch {
	case c.CgroupParent != "":
		return c.CgroupParent
	case driver == driverSystemd:
		return "system.slice"
	}
	return "/" + c.cgroupName()
}

// stepParent is the same for the steps of builds: a folder, or for systemd what
// the builder puts before a step's name: slice, prefix and a last colon.
func (c Config) stepParent(driver string) string {
	if driver == driverSystemd {
		return c.cgroupParent(driver) + ":" + c.cgroupName() + "-build:"
	}
	return c.cgroupParent(driver)
}

// keeperCgroup is beside the containers' and outside the daemon's own.
func (c Config) keeperCgroup() string {
	if k := c.key(); k != "" {
		return "/berth-keeper-" + k
	}
	return "/berth-keeper"
}

// cgroupnsMode is the cgroup namespace of a container that asks for none.
func (c Config) cgroupnsMode(f host.Facts) (string, error) {
	switch c.CgroupnsMode {
	case "host", "private":
		return c.CgroupnsMode, nil
	case "":
		if f.CgroupMode == host.CgroupV2 && f.CgroupNS {
			return "private", nil
		}
		return "host", nil
	}
	return "", fmt.Errorf("--default-cgroupns-mode %s is not known: use private or host", c.CgroupnsMode)
}

// hostLimits tells core what this host can enforce.
func hostLimits(f host.Facts, driver string) container.HostLimits {
	return container.HostLimits{
		CPUs: f.CPUs, Memory: f.MemoryBytes, SwapLimit: f.SwapLimit, Pids: f.Controllers["pids"], Slices: driver == driverSystemd,
		Swappiness: f.Swappiness, OomKillDisable: f.OomKillDisable, BlkioWeight: f.BlkioWeight, BlkioWeightDevice: f.BlkioWeightDevice, CPURealtime: f.CPURealtime,
	}
}
