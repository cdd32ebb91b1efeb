package network

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

func TestAddressesOfAPool(t *testing.T) {
	pre, addr := netip.MustParsePrefix, netip.MustParseAddr
	for _, c := range []struct {
		name    string
		pool    Pool
		gateway string
		want    []string // given one after the other
	}{
		{"the first address is the gateway's", Pool{Subnet: pre("10.0.0.0/24")}, "10.0.0.1", []string{"10.0.0.2", "10.0.0.3"}},
		{"a gateway that was asked for is nobody's", Pool{Subnet: pre("10.0.0.0/24"), Gateway: addr("10.0.0.2")}, "10.0.0.2", []string{"10.0.0.1", "10.0.0.3"}},
		{"a range limits what is given", Pool{Subnet: pre("10.0.0.0/24"), Range: pre("10.0.0.64/30")}, "10.0.0.1", []string{"10.0.0.64", "10.0.0.65"}},
		{"auxiliary addresses are left out", Pool{Subnet: pre("10.0.0.0/24"), Aux: map[string]netip.Addr{"x": addr("10.0.0.2")}}, "10.0.0.1", []string{"10.0.0.3"}},
		{"the broadcast address is never given", Pool{Subnet: pre("10.0.0.0/30")}, "10.0.0.1", []string{"10.0.0.2", ""}},
		{"IPv6 has no broadcast address", Pool{Subnet: pre("fd00::/126")}, "fd00::1", []string{"fd00::2", "fd00::3", ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := newAddressPool(c.pool)
			if err != nil || p.gateway.String() != c.gateway {
				t.Fatalf("gateway %v, %v", p.gateway, err)
			}
			for _, want := range c.want {
				got, err := p.take(netip.Addr{})
				if want == "" && err == nil || want != "" && got.Addr().String() != want {
					t.Errorf("got %v, %v; want %q", got, err, want)
				}
			}
		})
	}
}

func TestAnAddressComesBackAndIsGivenLate(t *testing.T) {
	p, err := newAddressPool(Pool{Subnet: netip.MustParsePrefix("10.0.0.0/29")})
	if err != nil {
		t.Fatal(err)
	}
	first, _ := p.take(netip.Addr{})
	p.give(first.Addr())
	if second, _ := p.take(netip.Addr{}); second == first {
		t.Error("it was given again at once")
	}
	if _, err := p.take(first.Addr()); err != nil {
		t.Errorf("it cannot be asked for: %v", err)
	}
	if _, err := p.take(first.Addr()); !errors.Is(err, fault.ErrPermission) {
		t.Errorf("it was given twice: %v", err)
	}
}

func TestPortsClashByAddressAndFamily(t *testing.T) {
	table := newPortTable()
	publish := func(ip string) error {
		_, err := table.take(container.Publish{Port: container.Port{Number: 80, Proto: "tcp"}, HostPort: 48123}, []netip.Addr{netip.MustParseAddr(ip)})
		return err
	}
	for _, c := range []struct {
		ip   string
		fine bool
	}{{"127.0.0.1", true}, {"127.0.0.1", false}, {"127.0.0.2", true}, {"0.0.0.0", false}} {
		if err := publish(c.ip); (err == nil) != c.fine {
			t.Errorf("%s: %v", c.ip, err)
		}
	}
	table.give(container.Binding{Port: container.Port{Number: 80, Proto: "tcp"}, HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 48123})
	if err := publish("127.0.0.1"); err != nil {
		t.Errorf("it was given back: %v", err)
	}
}
