package network_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/network"
	"github.com/berth-project/berth/lib/fault"
)

func at(a netip.Addr, port string) string { return net.JoinHostPort(a.String(), port) }

func yes() *bool { v := true; return &v }

// eventually waits for a condition.
func eventually(t testing.TB, within time.Duration, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !f(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func TestAFlushedFirewallIsWrittenAgain(t *testing.T) {
	w := newWorld(t)
	a := w.open("a", "default", publish("", 8090, 80, "tcp"))
	w.serve(a.sandbox.NetNS, "tcp", "0.0.0.0:80", "a")
	before := ruleset(t)
	for _, command := range []string{"flush ruleset", "delete table inet berth", "flush table inet berth", "delete element inet berth published_any4 { tcp . 8090 }", "flush chain bridge berth prerouting"} {
		if out, err := exec.Command("nft", command).CombinedOutput(); err != nil {
			t.Fatalf("nft %s: %s", command, out)
		}
		eventually(t, 2*time.Second, "the rules of before, after "+command, func() bool { return ruleset(t) == before })
	}
	w.reaches(w.neighbour, "tcp", hostOnLAN+":8090", "a ")
}

func TestADeletedBridgeIsMadeAgain(t *testing.T) {
	w := newWorld(t)
	w.network(network.CreateOptions{Name: "mended"})
	a, b := w.open("a", "default", publish("", 8190, 80, "tcp")), w.open("b", "mended", publish("", 8191, 80, "tcp"))
	w.serve(a.sandbox.NetNS, "tcp", "0.0.0.0:80", "a")
	w.serve(b.sandbox.NetNS, "tcp", "0.0.0.0:80", "b")
	for range 2 { // once is not enough
		deleted := 0
		links, err := netlink.LinkList()
		must(t, err)
		for _, l := range links {
			if l.Type() == "bridge" && l.Attrs().Alias == "berth" {
				must(t, netlink.LinkDel(l))
				deleted++
			}
		}
		if deleted < 2 {
			t.Fatalf("%d bridges were there", deleted)
		}
		eventually(t, 10*time.Second, "the ports are on bridges again", func() bool {
			masters := 0
			for _, e := range []container.Endpoint{a.sandbox.Endpoints[0], b.sandbox.Endpoints[0]} {
				if l, err := netlink.LinkByName("veth" + e.EndpointID[:8]); err == nil && l.Attrs().MasterIndex != 0 {
					masters++
				}
			}
			return masters == 2
		})
		w.reaches(w.neighbour, "tcp", hostOnLAN+":8190", "a ")
		w.reaches(w.neighbour, "tcp", hostOnLAN+":8191", "b ")
	}
}

// A daemon may be killed at any instant: a bridge is there only while its
// network is written down, and one that has no name yet is swept.
func TestEveryBridgeHasAnOwner(t *testing.T) {
	w := newWorld(t)
	const named = "ofaperson"
	looked := 0
	w.store.look = func(n network.Network) {
		if looked++; n.Name != "owned" {
			t.Errorf("network %q changed", n.Name)
		}
		if _, err := netlink.LinkByName(named); err == nil {
			t.Error("the bridge is there without an owner")
		}
	}
	_, _, err := w.Create(t.Context(), network.CreateOptions{Name: "owned", Options: map[string]string{"com.docker.network.bridge.name": named}})
	must(t, err)
	l, err := netlink.LinkByName(named)
	must(t, err)
	if l.Attrs().Alias != "berth" {
		t.Errorf("the bridge is not marked: alias %q", l.Attrs().Alias)
	}
	must(t, w.Remove(t.Context(), "owned"))
	if looked != 2 {
		t.Errorf("the store was asked %d times", looked)
	}
	w.store.look = nil

	add := func(name string) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	}
	add("br-~ABCDEF")
	add("br-0123456789ab") // of docker
	must(t, w.Shutdown())
	w.start()
	if _, err := netlink.LinkByName("br-~ABCDEF"); err == nil {
		t.Error("what was about to be made is left")
	}
	docker, err := netlink.LinkByName("br-0123456789ab")
	must(t, err)
	must(t, netlink.LinkDel(docker))
}

// ruleset is all rules and elements, in an order of its own.
func ruleset(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	must(t, err)
	words := strings.Fields(strings.ReplaceAll(string(out), ",", " "))
	return fmt.Sprint(len(words))
}

func TestBothFamilies(t *testing.T) {
	w := newWorld(t)
	w.network(network.CreateOptions{Name: "dual", EnableIPv6: yes()})
	w.network(network.CreateOptions{Name: "dual2", EnableIPv6: yes()})
	a, b, c := w.open("a", "dual", publish("", 8091, 80, "tcp"), publish("", 8091, 80, "udp")), w.open("b", "dual"), w.open("c", "dual2")
	w.serve(a.sandbox.NetNS, "tcp", "[::]:80", "a")
	w.serve(a.sandbox.NetNS, "udp", "[::]:80", "a")
	w.serve(w.neighbour, "tcp", "[::]:80", "n")
	w.reaches(b.sandbox.NetNS, "tcp", at(a.ip6(), "80"), "a "+b.ip6().String())
	w.blocked(c.sandbox.NetNS, "tcp", at(a.ip6(), "80"))
	w.reaches(a.sandbox.NetNS, "tcp", "["+neighbour6+"]:80", "n "+host6OnLAN)
	for _, proto := range []string{"tcp", "udp"} {
		w.reaches(w.neighbour, proto, "["+host6OnLAN+"]:8091", "a "+neighbour6)
		w.reaches("", proto, "["+host6OnLAN+"]:8091", "a ")
		w.reaches("", proto, "[::1]:8091", "a ")
		w.reaches(c.sandbox.NetNS, proto, "["+host6OnLAN+"]:8091", "a ")
		w.reaches(w.neighbour, proto, hostOnLAN+":8091", "a ")
	}
}

func TestIPv6ReachesContainersThatHaveNone(t *testing.T) {
	w := newWorld(t)
	a := w.open("a", "default", publish("", 8092, 80, "tcp"), publish("", 8092, 80, "udp"))
	w.serve(a.sandbox.NetNS, "tcp", "0.0.0.0:80", "a")
	w.serve(a.sandbox.NetNS, "udp", "0.0.0.0:80", "a")
	for _, proto := range []string{"tcp", "udp"} {
		w.reaches(w.neighbour, proto, "["+host6OnLAN+"]:8092", "a ")
		w.reaches("", proto, "[::1]:8092", "a ")
	}
}

func TestConnectAndDisconnectWhileRunning(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	w.network(network.CreateOptions{Name: "alpha"})
	w.network(network.CreateOptions{Name: "inner", Internal: true})
	a := w.open("a", "inner", publish("", 8093, 80, "tcp"))
	b := w.open("b", "alpha")
	w.serve(a.sandbox.NetNS, "tcp", "0.0.0.0:80", "a")
	w.serve(w.neighbour, "tcp", "0.0.0.0:80", "n")
	w.blocked(a.sandbox.NetNS, "tcp", neighbourOnLAN+":80")
	w.blocked(w.neighbour, "tcp", hostOnLAN+":8093")
	e, _, err := w.Connect(ctx, a.Container, container.EndpointSpec{Network: "alpha", Aliases: []string{"web"}})
	must(t, err)
	if e.Interface != "eth1" {
		t.Errorf("the interface is %s", e.Interface)
	}
	w.reaches(b.sandbox.NetNS, "tcp", at(e.IPv4.Addr(), "80"), "a ")
	w.reaches(a.sandbox.NetNS, "tcp", neighbourOnLAN+":80", "n ")
	w.reaches(w.neighbour, "tcp", hostOnLAN+":8093", "a ")
	if _, _, err := w.Connect(ctx, a.Container, container.EndpointSpec{Network: "alpha"}); err == nil || !strings.Contains(err.Error(), "endpoint with name a already exists in network alpha") {
		t.Errorf("connected twice: %v", err)
	}
	_, err = w.Disconnect(ctx, a.Container, "alpha", false)
	must(t, err)
	w.blocked(a.sandbox.NetNS, "tcp", neighbourOnLAN+":80")
	w.blocked(w.neighbour, "tcp", hostOnLAN+":8093")
	if _, err := w.Disconnect(ctx, a.Container, "alpha", false); err == nil || !strings.Contains(err.Error(), "is not connected to") {
		t.Errorf("disconnected twice: %v", err)
	}
	got, err := w.Get(ctx, "alpha", "")
	must(t, err)
	if len(got.Endpoints) != 1 {
		t.Errorf("members: %v", got.Endpoints)
	}
}

func TestPublishedPortsFollowTheWayOut(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	w.network(network.CreateOptions{Name: "alpha"})
	w.network(network.CreateOptions{Name: "beta"})
	a := w.open("a", "alpha", publish("", 8094, 80, "tcp"))
	w.serve(a.sandbox.NetNS, "tcp", "0.0.0.0:80", "a")
	_, _, err := w.Connect(ctx, a.Container, container.EndpointSpec{Network: "beta"})
	must(t, err)
	w.reaches(w.neighbour, "tcp", hostOnLAN+":8094", "a ")
	_, err = w.Disconnect(ctx, a.Container, "alpha", false)
	must(t, err)
	w.reaches(w.neighbour, "tcp", hostOnLAN+":8094", "a ")
}

func TestARestartedDaemonTakesOver(t *testing.T) {
	w := newWorld(t)
	w.network(network.CreateOptions{Name: "alpha"})
	a := w.open("a", "alpha", publish("", 8095, 80, "tcp"))
	gone := w.open("gone", "alpha", publish("", 8096, 80, "tcp"))
	w.serve(a.sandbox.NetNS, "tcp", "0.0.0.0:80", "a")
	must(t, w.Shutdown())
	w.reaches(w.neighbour, "tcp", hostOnLAN+":8095", "a ") // while no daemon runs
	// Damage that the next one finds.
	l, err := netlink.LinkByName("veth" + a.sandbox.Endpoints[0].EndpointID[:8])
	must(t, err)
	must(t, netlink.LinkSetNoMaster(l))
	w.start(a.Container)
	w.reaches(w.neighbour, "tcp", hostOnLAN+":8095", "a ")
	w.blocked(w.neighbour, "tcp", hostOnLAN+":8096")
	if _, err := os.Stat(gone.sandbox.NetNS); err == nil {
		t.Error("the namespace of a container that does not run is left")
	}
	if _, err := netlink.LinkByName("veth" + gone.sandbox.Endpoints[0].EndpointID[:8]); err == nil {
		t.Error("its interface is left")
	}
	b := w.open("b", "alpha")
	if b.ip() == a.ip() {
		t.Error("an address was given twice")
	}
	c := made("c", "alpha", publish("", 8095, 80, "tcp"))
	if _, err := w.Open(context.Background(), c); err == nil || !strings.Contains(err.Error(), "port is already allocated") {
		t.Errorf("a port was given twice: %v", err)
	}
	w.reaches(b.sandbox.NetNS, "tcp", at(a.ip(), "80"), "a ")
	must(t, w.Close(context.Background(), a.Container))
	w.blocked(w.neighbour, "tcp", hostOnLAN+":8095")
	w.open("d", "alpha", publish("", 8095, 80, "tcp")) // free again
}

func TestContainersCannotClaimWhatIsAnothers(t *testing.T) {
	w := newWorld(t)
	a, b := w.open("a", "default"), w.open("b", "default")
	w.serve(a.sandbox.NetNS, "tcp", "0.0.0.0:80", "a")
	gateway := a.sandbox.Endpoints[0].Gateway4
	hears := func(from, claimed string, mac net.HardwareAddr) bool {
		t.Helper()
		heard := make(chan bool, 1)
		listening := make(chan struct{})
		go func() {
			heard <- in(t, a.sandbox.NetNS, func() error { return hearARP(netip.MustParseAddr(claimed), listening) }) == nil
		}()
		<-listening
		for {
			must(t, in(t, from, func() error { return sayARP(netip.MustParseAddr(claimed), mac) }))
			select {
			case h := <-heard:
				return h
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	if !hears(b.sandbox.NetNS, b.ip().String(), nil) {
		t.Fatal("the container's own address is not heard")
	}
	if hears(b.sandbox.NetNS, gateway.String(), nil) {
		t.Error("the gateway's address was claimed")
	}
	if hears(b.sandbox.NetNS, b.ip().String(), net.HardwareAddr{2, 1, 2, 3, 4, 5}) {
		t.Error("another MAC was used")
	}
	// An address of somebody else as source of a packet.
	w.serve(a.sandbox.NetNS, "udp", "0.0.0.0:53", "a")
	must(t, in(t, b.sandbox.NetNS, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: gateway.AsSlice(), Mask: net.CIDRMask(32, 32)}})
	}))
	err := in(t, b.sandbox.NetNS, func() error {
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: gateway.AsSlice()}}
		c, err := d.Dial("udp", at(a.ip(), "53"))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("?"))
		return err
	})
	must(t, err)
	stats, err := w.NetStats(a.Container)
	must(t, err)
	if stats["eth0"].RxPackets == 0 {
		t.Errorf("no counters: %v", stats)
	}
}

