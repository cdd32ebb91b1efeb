package container

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth/lib/fault"
)

// Stats reads a container's counters.
func (s *Service) Stats(ctx context.Context, id string) (Stats, error) {
	e, err := s.find(id)
	if err != nil {
		return Stats{}, err
	}
	c := *e.snap.Load()
	if !c.alive() {
		return Stats{}, notRunning(c)
	}
	st, err := s.o.Runtime.Stats(ctx, c)
	if err != nil {
		return st, err
	}
	if st.Networks, err = s.o.Networks.NetStats(c); err != nil {
		return st, err
	}
	if st.Memory.Limit == 0 || s.o.Host.Memory > 0 && st.Memory.Limit > uint64(s.o.Host.Memory) {
		st.Memory.Limit = uint64(s.o.Host.Memory)
	}
	return st, nil
}

// Update changes limits and the restart policy.
func (s *Service) Update(ctx context.Context, id string, o UpdateOptions) ([]string, error) {
	e, err := s.find(id)
	if err != nil {
		return nil, err
	}
	e.op.Lock()
	defer e.op.Unlock()
	old := *e.snap.Load()
	if old.State.Status == Removing || old.State.Status == Dead {
		return nil, fault.Conflictf("cannot update container %s: container is marked for removal and cannot be \"update\"", old.ID)
	}
	spec := old.Spec
	spec.Resources = updated(spec.Resources, o.Resources)
	if o.Restart != nil {
		spec.Restart = *o.Restart
		if spec.Restart.Name == "" {
			spec.Restart.Name = RestartNo
		}
		if spec.AutoRemove && spec.Restart.Name != RestartNo {
			return nil, fault.Invalidf("cannot update container %s: restart policy cannot be updated because AutoRemove is enabled for the container", old.ID)
		}
	}
	warnings, err := s.validate(&spec)
	if err != nil {
		return nil, fmt.Errorf("cannot update container %s: %w", old.ID, err)
	}
	if old.alive() {
		now := o.Resources
		for _, l := range []struct {
			to  *[]ThrottleDevice
			old []ThrottleDevice
		}{
			{&now.BlkioReadBps, old.Spec.Resources.BlkioReadBps}, {&now.BlkioWriteBps, old.Spec.Resources.BlkioWriteBps},
			{&now.BlkioReadIOps, old.Spec.Resources.BlkioReadIOps}, {&now.BlkioWriteIOps, old.Spec.Resources.BlkioWriteIOps},
		} {
			*l.to = freed(*l.to, l.old)
		}
		if err := s.o.Runtime.Update(ctx, old, now); err != nil {
			return nil, fmt.Errorf("cannot update container %s: %w", old.ID, err)
		}
	}
	c := e.change(func(c *Container) { c.Spec.Resources, c.Spec.Restart = spec.Resources, spec.Restart })
	if err := s.save(e); err != nil {
		return nil, err
	}
	s.publish(c, "update")
	return warnings, nil
}

// freed adds to a new list of limits those that end with it: the kernel keeps
// a device's limit until it is told that there is none.
func freed(list, old []ThrottleDevice) []ThrottleDevice {
	if list == nil {
		return nil
	}
	out := slices.Clone(list)
	for _, d := range old {
		if !slices.ContainsFunc(list, func(n ThrottleDevice) bool { return n.Path == d.Path }) {
			out = append(out, ThrottleDevice{Path: d.Path, Rate: math.MaxUint64})
		}
	}
	return out
}

