package docker

import (
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/blkiodev"
	api "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// createBody is the request of a creation, with what old versions say elsewhere.
type createBody struct {
	*api.Config
	HostConfig       *api.HostConfig
	NetworkingConfig *network.NetworkingConfig
	MacAddress       string // until 1.43
}

// toSpec translates a whole request. It loses nothing.
func toSpec(b createBody) (container.Spec, error) {
	if b.Config == nil {
		return container.Spec{}, fault.Invalidf("config cannot be empty in order to create a container")
	}
	h := b.HostConfig
	if h == nil {
		h = &api.HostConfig{}
	}
	s := fromConfig(b.Config)
	fromHost(&s, h)
	s.MacAddress = b.MacAddress
	if s.MacAddress != "" {
		if _, err := net.ParseMAC(s.MacAddress); err != nil {
			return s, fault.Invalidf("%s is not a valid mac address", s.MacAddress)
		}
	}
	var err error
	if s.Mounts, err = toMounts(b.Config, h); err != nil {
		return s, err
	}
	if s.Publish, err = toPublish(h.PortBindings); err != nil {
		return s, err
	}
	for p := range b.Config.ExposedPorts {
		s.Expose = append(s.Expose, toPort(p))
	}
	for _, p := range s.Publish {
		if !slices.Contains(s.Expose, p.Port) {
			s.Expose = append(s.Expose, p.Port)
		}
	}
	slices.SortFunc(s.Expose, comparePorts)
	if n := b.NetworkingConfig; n != nil {
		for name, e := range n.EndpointsConfig {
			s.Endpoints = append(s.Endpoints, toEndpoint(name, e))
		}
		slices.SortFunc(s.Endpoints, func(a, b container.EndpointSpec) int { return strings.Compare(a.Network, b.Network) })
	}
	if len(s.Endpoints) == 1 && (s.NetworkMode == "" || s.NetworkMode == "default") {
		s.NetworkMode = s.Endpoints[0].Network // as docker: the only network named is the one meant
	}
	return s, nil
}

func comparePorts(a, b container.Port) int {
	if a.Number != b.Number {
		return int(a.Number) - int(b.Number)
	}
	return strings.Compare(a.Proto, b.Proto)
}

func fromConfig(c *api.Config) container.Spec {
	s := container.Spec{
		Image: c.Image, Entrypoint: c.Entrypoint, Cmd: c.Cmd, Shell: c.Shell, OnBuild: c.OnBuild, ArgsEscaped: c.ArgsEscaped, Env: c.Env,
		WorkingDir: c.WorkingDir, User: c.User, TTY: c.Tty, OpenStdin: c.OpenStdin, StdinOnce: c.StdinOnce,
		AttachStdin: c.AttachStdin, AttachStdout: c.AttachStdout, AttachStderr: c.AttachStderr,
		StopSignal: c.StopSignal, StopTimeout: c.StopTimeout, Hostname: c.Hostname, Domainname: c.Domainname, Labels: c.Labels, NetworkDisabled: c.NetworkDisabled,
	}
	if h := c.Healthcheck; h != nil {
		s.Health = &container.HealthCheck{Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries}
	}
	return s
}

func fromHost(s *container.Spec, h *api.HostConfig) {
	s.Annotations, s.VolumesFrom, s.VolumeDriver, s.StorageOpt = h.Annotations, h.VolumesFrom, h.VolumeDriver, h.StorageOpt
	s.GroupAdd, s.Umask, s.Init, s.ConsoleSize = h.GroupAdd, h.Umask, h.Init, h.ConsoleSize
	s.Restart = container.RestartPolicy{Name: string(h.RestartPolicy.Name), MaxRetries: h.RestartPolicy.MaximumRetryCount}
	s.AutoRemove, s.ShmSize, s.ReadonlyRoot = h.AutoRemove, h.ShmSize, h.ReadonlyRootfs
	s.MaskedPaths, s.ReadonlyPaths = h.MaskedPaths, h.ReadonlyPaths
	s.NetworkMode, s.PublishAll, s.DNS, s.DNSOptions, s.DNSSearch = string(h.NetworkMode), h.PublishAllPorts, h.DNS, h.DNSOptions, h.DNSSearch
	s.ExtraHosts, s.Links = h.ExtraHosts, h.Links
	s.Privileged, s.CapAdd, s.CapDrop, s.SecurityOpt, s.Sysctls = h.Privileged, h.CapAdd, h.CapDrop, h.SecurityOpt, h.Sysctls
	s.IpcMode, s.PidMode, s.UTSMode, s.UsernsMode = string(h.IpcMode), string(h.PidMode), string(h.UTSMode), string(h.UsernsMode)
	s.CgroupnsMode, s.Cgroup, s.Runtime, s.Isolation = string(h.CgroupnsMode), string(h.Cgroup), h.Runtime, string(h.Isolation)
	s.ContainerIDFile = h.ContainerIDFile
	s.Log = container.LogConfig{Driver: h.LogConfig.Type, Options: h.LogConfig.Config}
	s.Resources = toResources(h.Resources)
	s.Resources.OomScoreAdj = h.OomScoreAdj
}

func toResources(r api.Resources) container.Resources {
	out := container.Resources{
		CPUShares: r.CPUShares, NanoCPUs: r.NanoCPUs, CPUPeriod: r.CPUPeriod, CPUQuota: r.CPUQuota, CPURealtimePeriod: r.CPURealtimePeriod, CPURealtimeRuntime: r.CPURealtimeRuntime,
		CpusetCpus: r.CpusetCpus, CpusetMems: r.CpusetMems, Memory: r.Memory, MemoryReservation: r.MemoryReservation, MemorySwap: r.MemorySwap, MemorySwappiness: r.MemorySwappiness,
		OomKillDisable: r.OomKillDisable, PidsLimit: r.PidsLimit, CgroupParent: r.CgroupParent, BlkioWeight: r.BlkioWeight, DeviceCgroupRules: r.DeviceCgroupRules,
	}
	out.BlkioReadBps, out.BlkioWriteBps = toThrottles(r.BlkioDeviceReadBps), toThrottles(r.BlkioDeviceWriteBps)
	out.BlkioReadIOps, out.BlkioWriteIOps = toThrottles(r.BlkioDeviceReadIOps), toThrottles(r.BlkioDeviceWriteIOps)
	if r.BlkioWeightDevice != nil {
		out.BlkioWeightDevice = []container.WeightDevice{}
	}
	for _, d := range r.BlkioWeightDevice {
		if d != nil {
			out.BlkioWeightDevice = append(out.BlkioWeightDevice, container.WeightDevice{Path: d.Path, Weight: d.Weight})
		}
	}
	for _, d := range r.Devices {
		out.Devices = append(out.Devices, container.Device{PathOnHost: d.PathOnHost, PathInContainer: d.PathInContainer, CgroupPermissions: d.CgroupPermissions})
	}
	for _, d := range r.DeviceRequests {
		out.DeviceRequests = append(out.DeviceRequests, container.DeviceRequest{Driver: d.Driver, Count: d.Count, DeviceIDs: d.DeviceIDs, Capabilities: d.Capabilities, Options: d.Options})
	}
	for _, u := range r.Ulimits {
		if u != nil {
			out.Ulimits = append(out.Ulimits, container.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
		}
	}
	return out
}

// toThrottles keeps an empty list apart from none: it clears limits in an update.
func toThrottles(list []*blkiodev.ThrottleDevice) []container.ThrottleDevice {
	if list == nil {
		return nil
	}
	out := []container.ThrottleDevice{}
	for _, d := range list {
		if d != nil {
			out = append(out, container.ThrottleDevice{Path: d.Path, Rate: d.Rate})
		}
	}
	return out
}

var volumeName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

func toMounts(c *api.Config, h *api.HostConfig) ([]container.Mount, error) {
	var list []container.Mount
	for _, text := range h.Binds {
		m, err := parseBind(text)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	for _, m := range h.Mounts {
		list = append(list, fromMount(m))
	}
	for target, options := range h.Tmpfs {
		list = append(list, container.Mount{Type: container.MountTmpfs, Target: target, Mode: options, Origin: container.FromTmpfs})
	}
	for target := range c.Volumes {
		if !slices.ContainsFunc(list, func(m container.Mount) bool { return m.Target == target }) {
			list = append(list, container.Mount{Type: container.MountVolume, Target: target, Origin: container.FromVolumes})
		}
	}
	slices.SortStableFunc(list, func(a, b container.Mount) int {
		if a.Origin == b.Origin && (a.Origin == container.FromTmpfs || a.Origin == container.FromVolumes) {
			return strings.Compare(a.Target, b.Target) // maps have no order
		}
		return 0
	})
	return list, nil
}

// parseBind reads "source:target[:options]" of -v.
func parseBind(text string) (m container.Mount, err error) {
	bad := fault.Invalidf("invalid volume specification: '%s'", text)
	parts := strings.Split(text, ":")
	m.Origin = container.FromBinds
	switch len(parts) {
	case 1:
		m.Type, m.Target, m.Origin = container.MountVolume, parts[0], container.FromVolumes
		if m.Target == "" {
			return m, bad
		}
		return m, nil
	case 2, 3:
		m.Source, m.Target = parts[0], parts[1]
	default:
		return m, bad
	}
	if m.Source == "" || m.Target == "" {
		return m, bad
	}
	if len(parts) == 3 {
		m.Mode = parts[2]
		if m.Mode == "" {
			return m, bad
		}
	}
	m.Type = container.MountVolume
	if strings.HasPrefix(m.Source, "/") {
		m.Type, m.CreateMountpoint = container.MountBind, true
	} else if !volumeName.MatchString(m.Source) {
		return m, fault.Invalidf("create %s: %q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", m.Source, m.Source)
	}
	for _, o := range strings.Split(m.Mode, ",") {
		switch o {
		case "", "rw", "z", "Z", "consistent", "cached", "delegated", "default":
		case "ro":
			m.ReadOnly = true
		case "nocopy":
			m.NoCopy = true
		case "private", "rprivate", "shared", "rshared", "slave", "rslave":
			m.Propagation = o
		default:
			return m, fault.Invalidf("invalid mode: %s", m.Mode)
		}
	}
	return m, nil
}

func fromMount(m mount.Mount) container.Mount {
	out := container.Mount{Type: string(m.Type), Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly, Consistency: string(m.Consistency), Origin: container.FromMounts}
	if o := m.BindOptions; o != nil {
		out.HasBindOptions = true
		out.Propagation, out.NonRecursive, out.CreateMountpoint = string(o.Propagation), o.NonRecursive, o.CreateMountpoint
		out.ReadOnlyNonRecursive, out.ReadOnlyForceRecursive = o.ReadOnlyNonRecursive, o.ReadOnlyForceRecursive
	}
	if o := m.VolumeOptions; o != nil {
		out.HasVolumeOptions = true
		out.NoCopy, out.Subpath, out.VolumeLabels = o.NoCopy, o.Subpath, o.Labels
		if d := o.DriverConfig; d != nil {
			out.HasDriverConfig, out.VolumeDriver, out.VolumeOptions = true, d.Name, d.Options
		}
	}
	if o := m.ImageOptions; o != nil {
		out.HasImageOptions, out.Subpath = true, o.Subpath
	}
	if o := m.TmpfsOptions; o != nil {
		out.HasTmpfsOptions, out.TmpfsSize, out.TmpfsMode, out.TmpfsOptions = true, o.SizeBytes, uint32(o.Mode), o.Options
	}
	return out
}

func toPort(p network.Port) container.Port {
	return container.Port{Number: p.Num(), Proto: string(p.Proto())}
}

func toPublish(ports network.PortMap) ([]container.Publish, error) {
	var list []container.Publish
	for p, bindings := range ports {
		port := toPort(p)
		switch port.Proto {
		case "tcp", "udp", "sctp":
		default:
			return nil, fault.Invalidf("invalid port specification: %q", p.String())
		}
		if port.Number == 0 {
			return nil, fault.Invalidf("invalid port specification: %q: a container has no port 0", p.String())
		}
		if len(bindings) == 0 {
			bindings = []network.PortBinding{{}}
		}
		for _, b := range bindings {
			one := container.Publish{Port: port, HostIP: b.HostIP}
			if b.HostIP.IsValid() {
				one.HostIPText = b.HostIP.String()
			}
			first, last, ranged := strings.Cut(b.HostPort, "-")
			if !ranged {
				last = ""
			}
			for _, n := range []struct {
				to   *uint16
				text string
			}{{&one.HostPort, first}, {&one.HostPortEnd, last}} {
				if n.text == "" {
					continue
				}
				v, err := strconv.ParseUint(n.text, 10, 16)
				if err != nil {
					return nil, fault.Invalidf("invalid port specification: %q", b.HostPort)
				}
				*n.to = uint16(v)
			}
			if one.HostPortEnd != 0 && one.HostPortEnd < one.HostPort {
				return nil, fault.Invalidf("invalid port specification: %q", b.HostPort)
			}
			list = append(list, one)
		}
	}
	slices.SortStableFunc(list, func(a, b container.Publish) int { return comparePorts(a.Port, b.Port) })
	return list, nil
}

func toEndpoint(name string, e *network.EndpointSettings) container.EndpointSpec {
	s := container.EndpointSpec{Network: name}
	if e == nil {
		return s
	}
	s.Aliases, s.Links, s.DriverOpts, s.GwPriority = e.Aliases, e.Links, e.DriverOpts, e.GwPriority
	if len(e.MacAddress) > 0 {
		s.MacAddress = e.MacAddress.String()
	}
	if i := e.IPAMConfig; i != nil {
		s.HasIPAM, s.IPv4, s.IPv6, s.LinkLocal = true, i.IPv4Address, i.IPv6Address, i.LinkLocalIPs
	}
	return s
}

// Back again.

func config(s container.Spec) *api.Config {
	c := &api.Config{
		Hostname: s.Hostname, Domainname: s.Domainname, User: s.User, AttachStdin: s.AttachStdin, AttachStdout: s.AttachStdout, AttachStderr: s.AttachStderr,
		Tty: s.TTY, OpenStdin: s.OpenStdin, StdinOnce: s.StdinOnce, Env: s.Env, Cmd: s.Cmd, ArgsEscaped: s.ArgsEscaped, Image: s.Image, WorkingDir: s.WorkingDir,
		Entrypoint: s.Entrypoint, NetworkDisabled: s.NetworkDisabled, OnBuild: s.OnBuild, Labels: s.Labels, StopSignal: s.StopSignal, StopTimeout: s.StopTimeout, Shell: s.Shell,
	}
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	if c.Env == nil {
		c.Env = []string{}
	}
	if h := s.Health; h != nil {
		c.Healthcheck = &api.HealthConfig{Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries}
	}
	for _, p := range s.Expose {
		if c.ExposedPorts == nil {
			c.ExposedPorts = network.PortSet{}
		}
		c.ExposedPorts[apiPort(p)] = struct{}{}
	}
	for _, m := range s.Mounts {
		if m.Origin == container.FromVolumes {
			if c.Volumes == nil {
				c.Volumes = map[string]struct{}{}
			}
			c.Volumes[m.Target] = struct{}{}
		}
	}
	return c
}

func apiPort(p container.Port) network.Port {
	port, _ := network.PortFrom(p.Number, network.IPProtocol(p.Proto))
	return port
}

func hostConfig(s container.Spec) *api.HostConfig {
	h := &api.HostConfig{
		ContainerIDFile: s.ContainerIDFile, LogConfig: api.LogConfig{Type: s.Log.Driver, Config: s.Log.Options}, NetworkMode: api.NetworkMode(s.NetworkMode),
		RestartPolicy: api.RestartPolicy{Name: api.RestartPolicyMode(s.Restart.Name), MaximumRetryCount: s.Restart.MaxRetries}, AutoRemove: s.AutoRemove,
		VolumeDriver: s.VolumeDriver, VolumesFrom: s.VolumesFrom, ConsoleSize: s.ConsoleSize, Annotations: s.Annotations, CapAdd: s.CapAdd, CapDrop: s.CapDrop,
		CgroupnsMode: api.CgroupnsMode(s.CgroupnsMode), DNS: s.DNS, DNSOptions: s.DNSOptions, DNSSearch: s.DNSSearch, ExtraHosts: s.ExtraHosts, GroupAdd: s.GroupAdd,
		IpcMode: api.IpcMode(s.IpcMode), Cgroup: api.CgroupSpec(s.Cgroup), Links: s.Links, OomScoreAdj: s.Resources.OomScoreAdj, PidMode: api.PidMode(s.PidMode),
		Privileged: s.Privileged, PublishAllPorts: s.PublishAll, ReadonlyRootfs: s.ReadonlyRoot, SecurityOpt: s.SecurityOpt, StorageOpt: s.StorageOpt,
		UTSMode: api.UTSMode(s.UTSMode), UsernsMode: api.UsernsMode(s.UsernsMode), ShmSize: s.ShmSize, Sysctls: s.Sysctls, Runtime: s.Runtime, Umask: s.Umask,
		Isolation: api.Isolation(s.Isolation), MaskedPaths: s.MaskedPaths, ReadonlyPaths: s.ReadonlyPaths, Init: s.Init,
		Resources: fromResources(s.Resources),
	}
	if h.LogConfig.Config == nil {
		h.LogConfig.Config = map[string]string{}
	}
	if h.MaskedPaths == nil && !s.Privileged {
		h.MaskedPaths, h.ReadonlyPaths = defaultMasked, defaultReadonly
	}
	h.PortBindings = network.PortMap{}
	for _, p := range s.Publish {
		b := network.PortBinding{HostIP: p.HostIP}
		if p.HostPort != 0 {
			b.HostPort = strconv.Itoa(int(p.HostPort))
		}
		if p.HostPortEnd != 0 {
			b.HostPort += "-" + strconv.Itoa(int(p.HostPortEnd))
		}
		h.PortBindings[apiPort(p.Port)] = append(h.PortBindings[apiPort(p.Port)], b)
	}
	for _, m := range s.Mounts {
		switch m.Origin {
		case container.FromBinds:
			text := m.Source + ":" + m.Target
			if m.Mode != "" {
				text += ":" + m.Mode
			}
			h.Binds = append(h.Binds, text)
		case container.FromTmpfs:
			if h.Tmpfs == nil {
				h.Tmpfs = map[string]string{}
			}
			h.Tmpfs[m.Target] = m.Mode
		case container.FromMounts:
			h.Mounts = append(h.Mounts, toMount(m))
		}
	}
	return h
}

// What an engine shows where the person said nothing; the same lists as the
// runtime's defaults.
var (
	defaultMasked = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	defaultReadonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

func toMount(m container.Mount) mount.Mount {
	out := mount.Mount{Type: mount.Type(m.Type), Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly, Consistency: mount.Consistency(m.Consistency)}
	if m.HasBindOptions {
		out.BindOptions = &mount.BindOptions{Propagation: mount.Propagation(m.Propagation), NonRecursive: m.NonRecursive, CreateMountpoint: m.CreateMountpoint,
			ReadOnlyNonRecursive: m.ReadOnlyNonRecursive, ReadOnlyForceRecursive: m.ReadOnlyForceRecursive}
	}
	if m.HasVolumeOptions {
		out.VolumeOptions = &mount.VolumeOptions{NoCopy: m.NoCopy, Labels: m.VolumeLabels, Subpath: m.Subpath}
		if m.HasDriverConfig {
			out.VolumeOptions.DriverConfig = &mount.Driver{Name: m.VolumeDriver, Options: m.VolumeOptions}
		}
	}
	if m.HasImageOptions {
		out.ImageOptions = &mount.ImageOptions{Subpath: m.Subpath}
	}
	if m.HasTmpfsOptions {
		out.TmpfsOptions = &mount.TmpfsOptions{SizeBytes: m.TmpfsSize, Mode: fileMode(m.TmpfsMode), Options: m.TmpfsOptions}
	}
	return out
}

func endpointSettings(e container.Endpoint, spec container.EndpointSpec) *network.EndpointSettings {
	s := &network.EndpointSettings{
		Links: spec.Links, Aliases: spec.Aliases, DriverOpts: spec.DriverOpts, GwPriority: spec.GwPriority,
		NetworkID: e.NetworkID, EndpointID: e.EndpointID, DNSNames: e.DNSNames,
		Gateway: e.Gateway4, IPv6Gateway: e.Gateway6,
	}
	if e.IPv4.IsValid() {
		s.IPAddress, s.IPPrefixLen = e.IPv4.Addr(), e.IPv4.Bits()
	}
	if e.IPv6.IsValid() {
		s.GlobalIPv6Address, s.GlobalIPv6PrefixLen = e.IPv6.Addr(), e.IPv6.Bits()
	}
	if mac, err := net.ParseMAC(orElse(e.MacAddress, spec.MacAddress)); err == nil {
		s.MacAddress = network.HardwareAddr(mac)
	}
	if spec.HasIPAM {
		s.IPAMConfig = &network.EndpointIPAMConfig{IPv4Address: spec.IPv4, IPv6Address: spec.IPv6, LinkLocalIPs: spec.LinkLocal}
	}
	return s
}

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func fromResources(r container.Resources) api.Resources {
	out := api.Resources{
		CPUShares: r.CPUShares, NanoCPUs: r.NanoCPUs, CPUPeriod: r.CPUPeriod, CPUQuota: r.CPUQuota, CPURealtimePeriod: r.CPURealtimePeriod, CPURealtimeRuntime: r.CPURealtimeRuntime,
		CpusetCpus: r.CpusetCpus, CpusetMems: r.CpusetMems, Memory: r.Memory, MemoryReservation: r.MemoryReservation, MemorySwap: r.MemorySwap, MemorySwappiness: r.MemorySwappiness,
		OomKillDisable: r.OomKillDisable, PidsLimit: r.PidsLimit, CgroupParent: r.CgroupParent, BlkioWeight: r.BlkioWeight, DeviceCgroupRules: r.DeviceCgroupRules,
		BlkioWeightDevice: []*blkiodev.WeightDevice{}, BlkioDeviceReadBps: throttles(r.BlkioReadBps), BlkioDeviceWriteBps: throttles(r.BlkioWriteBps),
		BlkioDeviceReadIOps: throttles(r.BlkioReadIOps), BlkioDeviceWriteIOps: throttles(r.BlkioWriteIOps), Devices: []api.DeviceMapping{}, Ulimits: []*api.Ulimit{},
	}
	for _, d := range r.BlkioWeightDevice {
		out.BlkioWeightDevice = append(out.BlkioWeightDevice, &blkiodev.WeightDevice{Path: d.Path, Weight: d.Weight})
	}
	for _, d := range r.Devices {
		out.Devices = append(out.Devices, api.DeviceMapping{PathOnHost: d.PathOnHost, PathInContainer: d.PathInContainer, CgroupPermissions: d.CgroupPermissions})
	}
	for _, d := range r.DeviceRequests {
		out.DeviceRequests = append(out.DeviceRequests, api.DeviceRequest{Driver: d.Driver, Count: d.Count, DeviceIDs: d.DeviceIDs, Capabilities: d.Capabilities, Options: d.Options})
	}
	for _, u := range r.Ulimits {
		out.Ulimits = append(out.Ulimits, &api.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	return out
}

func throttles(list []container.ThrottleDevice) []*blkiodev.ThrottleDevice {
	out := []*blkiodev.ThrottleDevice{}
	for _, d := range list {
		out = append(out, &blkiodev.ThrottleDevice{Path: d.Path, Rate: d.Rate})
	}
	return out
}
