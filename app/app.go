package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/plugin"
	units "github.com/docker/go-units"

	"github.com/berth-project/berth/app/welcome"
	coreapp "github.com/berth-project/berth/core/app"
	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/event"
	"github.com/berth-project/berth/core/network"
	"github.com/berth-project/berth/core/volume"
	"github.com/berth-project/berth/door/docker"
	"github.com/berth-project/berth/door/kit"
	"github.com/berth-project/berth/door/native"
	"github.com/berth-project/berth/engine/bridge"
	"github.com/berth-project/berth/engine/containerd"
	"github.com/berth-project/berth/engine/files"
	"github.com/berth-project/berth/engine/firewall"
	"github.com/berth-project/berth/engine/keeper"
	keeperplugin "github.com/berth-project/berth/engine/keeper/plugin"
	"github.com/berth-project/berth/engine/output"
	"github.com/berth-project/berth/engine/proxy"
	"github.com/berth-project/berth/engine/resolver"
	"github.com/berth-project/berth/engine/task"
	enginevolume "github.com/berth-project/berth/engine/volume"
	"github.com/berth-project/berth/lib/fault"
	"github.com/berth-project/berth/lib/host"
	"github.com/berth-project/berth/store"
)

// Build says what program this is; main passes what the linker wrote.
type Build struct {
	Version, Commit, Time string
}

// Run is the daemon: it returns the exit code when it was told to stop.
func Run(ctx context.Context, args []string, b Build) int {
	c, notes, err := parse(args)
	switch {
	case errors.Is(err, errVersion):
		fmt.Printf("berthd version %s, build %s\n", b.Version, b.Commit)
		return 0
	case err != nil && strings.Contains(err.Error(), "help requested"):
		return 0
	case err != nil:
		fmt.Fprintln(os.Stderr, "berthd:", err)
		return 1
	}
	level := &slog.LevelVar{}
	first, err := c.level()
	if err != nil {
		fmt.Fprintf(os.Stderr, "berthd: unable to parse logging level: %s\n", c.LogLevel)
		return 1
	}
	level.Set(first)
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	for _, name := range notes {
		log.Info("option has no meaning here and is ignored", "option", name)
	}
	if err := serve(ctx, c, b, log, level, args); err != nil {
		fmt.Fprintln(os.Stderr, "berthd:", err)
		return 1
	}
	return 0
}

// daemon is all parts of one engine, in the order in which they start.
type daemon struct {
	c     Config
	given Config // as flags and file said, before paths were made whole
	log   *slog.Logger
	level *slog.LevelVar
	stop  []func() error // undone last to first

	cgroups    string // who makes the containers' cgroups
	store      *store.Store
	keeper     *keeper.Client
	engine     *containerd.Engine
	runtime    *task.Runtime
	images     *containerd.Library
	containers *container.Service
	networks   *network.Service
	volumes    *volume.Service
	apps       *coreapp.Service
	events     *event.Bus
	report     *report
	server     *http.Server
}

func (d *daemon) later(f func() error) { d.stop = append(d.stop, f) }

func (d *daemon) close() {
	for i := len(d.stop) - 1; i >= 0; i-- {
		if err := d.stop[i](); err != nil {
			d.log.Warn("stop", "error", err)
		}
	}
}

func serve(ctx context.Context, c Config, b Build, log *slog.Logger, level *slog.LevelVar, args []string) error {
	if os.Geteuid() != 0 {
		return errors.New("the daemon needs root: sudo berthd")
	}
	ctx, cancel := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	// Who reads the log may go away. Caught and dropped, not ignored: what is
	// ignored stays ignored in every program that is started.
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	defer signal.Stop(broken)
	started := time.Now()
	d := &daemon{c: c, given: c, log: log, level: level, events: &event.Bus{}}
	defer d.close()
	if err := d.roots(); err != nil {
		return err
	}
	if err := d.build(ctx, b); err != nil {
		return err
	}
	failed, err := d.listen()
	if err != nil {
		return err
	}
	log.Info("ready", "hosts", strings.Join(d.c.Hosts, " "), "took", time.Since(started).Round(time.Millisecond).String())
	notifyReady()
	for {
		select {
		case <-ctx.Done():
			log.Info("stopping")
			return nil
		case err := <-failed:
			return err
		case <-hangups:
			d.reload(args)
		}
	}
}

