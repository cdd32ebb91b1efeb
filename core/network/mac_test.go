package network

import (
	"net/netip"
	"testing"

	"github.com/berth-project/berth/core/container"
)

// Who is given an address that another had a moment ago is reached at once.
func TestTheSameAddressHasTheSameMAC(t *testing.T) {
	mac := func(v4, v6 string) string {
		e := container.Endpoint{}
		if v4 != "" {
			e.IPv4 = netip.MustParsePrefix(v4)
		}
		if v6 != "" {
			e.IPv6 = netip.MustParsePrefix(v6)
		}
		return addressMAC(e)
	}
	if a := mac("172.18.0.2/16", "fd00::2/64"); a != "02:42:ac:12:00:02" {
		t.Error(a)
	}
	if a, b := mac("", "fd00::2/64"), mac("", "fd00::2/64"); a != b || a == mac("", "fd00::3/64") {
		t.Error(a, b)
	}
	if a, b := mac("", ""), mac("", ""); a == b {
		t.Error("without an address two interfaces have one MAC")
	}
}
