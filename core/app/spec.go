package app

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// maker turns a service into what the container service takes. It decides
// nothing: the same service gives the same Spec.
type maker struct {
	app    *App
	sep    string
	images map[string]Image
	names  func(service string) []string // of the containers there are, for links
	first  func(service string) (id string, ok bool)
}

// wish is one container to make.
type wish struct {
	service  types.ServiceConfig
	number   int    // 0: a one-off
	replaces string // id of the container that it replaces, for the label
	inherit  []container.MountPoint
	aliases  bool
	labels   map[string]string // over the service's
}

// spec gives the container of a service.
func (m *maker) spec(w wish) (container.Spec, error) {
	p := m.app.Project
	labels := m.app.labels(w.service)
	s, err := resolve(w.service, m.first)
	if err != nil {
		return container.Spec{}, err
	}
	here := func(ref string) bool { _, ok := m.images[ref]; return ok }
	resolveImageVolumes(&s, p.Name, m.sep, here)
	if err := refuse(s); err != nil {
		return container.Spec{}, fault.Unsupportedf("services.%s.%w", s.Name, err)
	}
	fail := func(attribute string, err error) (container.Spec, error) {
		return container.Spec{}, fault.Invalidf("services.%s.%s: %w", s.Name, attribute, err)
	}
	hash, err := ServiceHash(s)
	if err != nil {
		return fail("", err)
	}
	image := ImageName(p.Name, w.service, m.sep)
	labels[LabelHash] = hash
	if i, ok := m.images[image]; ok {
		labels[LabelImage] = i.label()
	}
	if v := imageVolumes(s, m.images); v != "" {
		labels[LabelImageVolumes] = v
	}
	if w.number > 0 {
		labels[LabelNumber] = strconv.Itoa(w.number)
	}
	if w.replaces != "" {
		labels[LabelReplace] = fmt.Sprintf("%s-%d", s.Name, w.number)
		if s.ContainerName != "" {
			labels[LabelReplace] = s.ContainerName
		}
	}
	maps.Copy(labels, w.labels)
	out := container.Spec{
		Image: image, Entrypoint: s.Entrypoint, Cmd: s.Command, Env: environment(s.Environment), WorkingDir: s.WorkingDir, User: s.User, GroupAdd: s.GroupAdd,
		Umask: s.Umask, TTY: s.Tty, OpenStdin: s.StdinOpen, AttachStdout: true, AttachStderr: true, StopSignal: s.StopSignal, StopTimeout: seconds(s.StopGracePeriod), Init: s.Init,
		Hostname: s.Hostname, Domainname: s.DomainName, Labels: labels, Annotations: s.Annotations, Restart: restartPolicy(s),
		VolumeDriver: s.VolumeDriver, VolumesFrom: s.VolumesFrom, StorageOpt: s.StorageOpt, ShmSize: int64(s.ShmSize), ReadonlyRoot: s.ReadOnly,
		DNSOptions: s.DNSOpts, DNSSearch: s.DNSSearch, ExtraHosts: hosts(s.ExtraHosts), NetworkDisabled: s.NetworkMode == "disabled",
		Privileged: s.Privileged, CapAdd: s.CapAdd, CapDrop: s.CapDrop, Sysctls: s.Sysctls, IpcMode: s.Ipc, PidMode: s.Pid, UTSMode: s.Uts, UsernsMode: s.UserNSMode,
		CgroupnsMode: s.Cgroup, Runtime: s.Runtime, Isolation: s.Isolation, Resources: resources(s),
	}
	if s.Logging != nil {
		out.Log = container.LogConfig{Driver: s.Logging.Driver, Options: s.Logging.Options}
	}
	if out.Health, err = healthCheck(s.HealthCheck); err != nil {
		return fail("healthcheck", err)
	}
	for _, text := range s.DNS {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return fail("dns", err)
		}
		out.DNS = append(out.DNS, a)
	}
	if out.Publish, out.Expose, err = ports(s); err != nil {
		return fail("ports", err)
	}
	if err := m.security(s, &out); err != nil {
		return fail("security_opt", err)
	}
	links := m.links(s, w)
	if out.NetworkMode, out.Endpoints, err = m.networks(s, w, links); err != nil {
		return fail("networks", err)
	}
	if out.NetworkMode == "bridge" || out.NetworkMode == "default" {
		out.Links = links
	}
	if out.Mounts, err = m.mounts(s, w.inherit, image); err != nil {
		return fail("volumes", err)
	}
	for _, t := range s.Tmpfs {
		target, options, _ := strings.Cut(t, ":")
		out.Mounts = append(out.Mounts, container.Mount{Type: container.MountTmpfs, Target: target, Mode: options, Origin: container.FromTmpfs})
	}
	return out, nil
}

