package resolver

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/berth-project/berth/test/kit"
)

// In a network namespace of their own, which needs root to be entered.
func TestMain(m *testing.M) { os.Exit(kit.Main(m)) }

// elsewhere knows no name and sends all to its servers.
type elsewhere []netip.AddrPort

func (elsewhere) Lookup(string, string) ([]netip.Addr, bool) { return nil, false }
func (elsewhere) Reverse(string, netip.Addr) (string, bool)  { return "", false }
func (e elsewhere) Upstream(string) ([]netip.AddrPort, bool) { return e, false }

func socket(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestAStopEndsTheQueriesUnderWay(t *testing.T) {
	silent, next := socket(t), socket(t)
	var names elsewhere
	for _, c := range []*net.UDPConn{silent, next} {
		names = append(names, c.LocalAddr().(*net.UDPAddr).AddrPort())
	}
	var port uint16
	r := New(nil, func(_ *os.File, udp, _ uint16) error { port = udp; return nil })
	if err := r.Serve("x", "/proc/self/ns/net", names); err != nil {
		t.Fatal(err)
	}
	q, err := new(dns.Msg).SetQuestion("example.org.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.11"), port)))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write(q); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, dns.MinMsgSize)
	_ = silent.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := silent.Read(b); err != nil {
		t.Fatal("the first server was not asked:", err)
	}
	r.Stop("x")
	// All that was sent over the loopback before Stop returned is here.
	_ = next.SetReadDeadline(time.Now().Add(time.Millisecond))
	if n, err := next.Read(b); err == nil {
		t.Errorf("the next server was asked after the stop, %d bytes", n)
	}
}
