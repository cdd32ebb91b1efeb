// Package app joins Berth's parts: it reads configuration, builds every part,
// starts and stops them in order. It is the only package that sees all.
package app

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/network"
	"github.com/berth-project/berth/engine/containerd"
	"github.com/berth-project/berth/engine/task"
)

// Defaults of the roots.
const (
	defaultDataRoot = "/var/lib/berth"
	defaultExecRoot = "/run/berth"
)

// longestExecRoot keeps the sockets below it within what unix(7) allows.
const longestExecRoot = 80

// defaultRuntime is the keeper.
const defaultRuntime = "berth"

// Config is what flags and the configuration file say. Its names are dockerd's.
type Config struct {
	Hosts     []string          `json:"hosts"`
	DataRoot  string            `json:"data-root"`
	ExecRoot  string            `json:"exec-root"`
	PidFile   string            `json:"pidfile"`
	Group     string            `json:"group"`
	Debug     bool              `json:"debug"`
	LogLevel  string            `json:"log-level"`
	Labels    []string          `json:"labels"`
	TLS       bool              `json:"tls"`
	TLSVerify bool              `json:"tlsverify"`
	TLSCACert string            `json:"tlscacert"`
	TLSCert   string            `json:"tlscert"`
	TLSKey    string            `json:"tlskey"`
	Insecure  []string          `json:"insecure-registries"`
	Mirrors   []string          `json:"registry-mirrors"`
	Downloads int               `json:"max-concurrent-downloads"`
	Storage   string            `json:"storage-driver"`
	LogDriver string            `json:"log-driver"`
	LogOpts   map[string]string `json:"log-opts"`
	Init      bool              `json:"init"`
	InitPath  string            `json:"init-path"`
	Runtime   string            `json:"default-runtime"`
	Runtimes  map[string]struct {
		Path string   `json:"path"`
		Type string   `json:"runtimeType"`
		Args []string `json:"runtimeArgs"`
	} `json:"runtimes"`
	AddRuntimes     map[string]string `json:"-"`
	ShmSize         string            `json:"default-shm-size"`
	Ulimits         []string          `json:"-"`
	NoNewPrivileges bool              `json:"no-new-privileges"`
	Seccomp         string            `json:"seccomp-profile"`
	CgroupParent    string            `json:"cgroup-parent"`
	SELinux         bool              `json:"selinux-enabled"`
	CgroupnsMode    string            `json:"default-cgroupns-mode"`
	ExecOpts        []string          `json:"exec-opts"`

	Bridge       string   `json:"bridge"`
	BIP          string   `json:"bip"`
	FixedCIDR    string   `json:"fixed-cidr"`
	FixedCIDRv6  string   `json:"fixed-cidr-v6"`
	HostGateway  string   `json:"host-gateway-ip"`
	MTU          int      `json:"mtu"`
	ICC          bool     `json:"icc"`
	IPv6         bool     `json:"ipv6"`
	IPTables     bool     `json:"iptables"`
	IPMasq       bool     `json:"ip-masq"`
	IP           string   `json:"ip"`
	DNS          []string `json:"dns"`
	DNSOptions   []string `json:"dns-opts"`
	DNSSearch    []string `json:"dns-search"`
	Pools        []string `json:"-"`
	AddressPools []struct {
		Base string `json:"base"`
		Size int    `json:"size"`
	} `json:"default-address-pools"`

	tlsGiven bool
}

// ignored flags of dockerd have no meaning here; they are accepted with a note.
var ignored = []string{
	"userland-proxy", "live-restore", "experimental", "raw-logs", "rootless", "ip-forward", "ip6tables", "validate",
	"containerd", "containerd-namespace", "containerd-plugins-namespace", "userland-proxy-path", "oom-score-adjust", "max-concurrent-uploads",
	"max-download-attempts", "metrics-addr", "network-control-plane-mtu", "cpu-rt-period", "cpu-rt-runtime", "default-ipc-mode",
	"http-proxy", "https-proxy", "no-proxy", "swarm-default-advertise-addr", "authorization-plugin", "cluster-store",
	"feature", "node-generic-resource", "storage-opt", "default-gateway", "default-gateway-v6", "firewall-backend", "allow-nondistributable-artifacts",
	"shutdown-timeout", "default-network-opt", "cdi-spec-dir", "bridge-accept-fwmark", "userns-remap",
}