// roots makes the folders and takes the pid file.
func (d *daemon) roots() error {
	c := &d.c
	for _, p := range []*string{&c.DataRoot, &c.ExecRoot} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	if n := len(c.ExecRoot); n > longestExecRoot {
		return fmt.Errorf("--exec-root %s has %d characters: the kernel's bound for sockets leaves it %d", c.ExecRoot, n, longestExecRoot)
	}
	if len(c.Hosts) == 0 {
		c.Hosts = []string{"unix://" + filepath.Join(c.ExecRoot, "docker.sock")}
	}
	if c.PidFile == "" {
		c.PidFile = filepath.Join(c.ExecRoot, "berthd.pid")
	}
	for dir, mode := range map[string]os.FileMode{c.DataRoot: 0o711, c.ExecRoot: 0o711, filepath.Dir(c.PidFile): 0o755} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return err
		}
	}
	if b, err := os.ReadFile(c.PidFile); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && pid != os.Getpid() {
			if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && strings.HasSuffix(strings.TrimSuffix(exe, " (deleted)"), "berthd") {
				return fmt.Errorf("another berthd runs with this exec-root (pid %d): stop it, or give this one its own --data-root and --exec-root", pid)
			}
		}
	}
	if err := os.WriteFile(c.PidFile, []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return err
	}
	d.later(func() error { return os.Remove(c.PidFile) })
	return nil
}

