package docker

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	api "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

func fileMode(m uint32) os.FileMode { return os.FileMode(m) }

func (d *Door) createContainer(w http.ResponseWriter, r *request) error {
	var body createBody
	if err := decode(r, &body); err != nil {
		return err
	}
	s, err := toSpec(body)
	if err != nil {
		return err
	}
	if r.version < 42 && s.ConsoleSize != [2]uint{} {
		s.ConsoleSize = [2]uint{}
	}
	id, warnings, err := d.o.Containers.Create(r.Context(), s, container.CreateOptions{Name: r.Form.Get("name"), Platform: r.Form.Get("platform")})
	if err != nil {
		return err
	}
	if warnings == nil {
		warnings = []string{}
	}
	writeJSON(w, http.StatusCreated, map[string]any{"Id": id, "Warnings": warnings})
	return nil
}

func (d *Door) listContainers(w http.ResponseWriter, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	limit, err := r.number("limit", 0)
	if err != nil {
		return err
	}
	o := container.ListOptions{All: r.flag("all"), Limit: max(limit, 0), Size: r.flag("size"), Filters: f}
	for old, name := range map[string]string{"before": "before", "since": "since"} {
		if v := r.Form.Get(old); v != "" {
			f[name] = append(f[name], v)
			o.All = true
		}
	}
	list, err := d.o.Containers.List(r.Context(), o)
	if err != nil {
		return err
	}
	out := make([]any, len(list))
	for i, c := range list {
		out[i] = d.summary(r.version, c)
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func (d *Door) summary(version int, c container.Summary) api.Summary {
	s := api.Summary{
		ID: string(c.ID), Names: []string{"/" + c.Name}, Image: c.Spec.Image, ImageID: c.ImageID, Command: command(c.Container), Created: c.Created.Unix(),
		Ports: portSummaries(c.Container), Labels: c.Spec.Labels, State: api.ContainerState(c.State.Status), Status: statusText(c.Container, time.Now()),
		NetworkSettings: &api.NetworkSettingsSummary{Networks: networksOf(c.Container, version)}, Mounts: mountPoints(c.Mounts),
	}
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	if c.SizeRw >= 0 {
		s.SizeRw, s.SizeRootFs = c.SizeRw, c.SizeRootFs
	}
	s.HostConfig.NetworkMode, s.HostConfig.Annotations = c.Spec.NetworkMode, c.Spec.Annotations
	if version >= 52 {
		s.Health = &api.HealthSummary{Status: api.NoHealthcheck}
		if h := c.State.Health; h != nil {
			s.Health = &api.HealthSummary{Status: api.HealthStatus(h.Status), FailingStreak: h.FailingStreak}
		}
	}
	return s
}

func command(c container.Container) string {
	if len(c.Args) == 0 {
		return c.Path
	}
	var args []string
	for _, a := range c.Args {
		if strings.Contains(a, " ") {
			a = "'" + a + "'"
		}
		args = append(args, a)
	}
	return c.Path + " " + strings.Join(args, " ")
}

func portSummaries(c container.Container) []api.PortSummary {
	list := []api.PortSummary{}
	if c.State.Status != container.Running && c.State.Status != container.Paused {
		return list
	}
	published := map[container.Port]bool{}
	for _, b := range c.State.Ports {
		published[b.Port] = true
		list = append(list, api.PortSummary{IP: b.HostIP, PrivatePort: b.Port.Number, PublicPort: b.HostPort, Type: b.Proto})
	}
	for _, p := range c.Spec.Expose {
		if !published[p] {
			list = append(list, api.PortSummary{PrivatePort: p.Number, Type: p.Proto})
		}
	}
	return list
}

func networksOf(c container.Container, version int) map[string]*network.EndpointSettings {
	out := map[string]*network.EndpointSettings{}
	specs := map[string]container.EndpointSpec{}
	for _, s := range c.Spec.Endpoints {
		specs[s.Network] = s
		out[s.Network] = endpointSettings(container.Endpoint{}, s)
	}
	for _, e := range c.State.Endpoints {
		spec, ok := specs[e.NetworkName]
		if !ok {
			spec = e.Spec
		}
		for name := range out {
			if name != e.NetworkName && strings.HasPrefix(e.NetworkID, name) && len(name) >= 12 {
				spec = specs[name]
				delete(out, name)
			}
		}
		out[e.NetworkName] = endpointSettings(e, spec)
	}
	if len(out) == 0 && !c.Spec.OffNetworks && !strings.HasPrefix(c.Spec.NetworkMode, "container:") {
		mode := c.Spec.NetworkMode
		if mode == "default" {
			mode = "bridge"
		}
		out[mode] = endpointSettings(container.Endpoint{}, container.EndpointSpec{})
	}
	delete(out, "default")
	if version < 45 { // the short id came with the aliases
		for name, e := range out {
			if name != "bridge" && name != "host" && name != "none" {
				e.Aliases = append(slices.Clone(e.Aliases), c.ID.Short())
			}
		}
	}
	return out
}

func mountPoints(list []container.MountPoint) []api.MountPoint {
	out := []api.MountPoint{}
	for _, m := range list {
		p := api.MountPoint{Type: mount.Type(m.Type), Name: m.Name, Source: m.Source, Destination: m.Destination, Driver: m.Driver, Mode: m.Mode, RW: m.RW, Propagation: mount.Propagation(m.Propagation)}
		if m.Spec.Origin == container.FromTmpfs {
			continue // shown in HostConfig.Tmpfs alone, as docker does
		}
		out = append(out, p)
	}
	return out
}

// statusText is the STATUS column: "Up 5 minutes (healthy)".
func statusText(c container.Container, now time.Time) string {
	ago := func(t time.Time) string { return humanDuration(now.Sub(t)) }
	switch c.State.Status {
	case container.Running:
		text := "Up " + ago(c.State.StartedAt)
		if h := c.State.Health; h != nil {
			health := h.Status
			if health == "starting" {
				health = "health: starting"
			}
			text += " (" + health + ")"
		}
		return text
	case container.Paused:
		return "Up " + ago(c.State.StartedAt) + " (Paused)"
	case container.Restarting:
		return fmt.Sprintf("Restarting (%d) %s ago", c.State.ExitCode, ago(c.State.FinishedAt))
	case container.Removing:
		return "Removal In Progress"
	case container.Dead:
		return "Dead"
	case container.Created:
		return "Created"
	}
	if c.State.StartedAt.IsZero() {
		return "Created"
	}
	return fmt.Sprintf("Exited (%d) %s ago", c.State.ExitCode, ago(c.State.FinishedAt))
}

// humanDuration words a time as docker does.
func humanDuration(d time.Duration) string {
	hours := int(d.Round(time.Hour).Hours())
	switch seconds, minutes := int(d.Seconds()), int(d.Minutes()); {
	case seconds < 1:
		return "Less than a second"
	case seconds == 1:
		return "1 second"
	case seconds < 60:
		return fmt.Sprintf("%d seconds", seconds)
	case minutes == 1:
		return "About a minute"
	case minutes < 60:
		return fmt.Sprintf("%d minutes", minutes)
	case hours == 1:
		return "About an hour"
	case hours < 48:
		return fmt.Sprintf("%d hours", hours)
	case hours < 24*7*2:
		return fmt.Sprintf("%d days", hours/24)
	case hours < 24*30*2:
		return fmt.Sprintf("%d weeks", hours/24/7)
	case hours < 24*365*2:
		return fmt.Sprintf("%d months", hours/24/30)
	}
	return fmt.Sprintf("%d years", hours/24/365)
}

// never is how docker shows a time that has not come.
const never = "0001-01-01T00:00:00Z"

func stamp(t time.Time) string {
	if t.IsZero() {
		return never
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// inspectBody is an answer with what old versions had besides.
type inspectBody struct {
	api.InspectResponse
	Config          configBody
	NetworkSettings any
}

type configBody struct {
	*api.Config
	MacAddress string `json:",omitempty"`
}

func (d *Door) inspectContainer(w http.ResponseWriter, r *request) error {
	c, err := d.o.Containers.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	body := inspectBody{InspectResponse: api.InspectResponse{
		ID: string(c.ID), Created: stamp(c.Created), Path: c.Path, Args: c.Args, State: state(c), Image: c.ImageID,
		ResolvConfPath: c.ResolvConfPath, HostnamePath: c.HostnamePath, HostsPath: c.HostsPath, LogPath: c.LogPath, Name: "/" + c.Name,
		RestartCount: c.State.RestartCount, Driver: c.Driver, Platform: "linux", MountLabel: c.MountLabel, ProcessLabel: c.ProcessLabel, AppArmorProfile: c.AppArmorProfile,
		ExecIDs: d.o.Containers.ExecIDs(c.ID), HostConfig: hostConfig(c.Spec), Mounts: mountPoints(c.Mounts),
	}}
	if body.Args == nil {
		body.Args = []string{}
	}
	if paths, err := d.o.Containers.GraphDriver(r.Context(), string(c.ID)); err == nil {
		body.GraphDriver = &storage.DriverData{Name: c.Driver, Data: paths}
	}
	if r.flag("size") {
		rw, root, err := d.o.Containers.Size(r.Context(), string(c.ID))
		if err != nil {
			return err
		}
		body.SizeRw, body.SizeRootFs = &rw, &root
	}
	body.Config = configBody{Config: config(c.Spec)}
	if r.version < 44 {
		body.Config.MacAddress = c.Spec.MacAddress
	}
	body.NetworkSettings = networkSettings(c, r.version)
	writeJSON(w, http.StatusOK, body)
	return nil
}

func state(c container.Container) *api.State {
	s := c.State
	out := &api.State{
		Status: api.ContainerState(s.Status), Paused: s.Status == container.Paused, Restarting: s.Status == container.Restarting,
		Running:   s.Status == container.Running || s.Status == container.Paused || s.Status == container.Restarting,
		OOMKilled: s.OOMKilled, Dead: s.Status == container.Dead, Pid: s.Pid, ExitCode: s.ExitCode, Error: s.Error, StartedAt: stamp(s.StartedAt), FinishedAt: stamp(s.FinishedAt),
	}
	if h := s.Health; h != nil {
		out.Health = &api.Health{Status: api.HealthStatus(h.Status), FailingStreak: h.FailingStreak, Log: []*api.HealthcheckResult{}}
		for _, l := range h.Log {
			out.Health.Log = append(out.Health.Log, &api.HealthcheckResult{Start: l.Start, End: l.End, ExitCode: l.ExitCode, Output: l.Output})
		}
	}
	return out
}

// legacySettings are the fields until 1.51: those of the default bridge, doubled.
// Later versions get them too: python clients take the newest version that the
// engine offers, and read them still.
type legacySettings struct {
	api.NetworkSettings
	Bridge                 string
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []any
	SecondaryIPv6Addresses []any
	EndpointID             string
	Gateway                string
	GlobalIPv6Address      string
	GlobalIPv6PrefixLen    int
	IPAddress              string
	IPPrefixLen            int
	IPv6Gateway            string
	MacAddress             string
}

func networkSettings(c container.Container, version int) any {
	s := api.NetworkSettings{SandboxID: c.State.SandboxID, SandboxKey: c.State.NetNS, Ports: network.PortMap{}, Networks: networksOf(c, version)}
	if c.State.Status == container.Running || c.State.Status == container.Paused {
		for _, p := range c.Spec.Expose {
			s.Ports[apiPort(p)] = nil
		}
		for _, b := range c.State.Ports {
			p := apiPort(b.Port)
			s.Ports[p] = append(s.Ports[p], network.PortBinding{HostIP: b.HostIP, HostPort: strconv.Itoa(int(b.HostPort))})
		}
	}
	out := legacySettings{NetworkSettings: s}
	if e := s.Networks["bridge"]; e != nil {
		text := func(a netip.Addr) string {
			if a.IsValid() {
				return a.String()
			}
			return ""
		}
		out.EndpointID, out.Gateway, out.IPAddress, out.IPPrefixLen = e.EndpointID, text(e.Gateway), text(e.IPAddress), e.IPPrefixLen
		out.GlobalIPv6Address, out.GlobalIPv6PrefixLen, out.IPv6Gateway = text(e.GlobalIPv6Address), e.GlobalIPv6PrefixLen, text(e.IPv6Gateway)
		if len(e.MacAddress) > 0 {
			out.MacAddress = e.MacAddress.String()
		}
	}
	return out
}

// act answers an operation that says no more than that it was done.
func act(w http.ResponseWriter, err error) error {
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

func (d *Door) start(w http.ResponseWriter, r *request) error {
	if r.ContentLength > 2 { // "{}" is all that clients may send
		return fault.Invalidf("starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	}
	if r.Form.Get("checkpoint") != "" {
		return fault.Unsupportedf("starting from a checkpoint is not supported by Berth")
	}
	return act(w, d.o.Containers.Start(r.Context(), r.PathValue("id")))
}

func (d *Door) stopOptions(r *request) (o container.StopOptions, err error) {
	o.Signal = r.Form.Get("signal")
	if r.Form.Get("t") != "" {
		n, err := r.number("t", 0)
		if err != nil {
			return o, err
		}
		o.Timeout = &n
	}
	return o, nil
}

func (d *Door) stop(w http.ResponseWriter, r *request) error {
	o, err := d.stopOptions(r)
	if err != nil {
		return err
	}
	return act(w, d.o.Containers.Stop(r.Context(), r.PathValue("id"), o))
}

func (d *Door) restart(w http.ResponseWriter, r *request) error {
	o, err := d.stopOptions(r)
	if err != nil {
		return err
	}
	return act(w, d.o.Containers.Restart(r.Context(), r.PathValue("id"), o))
}

func (d *Door) kill(w http.ResponseWriter, r *request) error {
	return act(w, d.o.Containers.Kill(r.Context(), r.PathValue("id"), r.Form.Get("signal")))
}

func (d *Door) pause(w http.ResponseWriter, r *request) error {
	return act(w, d.o.Containers.Pause(r.Context(), r.PathValue("id")))
}

func (d *Door) unpause(w http.ResponseWriter, r *request) error {
	return act(w, d.o.Containers.Unpause(r.Context(), r.PathValue("id")))
}

func (d *Door) rename(w http.ResponseWriter, r *request) error {
	return act(w, d.o.Containers.Rename(r.Context(), r.PathValue("id"), r.Form.Get("name")))
}

func (d *Door) removeContainer(w http.ResponseWriter, r *request) error {
	return act(w, d.o.Containers.Remove(r.Context(), r.PathValue("id"), container.RemoveOptions{Force: r.flag("force"), Volumes: r.flag("v"), Link: r.flag("link")}))
}

func (d *Door) resize(w http.ResponseWriter, r *request) error {
	h, width, err := size(r)
	if err != nil {
		return err
	}
	if err := d.o.Containers.Resize(r.Context(), r.PathValue("id"), h, width); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func size(r *request) (h, w uint16, err error) {
	for name, to := range map[string]*uint16{"h": &h, "w": &w} {
		n, err := strconv.ParseUint(r.Form.Get(name), 10, 16)
		if err != nil {
			return 0, 0, fault.Invalidf("invalid resize %s: %w", map[string]string{"h": "height", "w": "width"}[name], err)
		}
		*to = uint16(n)
	}
	return h, w, nil
}

func (d *Door) update(w http.ResponseWriter, r *request) error {
	var body api.UpdateConfig
	if err := decode(r, &body); err != nil {
		return err
	}
	o := container.UpdateOptions{Resources: toResources(body.Resources)}
	if body.RestartPolicy.Name != "" {
		o.Restart = &container.RestartPolicy{Name: string(body.RestartPolicy.Name), MaxRetries: body.RestartPolicy.MaximumRetryCount}
	}
	if res := &o.Resources; r.version < 55 { // before, limits of devices were ignored here
		res.BlkioWeightDevice, res.BlkioReadBps, res.BlkioWriteBps, res.BlkioReadIOps, res.BlkioWriteIOps = nil, nil, nil, nil, nil
	}
	if r.version < 40 && o.Resources.PidsLimit != nil && *o.Resources.PidsLimit <= 0 {
		o.Resources.PidsLimit = nil
	}
	warnings, err := d.o.Containers.Update(r.Context(), r.PathValue("id"), o)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, api.UpdateResponse{Warnings: warnings})
	return nil
}

func (d *Door) top(w http.ResponseWriter, r *request) error {
	t, err := d.o.Containers.Top(r.Context(), r.PathValue("id"), r.Form.Get("ps_args"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, api.TopResponse{Titles: t.Titles, Processes: t.Processes})
	return nil
}

func (d *Door) changes(w http.ResponseWriter, r *request) error {
	list, err := d.o.Containers.Changes(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if len(list) == 0 {
		writeJSON(w, http.StatusOK, nil)
		return nil
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

func (d *Door) pruneContainers(w http.ResponseWriter, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	p, err := d.o.Containers.Prune(r.Context(), f)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]any{"ContainersDeleted": p.Removed, "SpaceReclaimed": p.Reclaimed})
	return nil
}

func (d *Door) wait(w http.ResponseWriter, r *request) error {
	condition := container.WaitCondition(r.Form.Get("condition"))
	if r.version < 30 {
		condition = container.WaitNotRunning
	}
	result, err := d.o.Containers.Wait(r.Context(), r.PathValue("id"), condition)
	if err != nil {
		return err
	}
	// The header tells the client that the wait is registered: it may start now.
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	res, ok := <-result
	if !ok {
		return nil // the client has gone
	}
	body := api.WaitResponse{StatusCode: int64(res.ExitCode)}
	if res.Err != "" {
		body.Error = &api.WaitExitError{Message: res.Err}
	}
	_ = json.NewEncoder(w).Encode(body)
	return nil
}

func (d *Door) commit(w http.ResponseWriter, r *request) error {
	var c *api.Config
	if err := decode(r, &c); err != nil {
		return err
	}
	o := container.CommitOptions{Comment: r.Form.Get("comment"), Author: r.Form.Get("author"), Pause: r.flagOr("pause", true)}
	if repo := r.Form.Get("repo"); repo != "" {
		o.Reference = repo
		if tag := r.Form.Get("tag"); tag != "" {
			o.Reference += ":" + tag
		}
	}
	for _, change := range r.Form["changes"] {
		o.Changes = append(o.Changes, strings.Split(change, "\n")...)
	}
	o.Changes = slices.DeleteFunc(o.Changes, func(s string) bool { return strings.TrimSpace(s) == "" })
	if c != nil {
		s := fromConfig(c)
		o.Config = &container.ImageConfig{User: s.User, Env: s.Env, Entrypoint: s.Entrypoint, Cmd: s.Cmd, WorkingDir: s.WorkingDir, Labels: s.Labels}
		for p := range c.ExposedPorts {
			o.Config.ExposedPorts = append(o.Config.ExposedPorts, toPort(p))
		}
		for v := range c.Volumes {
			o.Config.Volumes = append(o.Config.Volumes, v)
		}
	}
	id, err := d.o.Containers.Commit(r.Context(), r.Form.Get("container"), o)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, map[string]string{"Id": id})
	return nil
}