// refuse names what has no meaning on this engine.
func refuse(s types.ServiceConfig) error {
	switch {
	case s.Provider != nil:
		return fmt.Errorf("provider: no provider %q is known to the daemon", s.Provider.Type)
	case len(s.Models) > 0:
		return fmt.Errorf("models: there is no runner of models")
	case s.UseAPISocket:
		return fmt.Errorf("use_api_socket: mount the socket by volumes instead")
	case s.CredentialSpec != nil:
		return fmt.Errorf("credential_spec: it is for Windows")
	case s.Isolation != "" && s.Isolation != "default":
		return fmt.Errorf("isolation: %s is for Windows", s.Isolation)
	case s.CPUCount != 0 || s.CPUPercent != 0:
		return fmt.Errorf("cpu_count, cpu_percent: they are for Windows; use cpus")
	}
	if s.Build != nil && s.Build.Isolation != "" && s.Build.Isolation != "default" {
		return fmt.Errorf("build.isolation: %s is for Windows", s.Build.Isolation)
	}
	if _, _, err := servicePull(s); err != nil {
		return fmt.Errorf("pull_policy: %w", err)
	}
	if d := s.Deploy; d != nil {
		if r := d.Resources.Reservations; r != nil && len(r.GenericResources) > 0 {
			return fmt.Errorf("deploy.resources.reservations.generic_resources: none are known on one machine; use devices or gpus")
		}
		switch {
		case d.EndpointMode != "" && d.EndpointMode != "vip" && d.EndpointMode != "dnsrr":
			return fmt.Errorf("deploy.endpoint_mode: %s is not known", d.EndpointMode)
		case d.Mode != "" && !slices.Contains([]string{"replicated", "global", "replicated-job", "global-job"}, d.Mode):
			return fmt.Errorf("deploy.mode: %s is not known", d.Mode)
		case d.UpdateConfig != nil && !known(d.UpdateConfig, "pause", "continue", "rollback"):
			return fmt.Errorf("deploy.update_config: order is start-first or stop-first, failure_action pause, continue or rollback")
		case d.RollbackConfig != nil && !known(d.RollbackConfig, "pause", "continue"):
			return fmt.Errorf("deploy.rollback_config: order is start-first or stop-first, failure_action pause or continue")
		case d.Placement.MaxReplicas > 0 && s.GetScale() > int(d.Placement.MaxReplicas):
			return fmt.Errorf("deploy.placement.max_replicas_per_node: %d are wanted on this one machine, %d allowed", s.GetScale(), d.Placement.MaxReplicas)
		}
	}
	for _, v := range s.Volumes {
		switch v.Type {
		case types.VolumeTypeBind, types.VolumeTypeVolume, types.VolumeTypeTmpfs, types.VolumeTypeImage:
		default:
			return fmt.Errorf("volumes: the type %s of %s is not supported here", v.Type, v.Target)
		}
	}
	return nil
}

func known(u *types.UpdateConfig, failures ...string) bool {
	return slices.Contains([]string{"", "start-first", "stop-first"}, u.Order) && (u.FailureAction == "" || slices.Contains(failures, u.FailureAction))
}

