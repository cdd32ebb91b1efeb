// Package network_test drives the network service with the real kernel, in
// namespaces of its own: real bridges, rules and connections.
package network_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/event"
	"github.com/berth-project/berth/core/network"
	"github.com/berth-project/berth/engine/bridge"
	"github.com/berth-project/berth/engine/firewall"
	"github.com/berth-project/berth/engine/proxy"
	"github.com/berth-project/berth/engine/resolver"
)

const inside = "BERTH_NETWORK_TEST_INSIDE"

// TestMain runs the tests again in network and mount namespaces of their own.
func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	if os.Geteuid() != 0 {
		fmt.Println("skipped: needs root")
		os.Exit(0)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		os.Exit(failed.ExitCode())
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// memory is a store that forgets at the end of the test.
type memory struct {
	mu   sync.Mutex
	list map[string]network.Network
	look func(network.Network) // called whenever one is put or deleted
}

func (m *memory) PutNetwork(_ context.Context, n network.Network) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list[n.ID] = n
	if m.look != nil {
		m.look(n)
	}
	return nil
}

func (m *memory) DeleteNetwork(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.look != nil {
		m.look(m.list[id])
	}
	delete(m.list, id)
	return nil
}

func (m *memory) Networks(context.Context) ([]network.Network, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []network.Network
	for _, n := range m.list {
		all = append(all, n)
	}
	return all, nil
}

// world is a host with one engine and a neighbour on a wire.
type world struct {
	*network.Service
	t         testing.TB
	dir       string
	store     *memory
	options   network.Options
	events    *event.Bus
	neighbour string // path of its namespace
}

const (
	hostOnLAN      = "10.99.0.1"
	neighbourOnLAN = "10.99.0.2"
	host6OnLAN     = "fd99::1"
	neighbour6     = "fd99::2"
)

func newWorld(t testing.TB, change ...func(*network.Options)) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), store: &memory{list: map[string]network.Network{}}, events: &event.Bus{}}
	must(t, netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}))
	w.neighbour = w.namespace("neighbour")
	w.wire()
	w.options = network.Options{Store: w.store, Events: w.events, Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
		Bridge:     network.DefaultBridge{Name: "berth0", ICC: true, Masq: true},
		HostResolv: func() []byte { return []byte("nameserver " + neighbourOnLAN + "\nsearch example.test\n") }}
	for _, f := range change {
		f(&w.options)
	}
	w.start()
	t.Cleanup(func() {
		must(t, w.Shutdown())
		w.checkNothingLeft()
	})
	return w
}

// start makes a service over the same store, as a new daemon does.
func (w *world) start(running ...container.Container) {
	w.t.Helper()
	links, err := bridge.New(filepath.Join(w.dir, "netns"), "")
	must(w.t, err)
	o := w.options
	o.Links, o.Firewall, o.Proxy = links, firewall.New("", o.Logger), proxy.New()
	o.Resolver = resolver.New(o.Logger, firewall.RedirectDNS)
	w.Service = network.New(o)
	must(w.t, w.Restore(context.Background(), running))
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// namespace makes one that ends with the test.
func (w *world) namespace(name string) string {
	path := filepath.Join(w.dir, name)
	f, err := os.Create(path)
	must(w.t, err)
	must(w.t, f.Close())
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	}()
	must(w.t, <-done)
	w.t.Cleanup(func() { must(w.t, unix.Unmount(path, unix.MNT_DETACH)) })
	return path
}

// in runs f with the thread in a namespace; the thread is not used again.
func in(t testing.TB, path string, f func() error) error {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		ns, err := os.Open(path)
		if err != nil {
			done <- err
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// wire joins host and neighbour.
func (w *world) wire() {
	ns, err := os.Open(w.neighbour)
	must(w.t, err)
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	must(w.t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd()))}))
	w.t.Cleanup(func() {
		if l, err := netlink.LinkByName("eth0"); err == nil {
			must(w.t, netlink.LinkDel(l))
		}
	})
	up := func(addresses ...string) error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, a := range addresses {
			parsed, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			parsed.Flags |= unix.IFA_F_NODAD
			if parsed.IP.To4() != nil {
				parsed.Flags = 0
			}
			if err := netlink.AddrAdd(l, parsed); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	}
	must(w.t, up(hostOnLAN+"/24", host6OnLAN+"/64"))
	must(w.t, in(w.t, w.neighbour, func() error {
		if err := netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}); err != nil {
			return err
		}
		return up(neighbourOnLAN+"/24", neighbour6+"/64")
	}))
}