// refused flags would change what people rely on, so they are errors.
var refused = map[string]string{
	"userns-remap":         "user namespaces by remap are not supported in this version",
	"authorization-plugin": "authorization plugins are not supported",
}

// parse reads flags, then fills what they leave open from the file.
func parse(args []string) (c Config, notes []string, err error) {
	c = Config{ICC: true, IPTables: true, IPMasq: true}
	f := pflag.NewFlagSet("berthd", pflag.ContinueOnError)
	f.SortFlags = true
	f.StringArrayVarP(&c.Hosts, "host", "H", nil, "Address to listen on: unix://, tcp:// or fd:// (default unix://<exec-root>/docker.sock)")
	f.StringVarP(&c.DataRoot, "data-root", "g", defaultDataRoot, "Folder of what lasts: images, volumes, containers")
	f.StringVar(&c.ExecRoot, "exec-root", defaultExecRoot, "Folder of what lives as long as the machine is up: sockets, mounts")
	f.StringVarP(&c.PidFile, "pidfile", "p", "", "File for the process id (default <exec-root>/berthd.pid)")
	file := f.String("config-file", "/etc/berth/daemon.json", "Configuration file, in dockerd's format")
	f.BoolVarP(&c.Debug, "debug", "D", false, "Log more, and serve profiles below /debug/ of the API")
	f.StringVarP(&c.LogLevel, "log-level", "l", "info", "Log from this level on: debug, info, warn, error")
	f.StringVarP(&c.Group, "group", "G", "docker", "Group that may use the unix socket")
	f.StringArrayVar(&c.Labels, "label", nil, "Label of this engine, key=value")
	f.BoolVar(&c.TLS, "tls", false, "Use TLS on tcp:// (--tls=false allows plain tcp)")
	f.BoolVar(&c.TLSVerify, "tlsverify", false, "Use TLS and verify clients")
	f.StringVar(&c.TLSCACert, "tlscacert", "", "Trust clients signed by this certificate authority")
	f.StringVar(&c.TLSCert, "tlscert", "", "Certificate of the daemon")
	f.StringVar(&c.TLSKey, "tlskey", "", "Key of the daemon")
	f.StringArrayVar(&c.Insecure, "insecure-registry", nil, "Registry spoken to without verified TLS")
	f.StringArrayVar(&c.Mirrors, "registry-mirror", nil, "Mirror to pull from first: https://host for the Hub, registry=https://host for another")
	f.IntVar(&c.Downloads, "max-concurrent-downloads", 3, "Layers fetched at a time")
	f.StringVarP(&c.Storage, "storage-driver", "s", "", "Snapshotter: overlayfs (overlay2) or native (vfs)")
	f.StringVar(&c.LogDriver, "log-driver", "json-file", "Default log driver")
	f.StringToStringVar(&c.LogOpts, "log-opt", nil, "Default log options, key=value")
	f.BoolVar(&c.Init, "init", false, "Run a small init in every container")
	f.StringVar(&c.InitPath, "init-path", "", "Path of that init (default: tini or docker-init where installed)")
	f.StringVar(&c.Runtime, "default-runtime", defaultRuntime, "Default runtime")
	f.StringToStringVar(&c.AddRuntimes, "add-runtime", nil, "Further OCI runtime, name=path")
	f.StringVar(&c.ShmSize, "default-shm-size", "64M", "Default size of /dev/shm")
	f.StringArrayVar(&c.Ulimits, "default-ulimit", nil, "Default limit of processes, name=soft[:hard]")
	f.BoolVar(&c.NoNewPrivileges, "no-new-privileges", false, "Set no-new-privileges by default")
	f.StringVar(&c.Seccomp, "seccomp-profile", "", "Path of the default seccomp profile, or unconfined")
	f.StringVar(&c.CgroupParent, "cgroup-parent", "", "Parent cgroup of all containers; a slice with the systemd driver")
	f.BoolVar(&c.SELinux, "selinux-enabled", false, "Label containers and their files for SELinux")
	f.StringVar(&c.CgroupnsMode, "default-cgroupns-mode", "", "Default cgroup namespace of containers: private or host (default private on cgroup v2, host on v1)")
	f.StringArrayVar(&c.ExecOpts, "exec-opt", nil, "Option of how containers run: native.cgroupdriver=systemd or =cgroupfs")
	f.StringVarP(&c.Bridge, "bridge", "b", "", "Name of the default bridge; none disables it")
	f.StringVar(&c.BIP, "bip", "", "Address of the default bridge, with its prefix length")
	f.StringVar(&c.FixedCIDR, "fixed-cidr", "", "Part of the default bridge's subnet for containers")
	f.StringVar(&c.FixedCIDRv6, "fixed-cidr-v6", "", "Subnet of the default bridge in IPv6")
	f.StringVar(&c.HostGateway, "host-gateway-ip", "", "Address that host-gateway means (default the host's on the default bridge)")
	f.IntVar(&c.MTU, "mtu", 0, "MTU of the default bridge")
	f.BoolVar(&c.ICC, "icc", true, "Let containers on the default bridge reach one another")
	f.BoolVar(&c.IPv6, "ipv6", false, "IPv6 on the default bridge")
	f.BoolVar(&c.IPTables, "iptables", true, "Write firewall rules (nftables)")
	f.BoolVar(&c.IPMasq, "ip-masq", true, "Masquerade what leaves the default bridge")
	f.StringVar(&c.IP, "ip", "", "Default host address of published ports")
	f.StringArrayVar(&c.DNS, "dns", nil, "DNS server of containers")
	f.StringArrayVar(&c.DNSOptions, "dns-opt", nil, "DNS option of containers")
	f.StringArrayVar(&c.DNSSearch, "dns-search", nil, "DNS search domain of containers")
	f.StringArrayVar(&c.Pools, "default-address-pool", nil, "Pool of subnets, base=10.0.0.0/8,size=24")
	version := f.BoolP("version", "v", false, "Print the version and quit")
	taken := map[string]*string{}
	for _, name := range ignored {
		taken[name] = f.String(name, "", "")
		f.Lookup(name).Hidden = true
		f.Lookup(name).NoOptDefVal = "true"
	}
	f.Usage = func() {
		fmt.Fprint(os.Stderr, "Usage:  berthd [OPTIONS]\n\nThe daemon of Berth: an engine that any Docker client drives.\n\nExamples:\n"+
			"  sudo berthd                              # listens on unix:///run/berth/docker.sock\n"+
			"  sudo berthd -H unix:///run/docker.sock   # where Docker's clients look by themselves\n"+
			"  sudo berthd --data-root /srv/b2 --exec-root /run/b2   # a second engine beside the first\n\nOptions:\n"+f.FlagUsages())
	}
	if err := f.Parse(args); err != nil {
		return c, nil, err
	}
	if *version {
		return c, nil, errVersion
	}
	if f.NArg() > 0 {
		return c, nil, fmt.Errorf("unknown argument %q: see berthd --help", f.Arg(0))
	}
	for name := range taken {
		if f.Changed(name) {
			if why, no := refused[name]; no {
				return c, nil, fmt.Errorf("--%s: %s", name, why)
			}
			notes = append(notes, name)
		}
	}
	slices.Sort(notes)
	c.tlsGiven = f.Changed("tls")
	return c, notes, c.readFile(*file, f)
}