// build makes every part, each before those that need it.
func (d *daemon) build(ctx context.Context, b Build) error {
	c, log := d.c, d.log
	facts := host.Look()
	var err error
	if d.cgroups, err = c.cgroupDriver(facts); err != nil {
		return err
	}
	if d.store, err = store.Open(ctx, filepath.Join(c.DataRoot, "berth.db"), log); err != nil {
		return err
	}
	d.later(d.store.Close)
	binary, err := keeperBinary()
	if err != nil {
		return err
	}
	if d.keeper, err = keeper.Connect(ctx, keeper.Options{Dir: filepath.Join(c.ExecRoot, "keeper"), Binary: binary, Cgroup: c.keeperCgroup(), Logger: log}); err != nil {
		return err
	}
	d.later(d.closeKeeper)
	// containerd's clients have a realm of their own there.
	tasks, err := keeper.Connect(ctx, keeper.Options{Dir: filepath.Join(c.ExecRoot, "keeper"), Binary: binary, Cgroup: c.keeperCgroup(), Realm: "containerd", Logger: log})
	if err != nil {
		return err
	}
	d.later(tasks.Close)
	socket := filepath.Join(c.ExecRoot, "containerd.sock")
	state := filepath.Join(c.ExecRoot, "containerd", "state")
	ended := task.Ended(ctx, containerd.Bundles(state), log)
	if d.engine, err = containerd.Boot(ctx, containerd.Options{Root: filepath.Join(c.DataRoot, "containerd"), State: state, Socket: socket, Logger: log, Tasks: func(stock plugin.Registration) plugin.Registration {
		return keeperplugin.Wrap(keeperplugin.Options{Keeper: tasks, Logger: log}, stock)
	}}); err != nil {
		return err
	}
	d.later(d.engine.Close)
	snapshotter := map[string]string{"": "overlayfs", "overlay2": "overlayfs", "overlayfs": "overlayfs", "overlay": "overlayfs", "native": "native", "vfs": "native"}[c.Storage]
	if snapshotter == "" {
		return fmt.Errorf("--storage-driver %s is not known: use overlayfs or native", c.Storage)
	}
	if d.images, err = containerd.NewLibrary(ctx, containerd.LibraryOptions{Engine: d.engine, Snapshotter: snapshotter, Events: d.events, Logger: log, Registry: c.registries()}); err != nil {
		return err
	}
	d.later(func() error { d.images.Close(); return nil })
	if _, err = d.store.Meta(ctx, "welcome", func() string {
		if err := welcome.Load(ctx, d.images); err != nil {
			log.Warn("image welcome not loaded", "error", err)
		}
		return "given"
	}); err != nil {
		return err
	}
	root, err := containerd.NewRootFS(d.images, filepath.Join(c.ExecRoot, "rootfs"))
	if err != nil {
		return err
	}
	if err := d.buildNetworks(); err != nil {
		return err
	}
	local, err := enginevolume.NewLocal(filepath.Join(c.DataRoot, "volumes"))
	if err != nil {
		return err
	}
	if d.volumes, err = volume.New(ctx, volume.Options{Store: d.store, Drivers: map[string]volume.Driver{"local": local}, Events: d.events, Logger: log}); err != nil {
		return err
	}
	pump, err := output.New(output.Options{Dir: filepath.Join(c.DataRoot, "containers"), Run: filepath.Join(c.ExecRoot, "output"), Logger: log})
	if err != nil {
		return err
	}
	profile, err := seccompProfile(c.Seccomp)
	if err != nil {
		return err
	}
	runtimes, err := c.runtimes()
	if err != nil {
		return err
	}
	runtime, err := task.New(task.Options{Shims: d.engine.Client(), Ended: ended, ShimPath: shimPath(), Runtimes: runtimes, Namespace: containerd.Namespace, Keeper: newKeeperPort(d.keeper, d.cgroups == driverSystemd), Systemd: d.cgroups == driverSystemd, ScopePrefix: c.cgroupName(), Dir: filepath.Join(c.ExecRoot, "task"), CgroupParent: c.cgroupParent(d.cgroups), InitPath: initPath(c.InitPath), SeccompProfile: profile, NoNewPrivileges: c.NoNewPrivileges, SELinux: d.selinux(facts), Logger: log})
	if err != nil {
		return err
	}
	d.runtime = runtime
	inside, err := files.New(filepath.Join(c.ExecRoot, "files"))
	if err != nil {
		return err
	}
	defaults, err := d.defaults(facts)
	if err != nil {
		return err
	}
	if err := pump.Check(defaults.Log); err != nil {
		return fmt.Errorf("--log-driver: %w", err)
	}
	d.containers = container.New(container.Options{
		Store: d.store, Runtime: runtime, RootFS: root, Files: inside, Output: pump, Networks: d.networks, Volumes: d.volumes, Images: d.images,
		Committer: committer{d.images}, Events: d.events, Logger: log, Dir: filepath.Join(c.DataRoot, "containers"), Driver: driverName(snapshotter), Defaults: defaults,
		Deferred: func(c container.Container) bool { return d.apps.Deferred(c) },
		Host:     hostLimits(facts, d.cgroups),
	})
	d.connect()
	if d.apps, err = coreapp.New(ctx, coreapp.Options{Containers: d.containers, Networks: d.networks, Volumes: d.volumes, Images: d.images, Events: d.events, Store: d.store, Logger: log}); err != nil {
		return err
	}
	if err := d.containers.Restore(ctx); err != nil {
		return err
	}
	d.later(func() error { d.containers.Shutdown(); return nil })
	builder, err := d.newBuilder(ctx, binary, snapshotter, runtime)
	if err != nil {
		return err
	}
	d.later(builder.Close)
	if err := d.apps.Restore(ctx); err != nil {
		return err
	}
	streams, endStreams := context.WithCancel(context.Background())
	d.later(func() error { endStreams(); d.apps.Shutdown(); return nil })
	d.report = d.system(ctx, facts, b, snapshotter, socket)
	door, err := docker.New(docker.Options{
		Build: builder, Containers: d.containers, Images: d.images, Networks: d.networks, Volumes: volume.Volumes{Service: d.volumes}, Events: d.events, Logger: log,
		System: d.report,
	})
	if err != nil {
		return err
	}
	own := native.New(native.Options{Apps: d.apps, Mounts: builder, Events: d.events, Logger: log, Done: streams})
	d.server = &http.Server{Handler: kit.Guard(doors(door, own, c.Debug), c.ownNames()...), ReadHeaderTimeout: 30 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	return nil
}

// doors gives each request to the door whose path it has.
func doors(docker, own http.Handler, debug bool) http.Handler {
	var inside http.Handler
	if debug {
		inside = debugDoor()
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, native.Prefix) {
			own.ServeHTTP(w, r)
			return
		}
		if inside != nil && strings.HasPrefix(r.URL.Path, "/debug/") {
			inside.ServeHTTP(w, r)
			return
		}
		docker.ServeHTTP(w, r)
	})
}