func environment(m types.MappingWithEquals) (env []string) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if v := m[k]; v != nil {
			env = append(env, k+"="+*v)
		} else {
			env = append(env, k)
		}
	}
	return env
}

func hosts(m types.HostsList) []string {
	list := m.AsList(":")
	slices.Sort(list)
	return list
}

func seconds(d *types.Duration) *int {
	if d == nil {
		return nil
	}
	n := int(time.Duration(*d).Seconds())
	return &n
}

func restartPolicy(s types.ServiceConfig) (r container.RestartPolicy) {
	named := map[string]string{"none": container.RestartNo, "no": container.RestartNo, "any": container.RestartAlways, "": ""}
	word := func(name string) string {
		if to, ok := named[name]; ok {
			return to
		}
		return name
	}
	if s.Restart != "" {
		name, times, _ := strings.Cut(s.Restart, ":")
		r.Name = word(name)
		r.MaxRetries, _ = strconv.Atoi(times)
	}
	if s.Deploy != nil && s.Deploy.RestartPolicy != nil {
		r = container.RestartPolicy{Name: word(s.Deploy.RestartPolicy.Condition)}
		if r.Name == "" {
			r.Name = container.RestartAlways // "any" is what the specification says
		}
		if n := s.Deploy.RestartPolicy.MaxAttempts; n != nil {
			r.MaxRetries = int(*n)
		}
		if w := s.Deploy.RestartPolicy.Window; w != nil {
			r.Window = time.Duration(*w)
		}
		if r.Name != container.RestartOnFailure {
			r.MaxRetries = 0
		}
	}
	return r
}

func healthCheck(h *types.HealthCheckConfig) (*container.HealthCheck, error) {
	if h == nil {
		return nil, nil
	}
	if h.Disable {
		return &container.HealthCheck{Test: []string{"NONE"}}, nil
	}
	if h.StartInterval != nil && h.StartPeriod == nil {
		return nil, fmt.Errorf("start_interval needs start_period")
	}
	out := &container.HealthCheck{Test: h.Test}
	for _, f := range []struct {
		to   *time.Duration
		from *types.Duration
	}{{&out.Interval, h.Interval}, {&out.Timeout, h.Timeout}, {&out.StartPeriod, h.StartPeriod}, {&out.StartInterval, h.StartInterval}} {
		if f.from != nil {
			*f.to = time.Duration(*f.from)
		}
	}
	if h.Retries != nil {
		out.Retries = int(*h.Retries)
	}
	return out, nil
}