var errVersion = errors.New("version")

// readFile takes from the file what no flag says; a setting in both is an error, as with dockerd.
func (c *Config) readFile(path string, f *pflag.FlagSet) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && !f.Changed("config-file") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unable to configure the daemon with file %s: %w", path, err)
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(b, &keys); err != nil {
		return fmt.Errorf("unable to configure the daemon with file %s: %w", path, err)
	}
	flags := map[string]string{
		"hosts": "host", "labels": "label", "insecure-registries": "insecure-registry", "registry-mirrors": "registry-mirror", "log-opts": "log-opt",
		"dns-opts": "dns-opt", "default-address-pools": "default-address-pool", "default-ulimits": "default-ulimit", "runtimes": "add-runtime", "exec-opts": "exec-opt",
	}
	var unknown []string
	for k := range keys {
		flag := k
		if n := flags[k]; n != "" {
			flag = n
		}
		if f.Lookup(flag) == nil {
			unknown = append(unknown, k)
			continue
		}
		if f.Changed(flag) {
			return fmt.Errorf("unable to configure the daemon with file %s: the following directives are specified both as a flag and in the configuration file: %s", path, k)
		}
		if why, no := refused[flag]; no {
			return fmt.Errorf("%s: %s: %s", path, k, why)
		}
		if k == "tls" {
			c.tlsGiven = true
		}
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		return fmt.Errorf("unable to configure the daemon with file %s: the following directives don't match any configuration option: %s", path, strings.Join(unknown, ", "))
	}
	return json.Unmarshal(b, c)
}

