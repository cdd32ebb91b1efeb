package docker

import (
	"encoding/json"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	api "github.com/moby/moby/api/types/system"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/event"
	"github.com/berth-project/berth/core/filter"
	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/lib/fault"
)

func (d *Door) ping(w http.ResponseWriter, r *request) error {
	h := w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Swarm", "inactive")
	builder := "1"
	if d.o.Build != nil {
		builder = "2"
	}
	h.Set("Builder-Version", builder)
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		return nil
	}
	_, _ = w.Write([]byte("OK"))
	return nil
}

func (d *Door) version(w http.ResponseWriter, _ *request) error {
	v := d.o.System.Version()
	engine := map[string]string{
		"ApiVersion": "1.56", "MinAPIVersion": "1.24", "Arch": v.Arch, "Os": v.OS, "GitCommit": v.Commit, "GoVersion": v.Go,
		"KernelVersion": v.Kernel, "BuildTime": v.BuildTime, "Experimental": "false",
	}
	out := api.VersionResponse{
		Platform: api.PlatformInfo{Name: "Berth"}, Version: v.Berth, APIVersion: "1.56", MinAPIVersion: "1.24", Os: v.OS, Arch: v.Arch, GitCommit: v.Commit, GoVersion: v.Go,
		KernelVersion: v.Kernel, BuildTime: v.BuildTime,
		Components: []api.ComponentVersion{
			{Name: "Engine", Version: v.Berth, Details: engine},
			{Name: "containerd", Version: v.Containerd, Details: map[string]string{"GitCommit": "in process"}},
			{Name: "runc", Version: v.Runc, Details: map[string]string{"GitCommit": "libcontainer in berth-keeper"}},
		},
	}
	if v.Init != "" {
		out.Components = append(out.Components, api.ComponentVersion{Name: "docker-init", Version: v.Init, Details: map[string]string{"GitCommit": ""}})
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func (d *Door) info(w http.ResponseWriter, r *request) error {
	i, err := d.o.System.Info(r.Context())
	if err != nil {
		return err
	}
	v := d.o.System.Version()
	out := api.Info{
		ID: i.ID, Name: i.Name, Containers: i.Containers, ContainersRunning: i.Running, ContainersPaused: i.Paused, ContainersStopped: i.Stopped, Images: i.Images,
		Driver: i.StorageDriver, DriverStatus: i.StorageStatus, Plugins: api.PluginsInfo{Volume: i.VolumeDrivers, Network: i.NetworkDrivers, Log: i.LogDrivers},
		MemoryLimit: i.MemoryLimit, SwapLimit: i.SwapLimit, CPUCfsPeriod: i.CPUCfs, CPUCfsQuota: i.CPUCfs, CPUShares: i.CPUShares, CPUSet: i.CPUSet, PidsLimit: i.Pids,
		IPv4Forwarding: i.IPv4Forwarding, OomKillDisable: i.OomKillDisable, Debug: i.Debug, NFd: i.OpenFiles, NGoroutines: i.Goroutines, SystemTime: time.Now().Format(time.RFC3339Nano),
		LoggingDriver: i.LogDriver, CgroupDriver: i.CgroupDriver, CgroupVersion: i.CgroupVersion, NEventsListener: i.EventListeners, KernelVersion: i.Kernel,
		OperatingSystem: i.OperatingSystem, OSVersion: i.OSVersion, OSType: i.OSType, Architecture: i.Architecture, IndexServerAddress: "https://index.docker.io/v1/",
		NCPU: i.CPUs, MemTotal: i.Memory, DockerRootDir: i.DataRoot, HTTPProxy: i.HTTPProxy, HTTPSProxy: i.HTTPSProxy, NoProxy: i.NoProxy, Labels: i.Labels,
		ServerVersion: v.Berth, DefaultRuntime: i.DefaultRuntime, LiveRestoreEnabled: true, InitBinary: i.InitBinary, ContainerdCommit: api.Commit{ID: v.Containerd},
		RuncCommit: api.Commit{ID: v.Runc}, InitCommit: api.Commit{ID: v.Init}, SecurityOptions: i.SecurityOptions, Warnings: i.Warnings,
		Swarm:      swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive},
		Runtimes:   map[string]api.RuntimeWithStatus{},
		Containerd: &api.ContainerdInfo{Address: i.ContainerdAddress, Namespaces: api.ContainerdNamespaces{Containers: i.ContainerdNamespace, Plugins: i.ContainerdNamespace}},
	}
	if out.Labels == nil {
		out.Labels = []string{}
	}
	for name, path := range i.Runtimes {
		one := api.RuntimeWithStatus{}
		one.Path = path
		out.Runtimes[name] = one
	}
	out.RegistryConfig = &registry.ServiceConfig{
		InsecureRegistryCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}, Mirrors: orEmpty(i.Mirrors),
		IndexConfigs: map[string]*registry.IndexInfo{"docker.io": {Name: "docker.io", Mirrors: []string{}, Secure: true, Official: true}},
	}
	for _, name := range i.InsecureRegistries {
		if p, err := netip.ParsePrefix(name); err == nil {
			out.RegistryConfig.InsecureRegistryCIDRs = append(out.RegistryConfig.InsecureRegistryCIDRs, p)
			continue
		}
		out.RegistryConfig.IndexConfigs[name] = &registry.IndexInfo{Name: name, Mirrors: []string{}}
	}
	for _, p := range i.AddressPools {
		if base, err := netip.ParsePrefix(p.Base); err == nil {
			out.DefaultAddressPools = append(out.DefaultAddressPools, api.NetworkAddressPool{Base: base, Size: p.Size})
		}
	}
	if i.FirewallBackend != "" {
		out.FirewallBackend = &api.FirewallInfo{Driver: i.FirewallBackend}
	}
	out.CDISpecDirs = []string{}
	if r.version < 49 {
		out.FirewallBackend = nil
	}
	body := infoBody{Info: out}
	for _, c := range []struct {
		to   *commitBody
		from api.Commit
	}{{&body.ContainerdCommit, out.ContainerdCommit}, {&body.RuncCommit, out.RuncCommit}, {&body.InitCommit, out.InitCommit}} {
		c.to.ID = c.from.ID
		if r.version < 49 {
			c.to.Expected = c.from.ID
		}
	}
	if r.version < 50 {
		body.legacyInfo = &legacyInfo{}
	}
	writeJSON(w, http.StatusOK, body)
	return nil
}