func TestOpeningManyAtOnce(t *testing.T) {
	w := newWorld(t)
	w.network(network.CreateOptions{Name: "alpha"})
	const n = 32
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[netip.Addr]bool{}
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := made(fmt.Sprintf("c%d", i), []string{"default", "alpha"}[i%2], publish("", 0, 80, "tcp"))
			s, err := w.Open(context.Background(), c)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if a := s.Endpoints[0].IPv4.Addr(); seen[a] {
				t.Errorf("%s was given twice", a)
			} else {
				seen[a] = true
			}
			t.Cleanup(func() { must(t, w.Close(context.Background(), c)) })
		}()
	}
	wg.Wait()
}

func TestMoreContainersThanABridgeHasPorts(t *testing.T) {
	if os.Getenv("BERTH_TEST_LOAD") == "" {
		t.Skip("takes long, and the host's net.core.netdev_max_backlog must be above 1060 (set BERTH_TEST_LOAD)")
	}
	w := newWorld(t)
	w.network(network.CreateOptions{Name: "alpha"})
	const n = 1060
	all := make([]*box, n)
	var wg sync.WaitGroup
	next := make(chan int)
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range next {
				c := made(fmt.Sprintf("c%d", i), "alpha")
				s, err := w.Open(context.Background(), c)
				if err != nil {
					t.Error(err)
					continue
				}
				t.Cleanup(func() { must(t, w.Close(context.Background(), c)) })
				all[i] = &box{Container: c, w: w, sandbox: s}
			}
		}()
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	if t.Failed() {
		return
	}
	last := all[n-1]
	w.serve(last.sandbox.NetNS, "tcp", "0.0.0.0:80", "last")
	w.serve(w.neighbour, "tcp", "0.0.0.0:80", "n")
	for _, i := range []int{0, 1, 500, n - 2} {
		w.reaches(all[i].sandbox.NetNS, "tcp", at(last.ip(), "80"), "last "+all[i].ip().String())
		w.reaches(all[i].sandbox.NetNS, "tcp", neighbourOnLAN+":80", "n ")
	}
	w.reaches("", "tcp", at(last.ip(), "80"), "last ")
}

