package network_test

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/network"
)

// query asks 127.0.0.11 in a sandbox and gives the sorted answers.
func (w *world) query(ns, transport, name string, kind uint16) (answers []string, code int) {
	w.t.Helper()
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	var m *dns.Msg
	err := in(w.t, ns, func() error {
		c, err := net.DialTimeout(transport, "127.0.0.11:53", patience)
		if err != nil {
			return err
		}
		conn := &dns.Conn{Conn: c}
		defer conn.Close()
		client := &dns.Client{Net: transport, Timeout: patience}
		m, _, err = client.ExchangeWithConn(q, conn)
		return err
	})
	if err != nil {
		w.t.Fatalf("%s %s: %v", transport, name, err)
	}
	for _, rr := range m.Answer {
		switch x := rr.(type) {
		case *dns.A:
			answers = append(answers, x.A.String())
		case *dns.AAAA:
			answers = append(answers, x.AAAA.String())
		case *dns.PTR:
			answers = append(answers, x.Ptr)
		}
	}
	slices.Sort(answers)
	return answers, m.Rcode
}

// nameServer answers every question with one address.
func (w *world) nameServer(ns, address, answer string) {
	w.t.Helper()
	started := make(chan struct{})
	var s *dns.Server
	must(w.t, w.within(ns, func() error {
		c, err := net.ListenPacket("udp", address)
		if err != nil {
			return err
		}
		s = &dns.Server{PacketConn: c, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(r dns.ResponseWriter, q *dns.Msg) {
			m := new(dns.Msg).SetReply(q)
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.ParseIP(answer)}}
			_ = r.WriteMsg(m)
		})}
		return nil
	}))
	go func() { _ = s.ActivateAndServe() }()
	<-started
	w.t.Cleanup(func() { must(w.t, s.ShutdownContext(context.Background())) })
}

func TestNames(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	w.network(network.CreateOptions{Name: "alpha", EnableIPv6: yes()})
	w.network(network.CreateOptions{Name: "beta"})
	on := func(aliases ...string) func(*container.Spec) {
		return func(s *container.Spec) {
			s.Endpoints = []container.EndpointSpec{{Network: s.NetworkMode, Aliases: aliases}}
		}
	}
	a := w.open("a", "alpha", on("web", "Shared"), func(s *container.Spec) { s.Hostname = "host-a" })
	b := w.open("b", "alpha", on("shared"), func(s *container.Spec) {
		s.Endpoints[0].Links = []string{"a:linked"}
	})
	other := w.open("other", "beta")
	w.nameServer(w.neighbour, neighbourOnLAN+":53", "192.0.2.7")
	both := []string{a.ip().String(), b.ip().String()}
	slices.Sort(both)
	for _, c := range []struct {
		name string
		kind uint16
		want []string
	}{
		{"a", dns.TypeA, []string{a.ip().String()}},
		{"A", dns.TypeA, []string{a.ip().String()}},
		{"a.alpha", dns.TypeA, []string{a.ip().String()}},
		{"a", dns.TypeAAAA, []string{a.ip6().String()}},
		{"web", dns.TypeA, []string{a.ip().String()}},
		{"host-a", dns.TypeA, []string{a.ip().String()}},
		{a.ID.Short(), dns.TypeA, []string{a.ip().String()}},
		{"shared", dns.TypeA, both},
		{"linked", dns.TypeA, []string{a.ip().String()}},
		{"host.docker.internal", dns.TypeA, []string{"172.17.0.1"}},
		{"a", dns.TypeMX, nil},
		{"other", dns.TypeA, []string{"192.0.2.7"}}, // of another network: as any name of the world
		{"example.test", dns.TypeA, []string{"192.0.2.7"}},
	} {
		got, code := w.query(b.sandbox.NetNS, "udp", c.name, c.kind)
		if diff := cmp.Diff(c.want, got); diff != "" || code != dns.RcodeSuccess {
			t.Errorf("%s (%s): code %d, -want +got:\n%s", c.name, dns.TypeToString[c.kind], code, diff)
		}
	}
	if got, _ := w.query(b.sandbox.NetNS, "tcp", "a", dns.TypeA); !cmp.Equal(got, []string{a.ip().String()}) {
		t.Errorf("over TCP: %v", got)
	}
	for _, ip := range []netip.Addr{a.ip(), a.ip6()} {
		name, err := dns.ReverseAddr(ip.String())
		must(t, err)
		if got, _ := w.query(b.sandbox.NetNS, "udp", name, dns.TypePTR); !cmp.Equal(got, []string{"a.alpha."}) {
			t.Errorf("%s is %v", ip, got)
		}
	}
	_, _, err := w.Connect(ctx, b.Container, container.EndpointSpec{Network: "beta", Aliases: []string{"late"}})
	must(t, err)
	if got, _ := w.query(b.sandbox.NetNS, "udp", "other", dns.TypeA); !cmp.Equal(got, []string{other.ip().String()}) {
		t.Errorf("after connecting: %v", got)
	}
	if got, _ := w.query(other.sandbox.NetNS, "udp", "late", dns.TypeA); len(got) != 1 || got[0] == "192.0.2.7" {
		t.Errorf("a late alias: %v", got)
	}
	c := a.Container
	c.Name = "renamed"
	must(t, w.Renamed(ctx, c))
	if got, _ := w.query(b.sandbox.NetNS, "udp", "renamed", dns.TypeA); !cmp.Equal(got, []string{a.ip().String()}) {
		t.Errorf("after renaming: %v", got)
	}
	must(t, w.Close(ctx, a.Container))
	if got, _ := w.query(b.sandbox.NetNS, "udp", "shared", dns.TypeA); !cmp.Equal(got, []string{b.ip().String()}) {
		t.Errorf("after a has gone: %v", got)
	}
}