func (w *world) checkNothingLeft() {
	w.t.Helper()
	links, err := netlink.LinkList()
	must(w.t, err)
	for _, l := range links {
		if n := l.Attrs().Name; strings.HasPrefix(n, "b") || strings.HasPrefix(n, "berth") || strings.HasPrefix(n, "veth") {
			w.t.Errorf("the interface %s is left", n)
		}
	}
	if out, _ := exec.Command("nft", "list", "ruleset").CombinedOutput(); strings.Contains(string(out), "berth") {
		w.t.Errorf("rules are left:\n%s", out)
	}
	if left, _ := os.ReadDir(filepath.Join(w.dir, "netns")); len(left) > 0 {
		w.t.Errorf("namespaces are left: %v", left)
	}
}

// box is a container without a process.
type box struct {
	container.Container
	w       *world
	sandbox container.Sandbox
}

func newID() container.ID {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	return container.ID(hex.EncodeToString(b))
}

// made is a container as the container service would make it.
func made(name, mode string, change ...func(*container.Spec)) container.Container {
	c := container.Container{ID: newID(), Name: name, Spec: container.Spec{NetworkMode: mode}}
	c.Spec.Hostname = c.ID.Short()
	for _, f := range change {
		f(&c.Spec)
	}
	return c
}

// open makes a container's place on networks and closes it with the test.
func (w *world) open(name, mode string, change ...func(*container.Spec)) *box {
	w.t.Helper()
	c := made(name, mode, change...)
	must(w.t, w.Check(context.Background(), c))
	s, err := w.Open(context.Background(), c)
	must(w.t, err)
	c.State.Status, c.State.Endpoints, c.State.Ports, c.State.NetNS = container.Running, s.Endpoints, s.Ports, s.NetNS
	b := &box{Container: c, w: w, sandbox: s}
	w.t.Cleanup(func() { must(w.t, w.Close(context.Background(), c)) })
	return b
}

func (b *box) ip() netip.Addr  { return b.sandbox.Endpoints[0].IPv4.Addr() }
func (b *box) ip6() netip.Addr { return b.sandbox.Endpoints[0].IPv6.Addr() }

func publish(host string, hostPort, port uint16, proto string) func(*container.Spec) {
	return func(s *container.Spec) {
		p := container.Publish{Port: container.Port{Number: port, Proto: proto}, HostPort: hostPort}
		if host != "" {
			p.HostIP = netip.MustParseAddr(host)
		}
		s.Publish = append(s.Publish, p)
	}
}

const patience = 3 * time.Second

// serve answers "name peer" on a port in a namespace ("" is the host).
func (w *world) serve(ns, proto, address, name string) {
	w.t.Helper()
	must(w.t, w.within(ns, func() error {
		if proto == "udp" {
			c, err := net.ListenPacket("udp", address)
			if err != nil {
				return err
			}
			w.t.Cleanup(func() { _ = c.Close() })
			go func() {
				b := make([]byte, 1500)
				for {
					_, peer, err := c.ReadFrom(b)
					if err != nil {
						return
					}
					_, _ = c.WriteTo([]byte(name+" "+hostOf(peer)), peer)
				}
			}()
			return nil
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, name+" "+hostOf(c.RemoteAddr()))
				_ = c.Close()
			}
		}()
		return nil
	}))
}

func hostOf(a net.Addr) string {
	h, _, _ := net.SplitHostPort(a.String())
	return h
}

func (w *world) within(ns string, f func() error) error {
	if ns == "" {
		return f()
	}
	return in(w.t, ns, f)
}

// ask connects from a namespace and gives the answer.
func (w *world) ask(ns, proto, address string, timeout time.Duration) (answer string, err error) {
	err = w.within(ns, func() error {
		c, err := net.DialTimeout(proto, address, timeout)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(timeout))
		if proto == "udp" {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
			b := make([]byte, 1500)
			n, err := c.Read(b)
			answer = string(b[:n])
			return err
		}
		b, err := io.ReadAll(c)
		answer = string(b)
		return err
	})
	return answer, err
}

func (w *world) reaches(from, proto, address, want string) {
	w.t.Helper()
	got, err := w.ask(from, proto, address, patience)
	if err != nil || !strings.HasPrefix(got, want) {
		w.t.Errorf("%s %s from %s: got %q, %v; want %q", proto, address, filepath.Base(from), got, err, want)
	}
}

func (w *world) blocked(from, proto, address string) {
	w.t.Helper()
	if got, err := w.ask(from, proto, address, 400*time.Millisecond); err == nil {
		w.t.Errorf("%s %s from %s: got %q, want no answer", proto, address, filepath.Base(from), got)
	}
}