// updated writes the fields that are set over the present ones.
func updated(r, u Resources) Resources {
	number := func(to *int64, v int64) {
		if v != 0 {
			*to = v
		}
	}
	number(&r.CPUShares, u.CPUShares)
	number(&r.NanoCPUs, u.NanoCPUs)
	number(&r.CPUPeriod, u.CPUPeriod)
	number(&r.CPUQuota, u.CPUQuota)
	number(&r.CPURealtimePeriod, u.CPURealtimePeriod)
	number(&r.CPURealtimeRuntime, u.CPURealtimeRuntime)
	number(&r.Memory, u.Memory)
	number(&r.MemoryReservation, u.MemoryReservation)
	number(&r.MemorySwap, u.MemorySwap)
	if u.CpusetCpus != "" {
		r.CpusetCpus = u.CpusetCpus
	}
	if u.CpusetMems != "" {
		r.CpusetMems = u.CpusetMems
	}
	if u.BlkioWeight != 0 {
		r.BlkioWeight = u.BlkioWeight
	}
	if u.PidsLimit != nil {
		r.PidsLimit = u.PidsLimit
	}
	// Of devices the whole list is given anew; an empty one clears.
	if u.BlkioWeightDevice != nil {
		r.BlkioWeightDevice = u.BlkioWeightDevice
	}
	for to, v := range map[*[]ThrottleDevice][]ThrottleDevice{
		&r.BlkioReadBps: u.BlkioReadBps, &r.BlkioWriteBps: u.BlkioWriteBps, &r.BlkioReadIOps: u.BlkioReadIOps, &r.BlkioWriteIOps: u.BlkioWriteIOps,
	} {
		if v != nil {
			*to = v
		}
	}
	return r
}

// Top lists a container's processes. The columns that people ask for are read
// from /proc; no program is run.
func (s *Service) Top(ctx context.Context, id, args string) (TopResult, error) {
	e, err := s.find(id)
	if err != nil {
		return TopResult{}, err
	}
	c := *e.snap.Load()
	if !c.alive() {
		return TopResult{}, notRunning(c)
	}
	titles, err := columns(args)
	if err != nil {
		return TopResult{}, err
	}
	pids, err := s.o.Runtime.Pids(ctx, c.ID)
	if err != nil {
		return TopResult{}, err
	}
	r := TopResult{Titles: titles, Processes: [][]string{}}
	for _, pid := range pids {
		p, err := readProcess(pid)
		if err != nil {
			continue // it has ended
		}
		row := make([]string, len(titles))
		for i, t := range titles {
			row[i] = p[t]
		}
		r.Processes = append(r.Processes, row)
	}
	return r, nil
}

var known = map[string]string{
	"pid": "PID", "ppid": "PPID", "uid": "UID", "user": "USER", "euser": "USER", "gid": "GID", "args": "COMMAND", "cmd": "CMD", "command": "COMMAND", "comm": "COMMAND",
	"stat": "STAT", "s": "S", "state": "S", "time": "TIME", "cputime": "TIME", "etime": "ELAPSED", "stime": "STIME", "start": "STARTED", "tty": "TT", "tt": "TT", "rss": "RSS",
	"vsz": "VSZ", "nlwp": "NLWP", "ni": "NI", "nice": "NI", "c": "C", "pcpu": "%CPU", "%cpu": "%CPU", "pmem": "%MEM", "%mem": "%MEM", "pgid": "PGID", "sid": "SID",
}