func TestManyPorts(t *testing.T) {
	w := newWorld(t)
	a := w.open("a", "default", func(s *container.Spec) {
		for p := 20000; p <= 21000; p++ {
			publish("", uint16(p), uint16(p), "tcp")(s)
		}
	})
	w.serve(a.sandbox.NetNS, "tcp", "0.0.0.0:20777", "a")
	w.reaches(w.neighbour, "tcp", hostOnLAN+":20777", "a ")
}

func TestErrorsAreDockers(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	subnet := netip.MustParsePrefix("10.77.0.0/24")
	w.network(network.CreateOptions{Name: "alpha", IPAM: network.IPAM{Pools: []network.Pool{{Subnet: subnet}}}})
	w.network(network.CreateOptions{Name: "auto"})
	a := w.open("a", "alpha", publish("", 8097, 80, "tcp"), func(s *container.Spec) {
		s.Endpoints = []container.EndpointSpec{{Network: "alpha", IPv4: netip.MustParseAddr("10.77.0.9"), MacAddress: "02:42:0A:4D:00:09"}}
	})
	if got := a.sandbox.Endpoints[0]; got.IPv4.String() != "10.77.0.9/24" || got.MacAddress != "02:42:0a:4d:00:09" {
		t.Errorf("static addresses: %v %v", got.IPv4, got.MacAddress)
	}
	check := func(mode string, e container.EndpointSpec) error {
		e.Network = mode
		return w.Check(ctx, made("x", mode, func(s *container.Spec) { s.Endpoints = []container.EndpointSpec{e} }))
	}
	open := func(mode string, change ...func(*container.Spec)) error {
		_, err := w.Open(ctx, made("x", mode, change...))
		return err
	}
	create := func(o network.CreateOptions) error { _, _, err := w.Create(ctx, o); return err }
	taken, err := net.Listen("tcp", "0.0.0.0:8098")
	must(t, err)
	defer taken.Close()
	for _, c := range []struct {
		err   error
		class error
		text  string
	}{
		{open("nowhere"), fault.ErrNotFound, "nowhere"},
		{check("bridge", container.EndpointSpec{IPv4: netip.MustParseAddr("172.17.0.9")}), fault.ErrInvalid, "user specified IP address is supported on user defined networks only"},
		{check("bridge", container.EndpointSpec{Aliases: []string{"x"}}), fault.ErrInvalid, "network-scoped aliases are only supported for user-defined networks"},
		{check("alpha", container.EndpointSpec{IPv4: netip.MustParseAddr("10.78.0.9")}), fault.ErrInvalid, "invalid endpoint settings:\nno configured subnet contains IP address 10.78.0.9"},
		{check("auto", container.EndpointSpec{IPv4: netip.MustParseAddr("172.18.0.9")}), fault.ErrInvalid, "user specified IP address is supported only when connecting to networks with user configured subnets"},
		{open("alpha", func(s *container.Spec) {
			s.Endpoints = []container.EndpointSpec{{Network: "alpha", IPv4: netip.MustParseAddr("10.77.0.9")}}
		}), fault.ErrPermission, "Address already in use"},
		{open("default", publish("", 8097, 80, "tcp")), fault.ErrInternal, "Bind for 0.0.0.0:8097 failed: port is already allocated"},
		{open("default", publish("", 8097, 80, "tcp")), fault.ErrInternal, "driver failed programming external connectivity on endpoint x ("},
		{open("default", publish("", 8098, 80, "tcp")), fault.ErrInternal, "failed to bind host port 0.0.0.0:8098/tcp: address already in use"},
		{create(network.CreateOptions{Name: "alpha"}), fault.ErrConflict, "network with name alpha already exists"},
		{create(network.CreateOptions{Name: "bridge"}), fault.ErrPermission, "operation is not permitted on predefined bridge network"},
		{create(network.CreateOptions{Name: "x y"}), fault.ErrInvalid, "invalid network name"},
		{create(network.CreateOptions{Name: "b", IPAM: network.IPAM{Pools: []network.Pool{{Subnet: subnet}}}}), fault.ErrPermission, "Pool overlaps with other one on this address space"},
		{create(network.CreateOptions{Name: "b", Options: map[string]string{"com.docker.network.bridge.name": "berth0"}}), nil, "networks have same bridge name"},
		{create(network.CreateOptions{Name: "b", Driver: "weird"}), fault.ErrNotFound, "weird"},
		{w.Remove(ctx, "bridge"), fault.ErrPermission, "bridge is a pre-defined network and cannot be removed"},
		{w.Remove(ctx, "alpha"), fault.ErrPermission, "has active endpoints"},
		{w.Remove(ctx, "nowhere"), fault.ErrNotFound, "nowhere"},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.text) {
			t.Errorf("got %v, want %q", c.err, c.text)
		} else if c.class != nil && !isClass(c.err, c.class) {
			t.Errorf("%v is not of the class %v", c.err, c.class)
		}
	}
}