// connect tells the parts about one another where both need the other.
func (d *daemon) connect() {
	d.images.SetUsers(func(id string) []containerd.User {
		var users []containerd.User
		for _, c := range d.containers.All() {
			mounted := slices.ContainsFunc(c.Mounts, func(m container.MountPoint) bool { return m.Type == container.MountImage && m.Name == id })
			if c.ImageID == id || mounted {
				users = append(users, containerd.User{ID: c.ID, Name: c.Name, Image: c.Spec.Image, Running: c.State.Status == container.Running || c.State.Status == container.Paused})
			}
		}
		return users
	})
	d.volumes.SetUsers(d.containers.VolumeUsers)
}

// closeKeeper ends the keeper where it holds nothing; else it stays with its containers.
func (d *daemon) closeKeeper() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := d.keeper.Shutdown(ctx)
	switch {
	case errors.Is(err, fault.ErrConflict):
		err = nil // it holds containers, of Docker's clients or containerd's
	case err == nil && d.runtime != nil:
		d.runtime.Close()
	}
	return errors.Join(err, d.keeper.Close())
}

func (d *daemon) buildNetworks() error {
	c := d.c
	key := c.key()
	links, err := bridge.New(filepath.Join(c.ExecRoot, "netns"), key)
	if err != nil {
		return err
	}
	blocks, err := c.pools()
	if err != nil {
		return err
	}
	o := network.Options{
		Store: d.store, Links: links, Proxy: proxy.New(), Resolver: resolver.New(d.log, firewall.RedirectDNS), Events: d.events, Logger: d.log, Pools: blocks,
		Bridge: network.DefaultBridge{Name: c.Bridge, MTU: c.MTU, ICC: c.ICC, Masq: c.IPMasq, IPv6: c.IPv6},
	}
	if c.IPTables {
		o.Firewall = firewall.New(key, d.log)
	}
	if o.Bridge.Name == "" {
		o.Bridge.Name = "berth0"
		if key != "" {
			o.Bridge.Name = "br" + key
		}
	}
	for _, p := range []struct {
		flag, text string
		to         *netip.Prefix
	}{{"bip", c.BIP, &o.Bridge.BIP}, {"fixed-cidr", c.FixedCIDR, &o.Bridge.FixedCIDR}, {"fixed-cidr-v6", c.FixedCIDRv6, &o.Bridge.FixedCIDRv6}} {
		if p.text == "" {
			continue
		}
		if *p.to, err = netip.ParsePrefix(p.text); err != nil {
			return fmt.Errorf("--%s: %w", p.flag, err)
		}
	}
	if c.HostGateway != "" {
		if o.HostGateway, err = netip.ParseAddr(c.HostGateway); err != nil {
			return fmt.Errorf("--host-gateway-ip: %w", err)
		}
	}
	if c.IP != "" {
		if o.Bridge.HostIP, err = netip.ParseAddr(c.IP); err != nil {
			return fmt.Errorf("--ip: %w", err)
		}
	}
	for _, text := range c.DNS {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("--dns: %w", err)
		}
		o.Defaults.Servers = append(o.Defaults.Servers, a)
	}
	o.Defaults.Options, o.Defaults.Search = c.DNSOptions, c.DNSSearch
	o.HostResolv = hostResolv
	d.networks = network.New(o)
	d.later(d.networks.Shutdown)
	return nil
}

// hostResolv reads the host's servers of names as containers can reach them:
// where systemd's stub stands for them, what it asks.
func hostResolv() []byte {
	const stub = "127.0.0.53"
	conf, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	servers := 0
	for _, l := range strings.Split(string(conf), "\n") {
		if f := strings.Fields(l); len(f) > 1 && f[0] == "nameserver" && f[1] != stub {
			servers++
		}
	}
	if servers == 0 {
		if real, err := os.ReadFile("/run/systemd/resolve/resolv.conf"); err == nil {
			return real
		}
	}
	return conf
}

func driverName(snapshotter string) string {
	if snapshotter == "overlayfs" {
		return "overlay2"
	}
	return "vfs"
}

