package firewall

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	core "github.com/berth-project/berth/core/network"
)

// flows matches connections without a handshake that remember how a port was
// translated: their clients would go on to speak to who is no longer there.
type flows struct {
	ports map[uint16]bool     // of the host
	to    map[netip.Addr]bool // containers that were reached
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP || !f.ports[flow.Forward.DstPort] {
		return false
	}
	answering, ok := netip.AddrFromSlice(flow.Reverse.SrcIP)
	target, ok2 := netip.AddrFromSlice(flow.Forward.DstIP)
	// Either it leads to such a container, or it was never translated.
	return ok && ok2 && (f.to[answering.Unmap()] || answering.Unmap() == target.Unmap())
}

// forgetFlows makes the kernel decide anew about packets of UDP ports that are
// published or no longer are.
func forgetFlows(rules []core.Rule) error {
	f := flows{ports: map[uint16]bool{}, to: map[netip.Addr]bool{}}
	for _, r := range rules {
		if r.Proto == "udp" {
			f.ports[r.HostPort], f.to[r.To.Addr()] = true, true
		}
	}
	if len(f.ports) == 0 {
		return nil
	}
	return errors.Join(forget(unix.AF_INET, f), forget(unix.AF_INET6, f))
}

// forget removes the flows of one family, and looks again while flows come and
// go as they are listed: the kernel's list may lack some then.
func forget(family netlink.InetFamily, f flows) (err error) {
	for range 100 {
		if _, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return err
}