func isClass(err, class error) bool {
	type many interface{ Unwrap() []error }
	type single interface{ Unwrap() error }
	for err != nil {
		if err == class {
			return true
		}
		switch e := err.(type) {
		case many:
			for _, x := range e.Unwrap() {
				if isClass(x, class) {
					return true
				}
			}
			return false
		case single:
			err = e.Unwrap()
		default:
			return false
		}
	}
	return false
}

func TestHostsAndResolv(t *testing.T) {
	w := newWorld(t)
	w.network(network.CreateOptions{Name: "alpha", IPAM: network.IPAM{Pools: []network.Pool{{Subnet: netip.MustParsePrefix("10.77.0.0/24")}}}})
	db := w.open("db", "default")
	a := w.open("a", "default", func(s *container.Spec) {
		s.Hostname, s.Domainname = "web", "example.test"
		s.ExtraHosts = []string{"one:10.1.2.3", "host.docker.internal:host-gateway"}
		s.Links = []string{"db:store"}
	})
	want := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n" +
		"10.1.2.3\tone\n172.17.0.1\thost.docker.internal\n" + db.ip().String() + "\tstore " + db.Spec.Hostname + " db\n" + a.ip().String() + "\tweb.example.test web\n"
	if diff := cmp.Diff(want, string(a.sandbox.Hosts)); diff != "" {
		t.Errorf("hosts (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("# Written by Berth.\nnameserver 10.99.0.2\nsearch example.test\n", string(a.sandbox.Resolv)); diff != "" {
		t.Errorf("resolv.conf (-want +got):\n%s", diff)
	}
	b := w.open("b", "alpha")
	if diff := cmp.Diff("# Written by Berth.\nnameserver 127.0.0.11\nsearch example.test\noptions ndots:0\n", string(b.sandbox.Resolv)); diff != "" {
		t.Errorf("resolv.conf (-want +got):\n%s", diff)
	}
}

// BenchmarkOpen measures a container's way on and off the default bridge.
func BenchmarkOpen(b *testing.B) {
	for _, c := range []struct {
		name, mode string
		change     []func(*container.Spec)
	}{{"bridge", "default", nil}, {"port", "default", []func(*container.Spec){publish("", 0, 80, "tcp")}}, {"named", "alpha", nil}, {"none", "none", nil}} {
		b.Run(c.name, func(b *testing.B) {
			w := newWorld(b)
			if c.mode == "alpha" {
				w.network(network.CreateOptions{Name: "alpha"})
			}
			var opening, closing time.Duration
			b.ResetTimer()
			for range b.N {
				x := made("x", c.mode, c.change...)
				start := time.Now()
				_, err := w.Open(context.Background(), x)
				opening += time.Since(start)
				must(b, err)
				start = time.Now()
				must(b, w.Close(context.Background(), x))
				closing += time.Since(start)
			}
			b.ReportMetric(float64(opening.Microseconds())/float64(b.N), "µs/open")
			b.ReportMetric(float64(closing.Microseconds())/float64(b.N), "µs/close")
			b.StopTimer()
		})
	}
}