func (d *daemon) defaults(f host.Facts) (container.Defaults, error) {
	c := d.c
	out := container.Defaults{Log: container.LogConfig{Driver: c.LogDriver, Options: c.LogOpts}, Init: c.Init, Runtime: c.Runtime}
	if !d.runtime.Knows(c.Runtime) {
		return out, fmt.Errorf("--default-runtime %s: specified default runtime does not exist: name it with --add-runtime too", c.Runtime)
	}
	size, err := units.RAMInBytes(c.ShmSize)
	if err != nil {
		return out, fmt.Errorf("--default-shm-size: %w", err)
	}
	out.ShmSize = size
	if out.CgroupnsMode, err = c.cgroupnsMode(f); err != nil {
		return out, err
	}
	out.Ulimits, err = c.ulimits()
	return out, err
}

// selinux tells whether containers are labelled: where it is asked for and the host can.
func (d *daemon) selinux(f host.Facts) bool {
	if d.c.SELinux && !f.SELinux {
		d.log.Warn("SELinux is not enabled on this host: containers are not labelled")
	}
	return d.c.SELinux && f.SELinux
}

func seccompProfile(path string) (string, error) {
	switch path {
	case "", "builtin", "default":
		return "", nil
	case "unconfined":
		return path, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("--seccomp-profile: %w", err)
	}
	return string(b), nil
}

// initPath finds a small init on the host.
func initPath(given string) string {
	if given != "" {
		return given
	}
	for _, p := range []string{"/usr/libexec/berth/tini", "/usr/bin/tini-static", "/usr/bin/tini", "/usr/libexec/docker/docker-init", "/usr/bin/docker-init"} {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return ""
}

// shimPath is of containerd's shim beside this program: one of another
// release than the linked containerd's may speak another protocol.
func shimPath() string {
	self, err := os.Executable()
	if err != nil {
		return ""
	}
	beside := filepath.Join(filepath.Dir(self), "containerd-shim-runc-v2")
	if _, err := os.Stat(beside); err != nil {
		return ""
	}
	return beside
}

// keeperBinary looks beside this program, then in the PATH.
func keeperBinary() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	beside := filepath.Join(filepath.Dir(self), "berth-keeper")
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	path, err := exec.LookPath("berth-keeper")
	if err != nil {
		return "", fmt.Errorf("berth-keeper is neither beside %s nor in the PATH: install it there", self)
	}
	return path, nil
}

// listen serves all addresses; the first that fails ends the daemon.
func (d *daemon) listen() (<-chan error, error) {
	conf, err := d.tls()
	if err != nil {
		return nil, err
	}
	failed := make(chan error, len(d.c.Hosts))
	var listeners []net.Listener
	for _, address := range d.c.Hosts {
		l, err := kit.Listen(address, kit.ListenOptions{Group: d.c.Group, TLS: conf, Insecure: d.c.tlsGiven && !d.c.TLS})
		if err != nil {
			for _, open := range listeners {
				_ = open.Close()
			}
			return nil, err
		}
		if strings.HasPrefix(address, "tcp://") && conf == nil {
			d.log.Warn("the API is served on tcp without TLS: everybody who reaches it is root on this machine", "address", address)
		}
		listeners = append(listeners, l)
	}
	for _, l := range listeners {
		go func() {
			if err := d.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				failed <- err
			}
		}()
	}
	d.later(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		d.containers.Shutdown() // ends streams, so that requests end
		if err := d.server.Shutdown(ctx); err != nil {
			return d.server.Close()
		}
		return nil
	})
	return failed, nil
}

func (d *daemon) tls() (*tls.Config, error) {
	c := d.c
	if !c.TLS && !c.TLSVerify {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("--tlscert and --tlskey: %w", err)
	}
	out := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	if c.TLSVerify {
		pem, err := os.ReadFile(c.TLSCACert)
		if err != nil {
			return nil, fmt.Errorf("--tlscacert: %w", err)
		}
		out.ClientCAs, out.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if !out.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--tlscacert %s holds no certificate", c.TLSCACert)
		}
	}
	return out, nil
}

// notifyReady tells systemd (sd_notify(3)).
func notifyReady() {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	conn, err := net.Dial("unixgram", path)
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "READY=1")
}
