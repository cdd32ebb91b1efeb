package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/network"
	"github.com/berth-project/berth/lib/fault"
)

// Attach makes an interface of a sandbox, or brings one that is there to what it must be.
func (l *Links) Attach(_ context.Context, n network.Link) error {
	s, err := l.sandbox(n.Sandbox)
	if err != nil {
		return err
	}
	if n.Kind == network.Veth {
		err = l.pair(s, n)
	} else {
		err = l.lie(s, n)
	}
	if err != nil {
		return err
	}
	if err := s.addresses(n); err != nil {
		return errors.Join(err, l.Detach(n))
	}
	return nil
}

// pair joins a sandbox to a bridge.
func (l *Links) pair(s *sandbox, n network.Link) error {
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return fault.Invalidf("invalid MAC address: %s", n.MAC)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.TxQLen, attrs.Flags = n.HostName, n.MTU, -1, net.FlagUp
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: n.Interface, PeerHardwareAddr: mac, PeerNamespace: netlink.NsFd(int(s.ns.Fd()))}
	err = l.host.LinkAdd(veth)
	if errors.Is(err, unix.EEXIST) {
		return l.rejoin(n)
	}
	if err == nil {
		err = l.enter(n, veth)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("make interface %s: %w", n.HostName, err), l.Detach(n))
	}
	setSysctl("net/ipv6/conf/"+n.HostName+"/disable_ipv6", "1") // a bridge's port needs no address
	if err := l.port(veth, n); err != nil {
		return errors.Join(err, l.Detach(n))
	}
	return nil
}

// bridge gives the index of a bridge, remembered since it was ensured.
func (l *Links) bridge(name string) (int, error) {
	l.mu.Lock()
	i := l.bridges[name]
	l.mu.Unlock()
	if i != 0 {
		return i, nil
	}
	link, err := l.host.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("bridge %s: %w", name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bridges[name] = link.Attrs().Index
	return link.Attrs().Index, nil
}

func (l *Links) forget(bridge string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.bridges, bridge)
}

// port sets what an interface may do on its bridge.
func (l *Links) port(link netlink.Link, n network.Link) error {
	if n.Isolated {
		if err := l.host.LinkSetIsolated(link, true); err != nil {
			return fmt.Errorf("isolate interface %s: %w", n.HostName, err)
		}
	}
	if filtered() {
		// Then a container that reaches itself over the host's address is not
		// routed but bridged, to the port that it came from.
		if err := l.host.LinkSetHairpin(link, true); err != nil {
			return fmt.Errorf("interface %s: %w", n.HostName, err)
		}
	}
	return nil
}

// filtered tells whether br_netfilter shows bridged frames to the firewall.
func filtered() bool {
	b, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-iptables")
	return err == nil && len(b) > 0 && b[0] == '1'
}

// rejoin puts a pair that is there on its bridge again.
func (l *Links) rejoin(n network.Link) error {
	link, err := l.host.LinkByName(n.HostName)
	if err != nil {
		return err
	}
	if !l.masters(n.Bridge)[link.Attrs().MasterIndex] {
		if err := l.enter(n, link); err != nil {
			return err
		}
		if err := l.port(link, n); err != nil {
			return err
		}
	}
	return l.host.LinkSetUp(link)
}