func resources(s types.ServiceConfig) container.Resources {
	kill := s.OomKillDisable
	r := container.Resources{
		CgroupParent: s.CgroupParent, Memory: int64(s.MemLimit), MemorySwap: int64(s.MemSwapLimit), MemoryReservation: int64(s.MemReservation), OomKillDisable: &kill, OomScoreAdj: int(s.OomScoreAdj),
		CPUPeriod: s.CPUPeriod, CPUQuota: s.CPUQuota, CPURealtimePeriod: s.CPURTPeriod, CPURealtimeRuntime: s.CPURTRuntime, CPUShares: s.CPUShares, NanoCPUs: int64(s.CPUS * 1e9),
		CpusetCpus: s.CPUSet, DeviceCgroupRules: s.DeviceCgroupRules,
	}
	if s.MemSwappiness != 0 {
		n := int64(s.MemSwappiness)
		r.MemorySwappiness = &n
	}
	if s.PidsLimit != 0 {
		n := s.PidsLimit
		r.PidsLimit = &n
	}
	if b := s.BlkioConfig; b != nil {
		r.BlkioWeight = b.Weight
		for _, d := range b.WeightDevice {
			r.BlkioWeightDevice = append(r.BlkioWeightDevice, container.WeightDevice{Path: d.Path, Weight: d.Weight})
		}
		for _, f := range []struct {
			to   *[]container.ThrottleDevice
			from []types.ThrottleDevice
		}{{&r.BlkioReadBps, b.DeviceReadBps}, {&r.BlkioReadIOps, b.DeviceReadIOps}, {&r.BlkioWriteBps, b.DeviceWriteBps}, {&r.BlkioWriteIOps, b.DeviceWriteIOps}} {
			for _, d := range f.from {
				*f.to = append(*f.to, container.ThrottleDevice{Path: d.Path, Rate: uint64(d.Rate)})
			}
		}
	}
	if s.Deploy != nil {
		deployResources(s.Deploy.Resources, &r)
	}
	var cdi []string
	for _, d := range s.Devices {
		if d.Source == d.Target && isCDI(d.Source) {
			cdi = append(cdi, d.Source)
			continue
		}
		r.Devices = append(r.Devices, container.Device{PathOnHost: d.Source, PathInContainer: d.Target, CgroupPermissions: d.Permissions})
	}
	if len(cdi) > 0 {
		r.DeviceRequests = append(r.DeviceRequests, container.DeviceRequest{Driver: "cdi", DeviceIDs: cdi})
	}
	for _, g := range s.Gpus {
		r.DeviceRequests = append(r.DeviceRequests, container.DeviceRequest{Driver: g.Driver, Count: int(g.Count), DeviceIDs: g.IDs, Capabilities: [][]string{append(slices.Clone(g.Capabilities), "gpu")}, Options: g.Options})
	}
	for _, name := range slices.Sorted(maps.Keys(s.Ulimits)) {
		u := s.Ulimits[name]
		if u == nil {
			continue
		}
		limit := container.Ulimit{Name: name, Soft: int64(u.Single), Hard: int64(u.Single)}
		if u.Soft != 0 {
			limit.Soft = int64(u.Soft)
		}
		if u.Hard != 0 {
			limit.Hard = int64(u.Hard)
		}
		r.Ulimits = append(r.Ulimits, limit)
	}
	return r
}

// isCDI tells vendor/class=name from a path (Container Device Interface, "Device names").
func isCDI(name string) bool {
	kind, device, ok := strings.Cut(name, "=")
	vendor, class, ok2 := strings.Cut(kind, "/")
	return ok && ok2 && vendor != "" && class != "" && device != "" && !strings.Contains(class, "/")
}

func deployResources(d types.Resources, r *container.Resources) {
	if l := d.Limits; l != nil {
		if l.MemoryBytes != 0 {
			r.Memory = int64(l.MemoryBytes)
		}
		if l.NanoCPUs != 0 {
			r.NanoCPUs = int64(l.NanoCPUs * 1e9)
		}
		if l.Pids > 0 {
			n := l.Pids
			r.PidsLimit = &n
		}
	}
	if l := d.Reservations; l != nil {
		if l.MemoryBytes != 0 {
			r.MemoryReservation = int64(l.MemoryBytes)
		}
		for _, x := range l.Devices {
			r.DeviceRequests = append(r.DeviceRequests, container.DeviceRequest{Capabilities: [][]string{x.Capabilities}, Count: int(x.Count), DeviceIDs: x.IDs, Driver: x.Driver, Options: x.Options})
		}
	}
}

