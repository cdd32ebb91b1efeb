package proxy

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth/core/network"
	"github.com/berth-project/berth/test/kit"
)

func TestMain(m *testing.M) { os.Exit(kit.Main(m)) }

// named answers every packet with a name, at 127.0.0.1.
func named(t *testing.T, name string) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		b := make([]byte, 100)
		for {
			_, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort([]byte(name), from)
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// free gives a port of ::1 that nobody has.
func free(t *testing.T) uint16 {
	t.Helper()
	c, err := net.ListenPacket("udp6", "[::1]:0")
	if errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT) {
		kit.Skip(t, "the kernel has no IPv6 here")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

func TestAUDPClientFollowsItsPortToTheNextContainer(t *testing.T) {
	p := New()
	defer p.Close()
	port := free(t)
	rule := func(to netip.AddrPort) []network.Rule {
		return []network.Rule{{Proto: "udp", HostIP: netip.IPv6Loopback(), HostPort: port, To: to}}
	}
	old, next := rule(named(t, "old")), rule(named(t, "next"))
	if err := p.Serve(old); err != nil {
		t.Fatal(err)
	}
	client, err := net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.IPv6Loopback(), port)))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ask := func() string {
		_ = client.SetDeadline(time.Now().Add(10 * time.Second))
		b := make([]byte, 100)
		if _, err := client.Write([]byte("who")); err != nil {
			t.Fatal(err)
		}
		n, err := client.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	if got := ask(); got != "old" {
		t.Fatal(got)
	}
	if err := p.Serve(next); err != nil {
		t.Fatal(err)
	}
	p.Stop(old) // leads elsewhere: nothing is stopped
	for range 3 {
		if got := ask(); got != "next" {
			t.Errorf("asked %q", got)
		}
	}
	p.Stop(next)
	if l, err := net.ListenPacket("udp6", client.RemoteAddr().String()); err != nil {
		t.Error("the port is still held:", err)
	} else {
		_ = l.Close()
	}
}

func TestAStoppedUDPPortOpensNothing(t *testing.T) {
	p := New()
	port := free(t)
	rules := []network.Rule{{Proto: "udp", HostIP: netip.IPv6Loopback(), HostPort: port, To: named(t, "x")}}
	if err := p.Serve(rules); err != nil {
		t.Fatal(err)
	}
	u := &packets{to: &p.open[listening{"udp", netip.AddrPortFrom(netip.IPv6Loopback(), port)}].to}
	p.Close()
	// As the packet that was read before the stop.
	if c := u.peer(netip.MustParseAddrPort("[::1]:1")); c != nil {
		t.Error("a peer was opened after the stop")
	}
}
