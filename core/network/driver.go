package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// Options of drivers that clients know.
const (
	optionName       = "com.docker.network.bridge.name"
	optionICC        = "com.docker.network.bridge.enable_icc"
	optionMasquerade = "com.docker.network.bridge.enable_ip_masquerade"
	optionHostIP     = "com.docker.network.bridge.host_binding_ipv4"
	optionInhibit4   = "com.docker.network.bridge.inhibit_ipv4"
	optionMode4      = "com.docker.network.bridge.gateway_mode_ipv4"
	optionMode6      = "com.docker.network.bridge.gateway_mode_ipv6"
	optionDefault    = "com.docker.network.bridge.default_bridge"
	optionMTU        = "com.docker.network.driver.mtu"
	optionPrefix     = "com.docker.network.container_iface_prefix"
	optionParent     = "parent"
	optionMacvlan    = "macvlan_mode"
	optionIpvlan     = "ipvlan_mode"
	optionInterface  = "com.docker.network.endpoint.ifname"  // of an endpoint
	optionSysctls    = "com.docker.network.endpoint.sysctls" // of an endpoint
)

// Gateway modes of a bridge.
const (
	modeNAT         = "nat"             // published ports are translated, what goes out is masqueraded
	modeUnprotected = "nat-unprotected" // and all ports are reached at the container's address
	modeRouted      = "routed"          // published ports are reached at the container's address only
	modeIsolated    = "isolated"        // the host has no address on the bridge
)

// Drivers of networks.
const (
	driverBridge  = "bridge"
	driverHost    = "host"
	driverNull    = "null"
	driverMacvlan = "macvlan"
	driverIpvlan  = "ipvlan"
)

// longestName of an interface in Linux.
const longestName = 15

// wired tells whether containers get interfaces of their own on the network.
func (st *state) wired() bool {
	return st.Driver == driverBridge || st.Driver == driverMacvlan || st.Driver == driverIpvlan
}

// checkOptions validates the words of a driver's options.
func checkOptions(n Network) error {
	for _, key := range []string{optionICC, optionMasquerade, optionInhibit4} {
		if v, ok := n.Options[key]; ok {
			if _, err := strconv.ParseBool(v); err != nil {
				return fault.Invalidf("failed to parse %s value: %q (strconv.ParseBool: parsing %q: invalid syntax)", key, v, v)
			}
		}
	}
	if v, ok := n.Options[optionMTU]; ok {
		if mtu, err := strconv.Atoi(v); err != nil || mtu < 0 || mtu > 65535 {
			return fault.Invalidf("failed to parse %s value: %q", optionMTU, v)
		}
	}
	if v, ok := n.Options[optionHostIP]; ok && v != "" {
		if _, err := netip.ParseAddr(v); err != nil {
			return fault.Invalidf("failed to parse %s value: %q", optionHostIP, v)
		}
	}
	for _, key := range []string{optionMode4, optionMode6} {
		switch n.Options[key] {
		case "", modeNAT, modeUnprotected, modeRouted:
		case modeIsolated:
			if !n.Internal {
				return fault.Invalidf("gateway mode 'isolated' can only be used for an internal network")
			}
		default:
			return fault.Invalidf("unknown gateway mode %s", n.Options[key])
		}
	}
	if mode := n.Options[optionMacvlan]; n.Driver == driverMacvlan && !slices.Contains([]string{"", "bridge", "private", "vepa", "passthru"}, mode) {
		return fault.Invalidf("requested macvlan mode '%s' is not valid, 'bridge' mode is the macvlan driver default", mode)
	}
	if mode := n.Options[optionIpvlan]; n.Driver == driverIpvlan && !slices.Contains([]string{"", "l2", "l3", "l3s"}, mode) {
		return fault.Invalidf("requested ipvlan mode '%s' is not valid, 'l2' mode is the ipvlan driver default", mode)
	}
	return nil
}

// off tells whether an option that is on by default is switched off.
func (st *state) off(option string) bool {
	v, err := strconv.ParseBool(st.Options[option])
	return st.Options[option] != "" && err == nil && !v
}

func (st *state) on(option string) bool {
	v, _ := strconv.ParseBool(st.Options[option])
	return v
}

// gatewayMode of the family of an address.
func (st *state) gatewayMode(a netip.Addr) string {
	mode := st.Options[optionMode4]
	if a.Is6() {
		mode = st.Options[optionMode6]
	}
	if mode == "" {
		return modeNAT
	}
	return mode
}

// hasGateway tells whether the host has an address in a subnet.
func (st *state) hasGateway(p *addressPool) bool {
	if st.Driver != driverBridge {
		return false
	}
	return st.gatewayMode(p.gateway) != modeIsolated && !(p.gateway.Is4() && st.on(optionInhibit4))
}