// columns reads the options of ps that choose columns.
func columns(args string) ([]string, error) {
	fields := strings.Fields(args)
	var titles []string
	for i := 0; i < len(fields); i++ {
		f := fields[i]
		switch {
		case f == "-ef" || f == "-f" || f == "-e" || f == "-A":
			titles = []string{"UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"}
		case f == "aux" || f == "-aux" || f == "ux" || f == "axu":
			titles = []string{"USER", "PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT", "START", "TIME", "COMMAND"}
		case f == "ax" || f == "a" || f == "x":
			titles = []string{"PID", "TTY", "STAT", "TIME", "COMMAND"}
		case strings.HasPrefix(f, "-o"), strings.HasPrefix(f, "-eo"), strings.HasPrefix(f, "o"), strings.HasPrefix(f, "-axo"), strings.HasPrefix(f, "axo"), strings.HasPrefix(f, "--format"):
			_, list, _ := strings.Cut(f, "o")
			list = strings.TrimPrefix(strings.TrimPrefix(list, "rmat"), "=")
			if list == "" && i+1 < len(fields) {
				i++
				list = fields[i]
			}
			for _, name := range strings.Split(list, ",") {
				name, header, renamed := strings.Cut(strings.TrimSpace(name), "=")
				title, ok := known[strings.ToLower(name)]
				if !ok {
					return nil, fault.Invalidf("unknown column %q in the options of ps", name)
				}
				_ = header
				_ = renamed
				titles = append(titles, title)
			}
		default:
			return nil, fault.Invalidf("option %q of ps is not supported: use -ef, aux or -o with columns", f)
		}
	}
	if titles == nil {
		titles = []string{"UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"}
	}
	hasPid := false
	for _, t := range titles {
		hasPid = hasPid || t == "PID"
	}
	if !hasPid {
		return nil, fault.Invalidf("couldn't find PID field in ps output")
	}
	return titles, nil
}

// readProcess reads one process as ps would show it (proc(5)).
func readProcess(pid int) (map[string]string, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	b, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return nil, err
	}
	open, last := strings.IndexByte(string(b), '('), strings.LastIndexByte(string(b), ')')
	if open < 0 || last < 0 {
		return nil, fmt.Errorf("%s/stat is not understood", dir)
	}
	name := string(b[open+1 : last])
	f := strings.Fields(string(b[last+1:]))
	if len(f) < 22 {
		return nil, fmt.Errorf("%s/stat is not understood", dir)
	}
	number := func(i int) int64 { n, _ := strconv.ParseInt(f[i], 10, 64); return n }
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return nil, err
	}
	uid, gid := "", ""
	for _, l := range strings.Split(string(status), "\n") {
		if v, ok := strings.CutPrefix(l, "Uid:"); ok {
			uid = strings.Fields(v)[1]
		}
		if v, ok := strings.CutPrefix(l, "Gid:"); ok {
			gid = strings.Fields(v)[1]
		}
	}
	userName := uid
	if u, err := user.LookupId(uid); err == nil {
		userName = u.Username
	}
	command := "[" + name + "]"
	if cmd, err := os.ReadFile(dir + "/cmdline"); err == nil && len(cmd) > 0 {
		command = strings.TrimSpace(strings.ReplaceAll(string(cmd[:min(len(cmd), 4096)]), "\x00", " "))
	}
	seconds := (number(11) + number(12)) / 100
	start := time.Now().Add(-uptime()).Add(time.Duration(number(19)) * 10 * time.Millisecond)
	elapsed := max(time.Since(start), time.Second)
	rss := number(21) * int64(os.Getpagesize()) / 1024
	cpu := float64(number(11)+number(12)) / elapsed.Seconds()
	tty := "?"
	if t := number(4); t != 0 {
		tty = "pts/" + strconv.FormatInt(t&0xff|(t>>12)&0xfff00, 10)
	}
	return map[string]string{
		"PID": strconv.Itoa(pid), "PPID": f[1], "PGID": f[2], "SID": f[3], "S": f[0], "STAT": f[0], "NI": f[16], "NLWP": f[17], "UID": userName, "USER": userName, "GID": gid,
		"CMD": command, "COMMAND": command, "C": strconv.Itoa(int(cpu)), "STIME": start.Format("15:04"), "START": start.Format("15:04"), "STARTED": start.Format("15:04:05"),
		"TTY": tty, "TT": tty, "TIME": fmt.Sprintf("%02d:%02d:%02d", seconds/3600, seconds/60%60, seconds%60),
		"ELAPSED": fmt.Sprintf("%02d:%02d", int(elapsed.Minutes()), int(elapsed.Seconds())%60),
		"RSS":     strconv.FormatInt(rss, 10), "VSZ": strconv.FormatInt(number(20)/1024, 10), "%CPU": fmt.Sprintf("%.1f", cpu), "%MEM": "0.0",
	}, nil
}