// ownNames are the host names that the daemon was told to listen on.
func (c Config) ownNames() (names []string) {
	for _, h := range c.Hosts {
		if u, err := url.Parse(h); err == nil && u.Scheme == "tcp" {
			names = append(names, u.Hostname())
		}
	}
	return names
}

// registries says how registries are reached.
func (c Config) registries() containerd.RegistryOptions {
	return containerd.RegistryOptions{Mirrors: c.Mirrors, Insecure: c.Insecure, CertDirs: []string{"/etc/berth/certs.d", "/etc/docker/certs.d"}, Downloads: c.Downloads}
}

// key tells this engine's names on the host from those of others: "" for the
// default run folder, else six digits that stand for it.
func (c Config) key() string {
	if filepath.Clean(c.ExecRoot) == defaultExecRoot {
		return ""
	}
	sum := sha256.Sum256([]byte(filepath.Clean(c.ExecRoot)))
	return hex.EncodeToString(sum[:3])
}

// runtimes gives the runtimes beside the keeper, by name.
func (c Config) runtimes() (map[string]task.Foreign, error) {
	all := map[string]task.Foreign{}
	for name, path := range c.AddRuntimes {
		all[name] = task.Foreign{Path: path}
	}
	for name, r := range c.Runtimes {
		if len(r.Args) > 0 {
			return nil, fmt.Errorf("runtime %s: runtimeArgs are not supported: name a script that adds them", name)
		}
		all[name] = task.Foreign{Path: r.Path, Type: r.Type}
	}
	for name, r := range all {
		if name == defaultRuntime || name == "" {
			return nil, fmt.Errorf("runtime name %q is reserved", name)
		}
		if (r.Path == "") == (r.Type == "") {
			return nil, fmt.Errorf("runtime %s: give either a path or a runtimeType", name)
		}
	}
	return all, nil
}

// runtimeNames tells what there is, for people.
func (c Config) runtimeNames() map[string]string {
	names := map[string]string{defaultRuntime: "berth-keeper", "runc": "berth-keeper"}
	all, _ := c.runtimes() // checked when the daemon started
	for name, r := range all {
		names[name] = r.Path + r.Type
	}
	return names
}

// ulimits reads name=soft[:hard].
func (c Config) ulimits() ([]container.Ulimit, error) {
	var list []container.Ulimit
	for _, text := range c.Ulimits {
		name, values, ok := strings.Cut(text, "=")
		var u container.Ulimit
		n, err := 0, error(nil)
		if ok {
			n, err = fmt.Sscanf(strings.ReplaceAll(values, ":", " "), "%d %d", &u.Soft, &u.Hard)
		}
		if !ok || n == 0 {
			return nil, fmt.Errorf("--default-ulimit %s: want name=soft[:hard] (%w)", text, err)
		}
		if n == 1 {
			u.Hard = u.Soft
		}
		u.Name = name
		list = append(list, u)
	}
	return list, nil
}

// pools gives where networks take their subnets from.
func (c Config) pools() ([]network.Block, error) {
	var list []network.Block
	add := func(base string, size int) error {
		p, err := netip.ParsePrefix(base)
		if err != nil || size < p.Bits() || size > 30 && p.Addr().Is4() {
			return fmt.Errorf("--default-address-pool base=%s,size=%d is not valid", base, size)
		}
		list = append(list, network.Block{Base: p.Masked(), Size: size})
		return nil
	}
	for _, p := range c.AddressPools {
		if err := add(p.Base, p.Size); err != nil {
			return nil, err
		}
	}
	for _, text := range c.Pools {
		var base string
		var size int
		for _, part := range strings.Split(text, ",") {
			k, v, _ := strings.Cut(part, "=")
			switch k {
			case "base":
				base = v
			case "size":
				_, _ = fmt.Sscan(v, &size)
			}
		}
		if err := add(base, size); err != nil {
			return nil, err
		}
	}
	return list, nil
}
