package network_test

import (
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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

// sayARP broadcasts that an address is at a MAC (nil: the interface's own),
// with that MAC as the frame's source.
func sayARP(a netip.Addr, mac net.HardwareAddr) error {
	l, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	if mac == nil {
		mac = l.Attrs().HardwareAddr
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	frame := []byte{255, 255, 255, 255, 255, 255}
	frame = append(append(frame, mac...), 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	frame = append(append(frame, mac...), a.AsSlice()...)
	frame = append(append(frame, 0, 0, 0, 0, 0, 0), a.AsSlice()...)
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index, Halen: 6})
}

// hearARP waits for somebody to claim an address.
func hearARP(a netip.Addr, listening chan<- struct{}) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0x0608) // ETH_P_ARP
	if err != nil {
		close(listening)
		return err
	}
	defer unix.Close(fd)
	close(listening)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 300000}); err != nil {
		return err
	}
	b := make([]byte, 1500)
	for {
		n, err := unix.Read(fd, b)
		if err != nil {
			return err
		}
		if n >= 32 && netip.AddrFrom4([4]byte(b[28:32])) == a {
			return nil
		}
	}
}