func (st *state) mtu() int {
	if n, err := strconv.Atoi(st.Options[optionMTU]); err == nil && n >= 68 && n <= 65535 {
		return n
	}
	if st.Driver != driverBridge {
		return 0 // the parent's
	}
	return defaultMTU
}

// filter says how packets of the network's bridge are treated.
func (st *state) filter() Filter {
	f := Filter{Bridge: st.bridge, Internal: st.Internal, ICC: !st.off(optionICC)}
	for _, p := range st.pools {
		mode := st.gatewayMode(p.gateway)
		s := Subnet{Prefix: p.subnet, Unprotected: mode == modeUnprotected, Masquerade: !st.Internal && mode != modeRouted && !st.off(optionMasquerade)}
		if st.hasGateway(p) {
			s.Gateway = p.gateway
		}
		f.Subnets = append(f.Subnets, s)
	}
	return f
}

// link says how an endpoint's interface must be.
func (st *state) link(id container.ID, e container.Endpoint) Link {
	l := Link{Kind: Veth, Sandbox: string(id), HostName: hostName(e.EndpointID), Interface: e.Interface, Bridge: st.bridge, MAC: e.MacAddress, MTU: st.mtu(), Isolated: st.off(optionICC)}
	switch st.Driver {
	case driverMacvlan:
		l.Kind, l.HostName, l.Bridge, l.Mode, l.Isolated = Macvlan, "", st.parent(), st.Options[optionMacvlan], false
	case driverIpvlan:
		l.Kind, l.HostName, l.Bridge, l.Mode, l.Isolated, l.MAC = Ipvlan, "", st.parent(), st.Options[optionIpvlan], false, ""
	}
	for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
		if p.IsValid() {
			l.Addresses = append(l.Addresses, p)
		}
	}
	for _, a := range e.Spec.LinkLocal {
		if a.IsValid() {
			bits := 16
			if a.Is6() {
				bits = 64
			}
			l.Addresses = append(l.Addresses, netip.PrefixFrom(a, bits))
		}
	}
	l.Sysctls, _ = endpointSysctls(e.Spec, e.Interface) // checked before
	return l
}

// parent of macvlan and ipvlan: that asked for, else an interface of the network's own.
func (st *state) parent() string {
	if p := st.Options[optionParent]; p != "" {
		return p
	}
	return "dm-" + st.ID[:12]
}

// guard says what an endpoint may claim to be.
func (st *state) guard(e container.Endpoint) []Guard {
	if st.Driver != driverBridge {
		return nil
	}
	g := Guard{Port: hostName(e.EndpointID), MAC: e.MacAddress}
	for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
		if p.IsValid() {
			g.Addresses = append(g.Addresses, p.Addr())
		}
	}
	return []Guard{g}
}

func hostName(endpoint string) string { return "veth" + endpoint[:8] }

// endpointSysctls reads "net.ipv4.conf.IFNAME.x=1,…" for an interface.
func endpointSysctls(spec container.EndpointSpec, name string) (map[string]string, error) {
	text := spec.DriverOpts[optionSysctls]
	if text == "" {
		return nil, nil
	}
	all := map[string]string{}
	for _, one := range strings.Split(text, ",") {
		key, value, ok := strings.Cut(one, "=")
		parts := strings.Split(key, ".")
		good := ok && len(parts) == 5 && parts[0] == "net" && slices.Contains([]string{"ipv4", "ipv6", "mpls"}, parts[1]) &&
			slices.Contains([]string{"conf", "neigh"}, parts[2]) && parts[3] == "IFNAME" && parts[4] != "" && !strings.Contains(parts[4], "/")
		if !good {
			return nil, fault.Invalidf("unrecognised network interface sysctl '%s'; represent 'net.X.Y.ethN.Z' as 'net.X.Y.IFNAME.Z'", one)
		}
		parts[3] = name
		all[strings.Join(parts, "/")] = value
	}
	return all, nil
}

// interfaceName is that asked for, else the network's prefix and the next number.
func (b *box) interfaceName(st *state, spec container.EndpointSpec) (string, error) {
	taken := func(name string) bool {
		return slices.ContainsFunc(b.endpoints, func(e container.Endpoint) bool { return e.Interface == name })
	}
	if name := spec.DriverOpts[optionInterface]; name != "" {
		if len(name) > longestName || strings.ContainsAny(name, "/ \t\n:") || name == "." || name == ".." || name == "lo" {
			return "", fault.Invalidf("invalid interface name %q", name)
		}
		if taken(name) {
			return "", fault.Conflictf("interface name %q is taken in the container", name)
		}
		return name, nil
	}
	prefix := st.Options[optionPrefix]
	if prefix == "" || len(prefix) > longestName-3 {
		prefix = "eth"
	}
	for i := 0; ; i++ {
		if name := fmt.Sprintf("%s%d", prefix, i); !taken(name) {
			return name, nil
		}
	}
}