// ports gives what is published, and all that is exposed.
func ports(s types.ServiceConfig) (publish []container.Publish, expose []container.Port, err error) {
	for _, p := range s.Ports {
		if p.Target == 0 || p.Target > 65535 {
			return nil, nil, fmt.Errorf("%d is no port", p.Target)
		}
		one := container.Publish{Port: container.Port{Number: uint16(p.Target), Proto: p.Protocol}, HostIPText: p.HostIP}
		switch one.Proto {
		case "":
			one.Proto = "tcp"
		case "tcp", "udp", "sctp":
		default:
			return nil, nil, fmt.Errorf("the protocol %q is not known", p.Protocol)
		}
		if p.HostIP != "" {
			if one.HostIP, err = netip.ParseAddr(p.HostIP); err != nil {
				return nil, nil, err
			}
		}
		if one.HostPort, one.HostPortEnd, err = portRange(p.Published); err != nil {
			return nil, nil, err
		}
		publish, expose = append(publish, one), append(expose, one.Port)
	}
	for _, text := range s.Expose {
		number, proto, ok := strings.Cut(text, "/")
		if !ok {
			proto = "tcp"
		}
		first, last, err := portRange(number)
		if err != nil || first == 0 {
			return nil, nil, fmt.Errorf("expose: %q is no port", text)
		}
		for n := int(first); n <= int(max(first, last)); n++ {
			expose = append(expose, container.Port{Number: uint16(n), Proto: proto})
		}
	}
	slices.SortFunc(expose, func(a, b container.Port) int {
		if a.Number != b.Number {
			return int(a.Number) - int(b.Number)
		}
		return strings.Compare(a.Proto, b.Proto)
	})
	return publish, slices.Compact(expose), nil
}

func portRange(text string) (first, last uint16, err error) {
	if text == "" {
		return 0, 0, nil
	}
	a, b, ranged := strings.Cut(text, "-")
	n, err := strconv.ParseUint(a, 10, 16)
	if err != nil || !ranged {
		return uint16(n), 0, err
	}
	m, err := strconv.ParseUint(b, 10, 16)
	if err == nil && m < n {
		err = fmt.Errorf("%q ends before it begins", text)
	}
	return uint16(n), uint16(m), err
}

func (m *maker) security(s types.ServiceConfig, out *container.Spec) error {
	for _, opt := range s.SecurityOpt {
		if opt == "systempaths=unconfined" {
			out.MaskedPaths, out.ReadonlyPaths = []string{}, []string{}
			continue
		}
		if path, ok := seccompPath(opt); ok {
			text, ok := m.app.Files[path]
			if !ok {
				return fmt.Errorf("the text of %s did not come with the document", path)
			}
			var profile json.RawMessage
			if err := json.Unmarshal([]byte(text), &profile); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			opt = "seccomp=" + text
		} else if key, value, ok := strings.Cut(opt, ":"); ok && !strings.Contains(key, "=") && key != "label" {
			opt = key + "=" + value
		}
		out.SecurityOpt = append(out.SecurityOpt, opt)
	}
	return nil
}

// links gives "container:alias" for the containers of linked services.
func (m *maker) links(s types.ServiceConfig, w wish) (list []string) {
	for _, l := range s.Links {
		service, alias, ok := strings.Cut(l, ":")
		if !ok {
			alias = service
		}
		for _, name := range m.names(service) {
			number := strconv.Itoa(max(w.number, 1))
			list = append(list, name+":"+alias, name+":"+service+m.sep+number, name+":"+m.app.Project.Name+m.sep+service+m.sep+number)
		}
	}
	if w.number == 0 {
		for _, name := range m.names(s.Name) {
			list = append(list, name+":"+s.Name, name+":"+strings.TrimPrefix(name, m.app.Project.Name+m.sep), name+":"+name)
		}
	}
	for _, l := range s.ExternalLinks {
		name, alias, ok := strings.Cut(l, ":")
		if !ok {
			alias = name
		}
		list = append(list, name+":"+alias)
	}
	return list
}