func uptime() time.Duration {
	b, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) == 0 {
		return 0
	}
	seconds, _ := strconv.ParseFloat(f[0], 64)
	return time.Duration(seconds * float64(time.Second))
}

// Connect adds a container to a network; a stopped one joins it at its next start.
func (s *Service) Connect(ctx context.Context, id string, spec EndpointSpec) error {
	e, err := s.find(id)
	if err != nil {
		return err
	}
	networkID, name, err := s.o.Networks.Resolve(ctx, spec.Network)
	if err != nil {
		return err
	}
	e.op.Lock()
	defer e.op.Unlock()
	c := *e.snap.Load()
	spec.Network = name
	probe := c
	probe.Spec.Endpoints = append(c.endpoints(), spec)
	if c.Spec.NetworkMode == "none" && !slices.ContainsFunc(c.endpoints(), func(e EndpointSpec) bool { return e.Network == "none" }) {
		probe.Spec.NetworkMode = name // it was taken off "none", which would be alone
	}
	if err := s.o.Networks.Check(ctx, probe); err != nil {
		return err
	}
	var endpoint Endpoint
	var ports []Binding
	if c.alive() {
		if endpoint, ports, err = s.o.Networks.Connect(ctx, c, spec); err != nil {
			return err
		}
	}
	e.change(func(c *Container) {
		c.Spec.Endpoints, c.Spec.OffNetworks = probe.Spec.Endpoints, false
		if c.alive() {
			c.State.Endpoints = append(append([]Endpoint(nil), c.State.Endpoints...), endpoint)
			c.State.Ports = ports
		}
	})
	_ = networkID
	return s.save(e)
}

// endpoints lists the networks a container is to be on. Where none is named it
// is that of its mode.
func (c Container) endpoints() []EndpointSpec {
	if len(c.Spec.Endpoints) > 0 || c.Spec.OffNetworks {
		return append([]EndpointSpec(nil), c.Spec.Endpoints...)
	}
	mode := c.Spec.NetworkMode
	if mode == "default" {
		mode = "bridge"
	}
	return []EndpointSpec{{Network: mode, MacAddress: c.Spec.MacAddress}}
}

// Disconnect takes a container off a network.
func (s *Service) Disconnect(ctx context.Context, id, network string, force bool) error {
	e, err := s.find(id)
	if err != nil {
		return err
	}
	networkID, name, err := s.o.Networks.Resolve(ctx, network)
	if err != nil {
		return err
	}
	e.op.Lock()
	defer e.op.Unlock()
	c := *e.snap.Load()
	is := func(n string) bool { return n == name || n == networkID }
	mode := c.Spec.NetworkMode
	if mode == "default" {
		mode = "bridge"
	}
	on := is(mode) && len(c.Spec.Endpoints) == 0 && !c.Spec.OffNetworks
	for _, x := range c.Spec.Endpoints {
		on = on || is(x.Network)
	}
	if !on {
		return fault.Forbiddenf("container %s is not connected to network %s", c.ID, name)
	}
	var ports []Binding
	if c.alive() {
		if ports, err = s.o.Networks.Disconnect(ctx, c, networkID, force); err != nil {
			return err
		}
	}
	e.change(func(c *Container) {
		var specs []EndpointSpec
		for _, x := range c.endpoints() {
			if !is(x.Network) {
				specs = append(specs, x)
			}
		}
		var live []Endpoint
		for _, x := range c.State.Endpoints {
			if x.NetworkID != networkID {
				live = append(live, x)
			}
		}
		c.Spec.Endpoints, c.State.Endpoints, c.State.Ports = specs, live, ports
		c.Spec.OffNetworks = len(specs) == 0
	})
	return s.save(e)
}