func TestInternalNetworksLeakNoNames(t *testing.T) {
	w := newWorld(t)
	w.network(network.CreateOptions{Name: "inner", Internal: true})
	a := w.open("a", "inner")
	w.nameServer(w.neighbour, neighbourOnLAN+":53", "192.0.2.7")
	if got, code := w.query(a.sandbox.NetNS, "udp", "secret.example.test", dns.TypeA); code != dns.RcodeNameError || len(got) > 0 {
		t.Errorf("got %v, code %d", got, code)
	}
	if got, _ := w.query(a.sandbox.NetNS, "udp", "a", dns.TypeA); !cmp.Equal(got, []string{a.ip().String()}) {
		t.Errorf("its own name: %v", got)
	}
}

func TestServersOfAContainerAreAskedFromInside(t *testing.T) {
	w := newWorld(t)
	w.network(network.CreateOptions{Name: "alpha"})
	a := w.open("a", "alpha", func(s *container.Spec) { s.DNS = []netip.Addr{netip.MustParseAddr("127.0.0.1")} })
	w.nameServer(a.sandbox.NetNS, "0.0.0.0:53", "192.0.2.8") // port 53 is the container's to use
	if got, _ := w.query(a.sandbox.NetNS, "udp", "example.test", dns.TypeA); !cmp.Equal(got, []string{"192.0.2.8"}) {
		t.Errorf("got %v", got)
	}
}

func TestNamesAnswerAgainAfterARestart(t *testing.T) {
	w := newWorld(t)
	w.network(network.CreateOptions{Name: "alpha"})
	a, b := w.open("a", "alpha"), w.open("b", "alpha")
	must(t, w.Shutdown())
	w.start(a.Container, b.Container)
	if got, _ := w.query(b.sandbox.NetNS, "udp", "a", dns.TypeA); !cmp.Equal(got, []string{a.ip().String()}) {
		t.Errorf("got %v", got)
	}
}