// infoBody is an answer with what old versions had besides.
type infoBody struct {
	api.Info
	*legacyInfo
	ContainerdCommit, RuncCommit, InitCommit commitBody
}

// legacyInfo are fields until 1.49 that were false always.
type legacyInfo struct {
	BridgeNfIptables  bool
	BridgeNfIP6tables bool `json:"BridgeNfIp6tables"`
}

type commitBody struct {
	ID       string
	Expected string `json:",omitempty"` // until 1.48
}

func (d *Door) auth(w http.ResponseWriter, r *request) error {
	var a registry.AuthConfig
	if err := decode(r, &a); err != nil {
		return err
	}
	status, token, err := d.o.Images.Login(r.Context(), image.Auth{Username: a.Username, Password: a.Password, ServerAddress: a.ServerAddress, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]string{"Status": status, "IdentityToken": token})
	return nil
}

// eventFilters that docker knows; those of objects are checked by type.
var eventFilters = []string{"config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope", "secret", "service", "type", "volume"}

func (d *Door) events(w http.ResponseWriter, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	if err := f.Check(eventFilters...); err != nil {
		return err
	}
	since, err := parseTime(r.Form.Get("since"))
	if err != nil {
		return fault.Invalidf("invalid value for \"since\": %w", err)
	}
	until, err := parseTime(r.Form.Get("until"))
	if err != nil {
		return fault.Invalidf("invalid value for \"until\": %w", err)
	}
	if !since.IsZero() && !until.IsZero() && until.Before(since) {
		return fault.Invalidf("`since` time (%s) cannot be after `until` time (%s)", r.Form.Get("since"), r.Form.Get("until"))
	}
	ctx := r.Context()
	past, live := d.o.Events.Subscribe(ctx, since)
	kind, before := eventsType(r)
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	send := func(x event.Event) bool {
		if !until.IsZero() && x.Time.After(until) || !matches(x, f) {
			return true
		}
		if _, err := io.WriteString(w, before); err != nil || e.Encode(message(x, r.version)) != nil {
			return false
		}
		return http.NewResponseController(w).Flush() == nil
	}
	for _, x := range past {
		if !send(x) {
			return nil
		}
	}
	var end <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		end = timer.C
	}
	for {
		select {
		case x, ok := <-live:
			if !ok || !send(x) {
				return nil
			}
		case <-end:
			return nil
		}
	}
}

// eventsType chooses how the stream is written: the type, and what precedes each event.
func eventsType(r *request) (kind, before string) {
	const recordSeparator = "\x1e" // RFC 7464
	if r.version < 52 {
		return "application/json", ""
	}
	for _, accepted := range strings.Split(r.Header.Get("Accept"), ",") {
		switch kind, _, _ := mime.ParseMediaType(accepted); kind {
		case "application/json-seq":
			return kind, recordSeparator
		case "application/x-ndjson":
			return kind, ""
		case "application/jsonl":
			if r.version >= 53 {
				return kind, ""
			}
		}
	}
	return "application/json", ""
}