// networks gives the mode and the endpoints, that of the first network first.
func (m *maker) networks(s types.ServiceConfig, w wish, links []string) (mode string, list []container.EndpointSpec, err error) {
	p := m.app.Project
	switch {
	case s.NetworkMode != "":
		return s.NetworkMode, nil, nil
	case len(p.Networks) == 0 || len(s.Networks) == 0:
		return "none", nil, nil
	}
	for _, key := range s.NetworksByPriority() {
		n, ok := p.Networks[key]
		if !ok {
			return "", nil, fmt.Errorf("%s is not declared", key)
		}
		e := container.EndpointSpec{Network: n.Name, Links: links, HasIPAM: true, Aliases: []string{containerName(p.Name, s, w.number, m.sep)}}
		if w.aliases && s.Networks[key].ServiceNameAliasEnabled() {
			e.Aliases = append(e.Aliases, s.Name)
		}
		if c := s.Networks[key]; c != nil {
			if w.aliases {
				e.Aliases = append(e.Aliases, c.Aliases...)
			}
			if err := address(&e, *c); err != nil {
				return "", nil, fmt.Errorf("%s: %w", key, err)
			}
		}
		if len(list) == 0 && s.MacAddress != "" {
			if e.MacAddress != "" && e.MacAddress != s.MacAddress {
				return "", nil, fmt.Errorf("%s: mac_address differs from the service's", key)
			}
			e.MacAddress = s.MacAddress
		}
		if e.MacAddress != "" {
			if _, err := net.ParseMAC(e.MacAddress); err != nil {
				return "", nil, err
			}
		}
		list = append(list, e)
	}
	return list[0].Network, list, nil
}

func address(e *container.EndpointSpec, c types.ServiceNetworkConfig) (err error) {
	if c.Ipv4Address != "" {
		if e.IPv4, err = netip.ParseAddr(c.Ipv4Address); err != nil {
			return err
		}
	}
	if c.Ipv6Address != "" {
		if e.IPv6, err = netip.ParseAddr(c.Ipv6Address); err != nil {
			return err
		}
	}
	for _, text := range c.LinkLocalIPs {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		e.LinkLocal = append(e.LinkLocal, a)
	}
	e.MacAddress, e.GwPriority = c.MacAddress, c.GatewayPriority
	e.DriverOpts = maps.Clone(map[string]string(c.DriverOpts))
	if c.InterfaceName != "" {
		if e.DriverOpts == nil {
			e.DriverOpts = map[string]string{}
		}
		const option = "com.docker.network.endpoint.ifname"
		if _, ok := e.DriverOpts[option]; !ok {
			e.DriverOpts[option] = c.InterfaceName
		}
	}
	return nil
}

// mounts of volumes, secrets and configs; of two at one place the first wins.
func (m *maker) mounts(s types.ServiceConfig, inherit []container.MountPoint, image string) ([]container.Mount, error) {
	var list []container.Mount
	taken := func(target string) bool {
		return slices.ContainsFunc(list, func(o container.Mount) bool { return path.Clean(o.Target) == path.Clean(target) })
	}
	for _, v := range s.Volumes {
		one, err := m.mount(v)
		if err != nil {
			return nil, err
		}
		if one.Type == container.MountVolume && one.Source == "" {
			// An anonymous volume goes on in the replacement.
			for _, old := range inherit {
				if old.Type == container.MountVolume && old.Destination == path.Clean(v.Target) {
					one.Source = old.Name
				}
			}
		}
		list = append(list, one)
	}
	for _, old := range inherit {
		if old.Type == container.MountVolume && slices.Contains(m.images[image].Volumes, old.Destination) && !taken(old.Destination) {
			list = append(list, container.Mount{Type: container.MountVolume, Source: old.Name, Target: old.Destination, ReadOnly: !old.RW, Origin: container.FromMounts})
		}
	}
	for _, f := range m.references(s) {
		if f.bind == "" || taken(f.target) {
			continue
		}
		list = append(list, container.Mount{Type: container.MountBind, Source: f.bind, Target: f.target, ReadOnly: true, Origin: container.FromMounts, HasBindOptions: f.kind == "secret"})
	}
	return list, nil
}