func TestEvents(t *testing.T) {
	w := newWorld(t)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	_, events := w.events.Subscribe(ctx, time.Time{})
	id, _, err := w.Create(ctx, network.CreateOptions{Name: "alpha"})
	must(t, err)
	c := made("a", "alpha")
	_, err = w.Open(ctx, c)
	must(t, err)
	must(t, w.Close(ctx, c))
	must(t, w.Remove(ctx, id))
	for _, want := range []struct {
		action     string
		attributes map[string]string
	}{
		{"create", map[string]string{"name": "alpha", "type": "bridge"}},
		{"connect", map[string]string{"name": "alpha", "type": "bridge", "container": string(c.ID)}},
		{"disconnect", map[string]string{"name": "alpha", "type": "bridge", "container": string(c.ID)}},
		{"destroy", map[string]string{"name": "alpha", "type": "bridge"}},
	} {
		e := <-events
		if e.Action != want.action || e.ID != id || !cmp.Equal(e.Attributes, want.attributes) {
			t.Errorf("got %v, want %v", e, want)
		}
	}
}

func TestModesOfGateways(t *testing.T) {
	w := newWorld(t)
	option := func(mode string) map[string]string {
		return map[string]string{"com.docker.network.bridge.gateway_mode_ipv4": mode}
	}
	w.network(network.CreateOptions{Name: "routed", Options: option("routed")})
	w.network(network.CreateOptions{Name: "open", Options: option("nat-unprotected")})
	w.network(network.CreateOptions{Name: "alone", Internal: true, Options: option("isolated")})
	r, o, i := w.open("r", "routed", publish("", 8100, 80, "tcp")), w.open("o", "open"), w.open("i", "alone")
	for _, b := range []*box{r, o, i} {
		w.serve(b.sandbox.NetNS, "tcp", "0.0.0.0:80", b.Name)
		w.serve(b.sandbox.NetNS, "tcp", "0.0.0.0:81", b.Name)
		must(t, in(t, w.neighbour, func() error { return routeTo(b.ip()) }))
	}
	w.serve(w.neighbour, "tcp", "0.0.0.0:90", "n")
	w.reaches(w.neighbour, "tcp", at(r.ip(), "80"), "r "+neighbourOnLAN)
	w.blocked(w.neighbour, "tcp", at(r.ip(), "81"))
	w.blocked(w.neighbour, "tcp", hostOnLAN+":8100")
	w.reaches(r.sandbox.NetNS, "tcp", neighbourOnLAN+":90", "n "+r.ip().String())
	w.reaches(w.neighbour, "tcp", at(o.ip(), "81"), "o ")
	w.blocked("", "tcp", at(i.ip(), "80"))
}

func TestMacvlan(t *testing.T) {
	w := newWorld(t)
	subnet := netip.MustParsePrefix("10.99.0.0/24")
	o := network.CreateOptions{Name: "wire", Driver: "macvlan", Options: map[string]string{"parent": "eth0"},
		IPAM: network.IPAM{Pools: []network.Pool{{Subnet: subnet, Range: netip.MustParsePrefix("10.99.0.128/25"), Gateway: netip.MustParseAddr(hostOnLAN), Aux: map[string]netip.Addr{"n": netip.MustParseAddr("10.99.0.129")}}}}}
	id, _, err := w.Create(context.Background(), o)
	must(t, err)
	t.Cleanup(func() { must(t, w.Remove(context.Background(), id)) })
	c := made("a", "wire")
	s, err := w.Open(context.Background(), c)
	if err != nil {
		t.Skipf("this kernel has no macvlan: %v", err)
	}
	t.Cleanup(func() { must(t, w.Close(context.Background(), c)) })
	w.serve(s.NetNS, "tcp", "0.0.0.0:80", "a")
	w.reaches(w.neighbour, "tcp", at(s.Endpoints[0].IPv4.Addr(), "80"), "a "+neighbourOnLAN)
	stats, err := w.NetStats(c)
	must(t, err)
	if stats["eth0"].RxPackets == 0 {
		t.Errorf("no counters: %v", stats)
	}
}