func matches(x event.Event, f filter.Args) bool {
	object := func(kind string) bool {
		wanted := f[kind]
		if len(wanted) == 0 {
			return true
		}
		if x.Type != kind {
			return kind == "image" && x.Type == "container" && slices.ContainsFunc(wanted, func(v string) bool {
				image := x.Attributes["image"]
				return image == v || strings.TrimSuffix(image, ":latest") == v || strings.HasPrefix(image, v+":")
			})
		}
		return slices.ContainsFunc(wanted, func(v string) bool {
			name := x.Attributes["name"]
			return x.ID == v || strings.HasPrefix(x.ID, v) || name == v || kind == "image" && strings.HasPrefix(name, v+":")
		})
	}
	actions := f["event"]
	if len(actions) > 0 && !slices.ContainsFunc(actions, func(a string) bool { return x.Action == a || strings.HasPrefix(x.Action, a+":") }) {
		return false
	}
	return f.Exact("type", x.Type) && f.Exact("scope", "local") && f.Labels("label", x.Attributes) &&
		object("container") && object("image") && object("network") && object("volume") && object("daemon")
}

// eventMessage has the old fields too, until 1.51.
type eventMessage struct {
	Status   string `json:"status,omitempty"`
	ID       string `json:"id,omitempty"`
	From     string `json:"from,omitempty"`
	Type     string
	Action   string
	Actor    eventActor
	Scope    string `json:"scope"`
	Time     int64  `json:"time"`
	TimeNano int64  `json:"timeNano"`
}

type eventActor struct {
	ID         string
	Attributes map[string]string
}

func message(x event.Event, version int) eventMessage {
	m := eventMessage{Type: x.Type, Action: x.Action, Actor: eventActor{x.ID, x.Attributes}, Scope: "local", Time: x.Time.Unix(), TimeNano: x.Time.UnixNano()}
	if version < 52 && (x.Type == "container" || x.Type == "image") {
		m.Status, m.ID = x.Action, x.ID
		if x.Type == "container" {
			m.From = x.Attributes["image"]
		}
	}
	return m
}

func (d *Door) diskUsage(w http.ResponseWriter, r *request) error {
	types := r.Form["type"]
	want := func(t string) bool { return len(types) == 0 || slices.Contains(types, t) }
	for _, t := range types {
		if !slices.Contains([]string{"container", "image", "volume", "build-cache"}, t) {
			return fault.Invalidf("unknown object type: %s", t)
		}
	}
	old, fresh := map[string]any{}, map[string]any{}
	if want("image") {
		u, err := d.o.Images.Usage(r.Context())
		if err != nil {
			return err
		}
		items := []any{}
		active := 0
		for _, i := range u.Images {
			items = append(items, imageSummary(i, r.version, true))
			if i.Containers > 0 {
				active++
			}
		}
		old["Images"], old["LayersSize"] = items, u.LayersSize
		fresh["ImageUsage"] = usage(active, len(items), u.LayersSize, u.Reclaimable, items, r)
	}
	if want("container") {
		list, err := d.o.Containers.List(r.Context(), container.ListOptions{All: true, Size: true})
		if err != nil {
			return err
		}
		items := []any{}
		active, total, free := 0, int64(0), int64(0)
		for _, c := range list {
			items = append(items, d.summary(r.version, c))
			total += max(c.SizeRw, 0)
			switch c.State.Status {
			case container.Running, container.Paused, container.Restarting:
				active++
			default:
				free += max(c.SizeRw, 0)
			}
		}
		old["Containers"] = items
		fresh["ContainerUsage"] = usage(active, len(items), total, free, items, r)
	}
	if want("volume") {
		list, err := d.o.Volumes.Usage(r.Context())
		if err != nil {
			return err
		}
		items := []any{}
		active, total, free := 0, int64(0), int64(0)
		for _, v := range list {
			items = append(items, volumeBody(v, true))
			total += max(v.Size, 0)
			if v.RefCount > 0 {
				active++
			} else {
				free += max(v.Size, 0)
			}
		}
		old["Volumes"] = items
		fresh["VolumeUsage"] = usage(active, len(items), total, free, items, r)
	}
	if want("build-cache") {
		items, active, total, free, err := d.cacheUsage(r)
		if err != nil {
			return err
		}
		old["BuildCache"] = items
		fresh["BuildCacheUsage"] = usage(active, len(items), total, free, items, r)
	}
	if r.version < 52 {
		writeJSON(w, http.StatusOK, old)
		return nil
	}
	if r.version == 52 && !r.flag("verbose") {
		maps.Copy(fresh, old) // both, for clients that change over
	}
	writeJSON(w, http.StatusOK, fresh)
	return nil
}

func usage(active, count int, total, free int64, items []any, r *request) map[string]any {
	m := map[string]any{"ActiveCount": active, "TotalCount": count, "TotalSize": total, "Reclaimable": free}
	if r.flag("verbose") {
		m["Items"] = items
	}
	return m
}