func (m *maker) mount(v types.ServiceVolumeConfig) (container.Mount, error) {
	out := container.Mount{Type: v.Type, Source: v.Source, Target: v.Target, ReadOnly: v.ReadOnly, Consistency: v.Consistency, Origin: container.FromMounts}
	access := "rw"
	if v.ReadOnly {
		access = "ro"
	}
	switch v.Type {
	case types.VolumeTypeBind:
		if !path.IsAbs(out.Source) {
			out.Source = path.Join(m.app.Project.WorkingDir, out.Source)
		}
		b := v.Bind
		if b == nil || bool(b.CreateHostPath) && b.Propagation == "" && b.Recursive == "" {
			out.Origin, out.CreateMountpoint, out.Mode = container.FromBinds, true, access
			if b != nil && b.SELinux != "" {
				out.Mode += "," + b.SELinux
			}
			return out, nil
		}
		out.HasBindOptions, out.Propagation, out.CreateMountpoint = true, b.Propagation, bool(b.CreateHostPath)
		switch b.Recursive {
		case "disabled":
			out.NonRecursive = true
		case "writable":
			out.ReadOnlyNonRecursive = true
		case "readonly":
			out.ReadOnlyForceRecursive = true
		}
	case types.VolumeTypeVolume:
		if vol, ok := m.app.Project.Volumes[v.Source]; ok {
			out.Source = vol.Name
		}
		o := v.Volume
		if out.Source != "" && (o == nil || len(o.Labels) == 0 && o.Subpath == "" && !o.NoCopy) {
			out.Origin, out.Mode = container.FromBinds, access
			return out, nil
		}
		if o != nil {
			out.HasVolumeOptions, out.NoCopy, out.Subpath, out.VolumeLabels = true, o.NoCopy, o.Subpath, o.Labels
		}
	case types.VolumeTypeTmpfs:
		if t := v.Tmpfs; t != nil {
			out.HasTmpfsOptions, out.TmpfsSize, out.TmpfsMode = true, int64(t.Size), t.Mode
		}
	case types.VolumeTypeImage:
		if i := v.Image; i != nil {
			out.HasImageOptions, out.Subpath = true, i.SubPath
		}
	default:
		return out, fmt.Errorf("the type %s of %s is not supported here", v.Type, v.Target)
	}
	return out, nil
}

// reference is a secret or a config as one service sees it.
type reference struct {
	kind, key, target string
	bind              string // path on the host; "" where content is copied in
	content           string
	uid, gid          string
	mode              int64
	refused           error
}

func (m *maker) references(s types.ServiceConfig) (list []reference) {
	add := func(kind, base string, f types.FileReferenceConfig, o types.FileObjectConfig, declared bool) {
		r := reference{kind: kind, key: f.Source, target: f.Target, uid: f.UID, gid: f.GID, mode: 0o444}
		if r.target == "" {
			r.target = f.Source
		}
		if !path.IsAbs(r.target) {
			r.target = base + r.target
		}
		if f.Mode != nil {
			r.mode = int64(*f.Mode)
		}
		switch {
		case !declared:
			r.refused = fault.Invalidf("services.%s.%ss: %s is not declared", s.Name, kind, f.Source)
		case bool(o.External):
			r.refused = fault.Unsupportedf("%ss.%s.external: there is no store of %ss to take it from", kind, f.Source, kind)
		case o.Driver != "" || o.TemplateDriver != "":
			r.refused = fault.Unsupportedf("%ss.%s.driver, template_driver: not supported", kind, f.Source)
		case o.Content != "" || o.Environment != "":
			r.content = o.Content
			if s.ReadOnly {
				r.refused = fault.Invalidf("services.%s.%ss: %s cannot be written into a read_only container: use `file`", s.Name, kind, f.Source)
			}
		default:
			r.bind = o.File
			if !path.IsAbs(r.bind) {
				r.bind = path.Join(m.app.Project.WorkingDir, r.bind)
			}
		}
		list = append(list, r)
	}
	for _, f := range s.Secrets {
		o, ok := m.app.Project.Secrets[f.Source]
		add("secret", "/run/secrets/", types.FileReferenceConfig(f), types.FileObjectConfig(o), ok)
	}
	for _, f := range s.Configs {
		o, ok := m.app.Project.Configs[f.Source]
		add("config", "/", types.FileReferenceConfig(f), types.FileObjectConfig(o), ok)
	}
	return list
}
