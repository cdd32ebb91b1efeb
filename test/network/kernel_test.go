package network_test

import (
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// routeLoopback sends 127.0.0.0/8 over the wire, as an attacker would.
func routeLoopback() error {
	if err := os.WriteFile("/proc/thread-self/root/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0o644); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetDown(lo); err != nil {
		return err
	}
	return routeTo(netip.MustParseAddr("127.0.0.1"))
}

// routeTo makes the host the way to an address.
func routeTo(a netip.Addr) error {
	l, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	bits := a.BitLen()
	via := net.ParseIP(hostOnLAN)
	if a.Is6() {
		via = net.ParseIP(host6OnLAN)
	}
	return netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, bits)}, Gw: via})
}