// lie puts an interface of macvlan or ipvlan on its parent.
func (l *Links) lie(s *sandbox, n network.Link) error {
	if _, err := s.inside.LinkByName(n.Interface); err == nil {
		return nil
	}
	parent, err := l.host.LinkByName(n.Bridge)
	if err != nil {
		return fmt.Errorf("parent interface %s: %w", n.Bridge, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.Namespace, attrs.TxQLen = n.Interface, parent.Attrs().Index, netlink.NsFd(int(s.ns.Fd())), -1
	if n.MTU > 0 {
		attrs.MTU = n.MTU
	}
	var link netlink.Link
	if n.Kind == network.Macvlan {
		if attrs.HardwareAddr, err = net.ParseMAC(n.MAC); err != nil {
			return fault.Invalidf("invalid MAC address: %s", n.MAC)
		}
		link = &netlink.Macvlan{LinkAttrs: attrs, Mode: map[string]netlink.MacvlanMode{"": netlink.MACVLAN_MODE_BRIDGE, "bridge": netlink.MACVLAN_MODE_BRIDGE,
			"private": netlink.MACVLAN_MODE_PRIVATE, "vepa": netlink.MACVLAN_MODE_VEPA, "passthru": netlink.MACVLAN_MODE_PASSTHRU}[n.Mode]}
	} else {
		link = &netlink.IPVlan{LinkAttrs: attrs, Mode: map[string]netlink.IPVlanMode{"": netlink.IPVLAN_MODE_L2, "l2": netlink.IPVLAN_MODE_L2,
			"l3": netlink.IPVLAN_MODE_L3, "l3s": netlink.IPVLAN_MODE_L3S}[n.Mode]}
	}
	if err := l.host.LinkAdd(link); err != nil {
		return fmt.Errorf("make %s interface on %s: %w", n.Kind, n.Bridge, err)
	}
	return nil
}

// addresses sets up an interface inside.
func (s *sandbox) addresses(n network.Link) error {
	link, err := s.inside.LinkByName(n.Interface)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.index[n.Interface] = link.Attrs().Index
	s.mu.Unlock()
	settings := map[string]string{}
	for k, v := range n.Sysctls {
		settings[k] = v
	}
	for _, p := range n.Addresses {
		if p.Addr().Is6() {
			settings["net/ipv6/conf/"+n.Interface+"/disable_ipv6"] = "0"
		}
	}
	if err := s.settings(settings); err != nil {
		return err
	}
	for _, p := range n.Addresses {
		if err := s.inside.AddrAdd(link, address(p)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	return s.inside.LinkSetUp(link)
}

// Route replaces the default routes of a sandbox.
func (l *Links) Route(key string, routes []network.Route) error {
	s, err := l.sandbox(key)
	if err != nil {
		return err
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		var wanted *netlink.Route
		for _, r := range routes {
			if r.Gateway.Is4() != (family == netlink.FAMILY_V4) {
				continue
			}
			index, err := s.indexOf(r.Interface)
			if err != nil {
				return err
			}
			wanted = &netlink.Route{LinkIndex: index, Gw: r.Gateway.AsSlice(), Family: family}
			if err := s.inside.RouteReplace(wanted); err != nil {
				return fmt.Errorf("default route over %s: %w", r.Gateway, err)
			}
		}
		s.mu.Lock()
		had := s.routed[family] || !s.fresh
		s.routed[family] = wanted != nil
		s.mu.Unlock()
		if wanted == nil && had {
			if err := s.noDefault(family); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *sandbox) indexOf(name string) (int, error) {
	s.mu.Lock()
	i := s.index[name]
	s.mu.Unlock()
	if i != 0 {
		return i, nil
	}
	link, err := s.inside.LinkByName(name)
	if err != nil {
		return 0, err
	}
	return link.Attrs().Index, nil
}

// noDefault removes the default routes of a family.
func (s *sandbox) noDefault(family int) error {
	routes, err := whole(func() ([]netlink.Route, error) { return s.inside.RouteList(nil, family) })
	if err != nil {
		return err
	}
	for _, r := range routes {
		if r.Dst != nil && r.Dst.IP != nil {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 {
				continue
			}
		}
		if r.Gw == nil {
			continue
		}
		if err := s.inside.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// Detach removes an interface, by the host's end or inside.
func (l *Links) Detach(n network.Link) error {
	h, name := l.host, n.HostName
	if n.Sandbox != "" {
		s, err := l.sandbox(n.Sandbox)
		if errors.Is(err, os.ErrNotExist) {
			return nil // all went with it
		}
		if err != nil {
			return err
		}
		s.mu.Lock()
		delete(s.index, n.Interface)
		s.mu.Unlock()
		if n.Kind != network.Veth {
			h, name = s.inside, n.Interface
		}
	}
	link, err := h.LinkByName(name)
	if isMissing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// Stats reads the counters of an interface as its container sees them.
func (l *Links) Stats(n network.Link) (container.NetStats, error) {
	h, name := l.host, n.HostName
	if n.Kind != network.Veth {
		s, err := l.sandbox(n.Sandbox)
		if err != nil {
			return container.NetStats{}, err
		}
		h, name = s.inside, n.Interface
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return container.NetStats{}, err
	}
	s := link.Attrs().Statistics
	if s == nil {
		return container.NetStats{}, nil
	}
	if n.Kind != network.Veth {
		return container.NetStats{
			RxBytes: s.RxBytes, RxPackets: s.RxPackets, RxErrors: s.RxErrors, RxDropped: s.RxDropped,
			TxBytes: s.TxBytes, TxPackets: s.TxPackets, TxErrors: s.TxErrors, TxDropped: s.TxDropped,
		}, nil
	}
	// What the host's end sends, the container's receives.
	return container.NetStats{
		RxBytes: s.TxBytes, RxPackets: s.TxPackets, RxErrors: s.TxErrors, RxDropped: s.TxDropped,
		TxBytes: s.RxBytes, TxPackets: s.RxPackets, TxErrors: s.RxErrors, TxDropped: s.RxDropped,
	}, nil
}
