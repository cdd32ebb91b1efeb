package network

import (
	"context"
	"net/netip"

	"github.com/berth-project/berth/core/container"
)

// Store remembers networks. A Put is on disk when it returns.
type Store interface {
	PutNetwork(ctx context.Context, n Network) error
	DeleteNetwork(ctx context.Context, id string) error
	Networks(ctx context.Context) ([]Network, error)
}

// Block is where networks without a subnet of their own take one from.
type Block struct {
	Base netip.Prefix
	Size int // length of each subnet's prefix
}

// Bridge is a bridge as it must be on the host.
type Bridge struct {
	Name     string
	Gateways []netip.Prefix // the host's addresses on it
	MTU      int
	IPv6     bool
}

// Kinds of links.
const (
	Veth    = "veth"    // a pair whose other end is on a bridge
	Macvlan = "macvlan" // with a MAC of its own on a parent interface
	Ipvlan  = "ipvlan"  // with its parent's MAC
)

// Link is one interface of a sandbox.
type Link struct {
	Kind      string
	Sandbox   string // key
	HostName  string // of the host's end, where there is one
	Interface string // name inside: "eth0"
	Bridge    string // or the parent interface
	Mode      string // of macvlan or ipvlan
	MAC       string
	Addresses []netip.Prefix
	MTU       int
	Isolated  bool              // from other interfaces on the bridge
	Sysctls   map[string]string // of this interface, by path below /proc/sys
}

// Route is a default route.
type Route struct {
	Interface string
	Gateway   netip.Addr // invalid: all is on the link
}

// Links makes network namespaces, bridges and what joins them.
type Links interface {
	EnsureBridge(ctx context.Context, b Bridge) error
	// RemoveBridge deletes a bridge that EnsureBridge has made.
	RemoveBridge(name string) error
	// EnsureParent finds or makes the interface that macvlan and ipvlan lie on;
	// RemoveParent deletes one that was made.
	EnsureParent(ctx context.Context, name string) error
	RemoveParent(name string) error
	// Open makes a namespace with its loopback up; where it is there already it is kept.
	Open(ctx context.Context, sandbox string) (path string, err error)
	Path(sandbox string) string
	Close(sandbox string) error
	// Attach makes an interface, or brings one that is there to what it must be.
	Attach(ctx context.Context, l Link) error
	Detach(l Link) error
	// Drop cuts an interface off at once and deletes it soon after.
	Drop(l Link) error
	// Route replaces the default routes of a sandbox.
	Route(sandbox string, routes []Route) error
	Stats(l Link) (container.NetStats, error)
	// Sandboxes, Bridges and Ports list what this engine has on the host.
	Sandboxes() ([]string, error)
	Bridges() ([]string, error)
	Ports(bridge string) ([]string, error)
	// Routed tells whether a subnet overlaps one that the host has a route to.
	Routed(p netip.Prefix) (bool, error)
	// HasIPv6 tells whether the host does IPv6 at all.
	HasIPv6() bool
	BridgeName(networkID string) string
	// Watch tells the names of interfaces that are deleted, by whomever; "" is any.
	Watch(deleted func(name string)) error
	Shutdown()
}

// Rule is a published port.
type Rule struct {
	Proto    string
	HostIP   netip.Addr // unspecified is every address of its family
	HostPort uint16
	To       netip.AddrPort
	Routed   bool // the container's own address is reached; the host's is not translated
}

// Filter is how packets of one bridge are treated.
type Filter struct {
	Bridge   string
	Subnets  []Subnet
	Internal bool
	ICC      bool // its containers may reach one another
}

// Subnet is one of a bridge.
type Subnet struct {
	netip.Prefix
	Gateway     netip.Addr // the host's address, which no container may claim
	Masquerade  bool       // goes out with the host's address
	Unprotected bool       // all ports of its containers are reached from outside
}

// Guard is what a container may claim to be at its port of a bridge.
type Guard struct {
	Port      string // the host's end of its interface
	MAC       string
	Addresses []netip.Addr
}

// Rules is what a Firewall is told at once.
type Rules struct {
	Networks []Filter
	Ports    []Rule
	Guards   []Guard
}

// Firewall lets through what is published and keeps networks apart. Each call
// is one transaction whose cost does not grow with what is there.
type Firewall interface {
	Add(r Rules) error
	Remove(r Rules) error
	// Switch is both at once: a port that is in both is never without a rule.
	Switch(gone, fresh Rules) error
	// Reset replaces all that is there, and keeps it there from then on
	// whatever other programs do.
	Reset(r Rules) error
	// Leave ends the keeping; what was written stays.
	Leave()
	// Close leaves nothing.
	Close() error
}

// Names answers what a name means to one container.
type Names interface {
	Lookup(sandbox, name string) (addresses []netip.Addr, known bool)
	Reverse(sandbox string, a netip.Addr) (name string, known bool)
	// Upstream gives the servers for all other names; none on internal networks.
	// Those that a person has named are asked from inside the sandbox.
	Upstream(sandbox string) (servers []netip.AddrPort, inside bool)
}

// Resolver serves names inside sandboxes at 127.0.0.11.
type Resolver interface {
	Serve(sandbox, path string, names Names) error
	Stop(sandbox string)
}

// Proxy carries connections to a host address that packet rules cannot serve: ::1.
// Serving a place that is served already leads it elsewhere; stopping a rule
// that its place no longer follows does nothing.
type Proxy interface {
	Serve(rules []Rule) error
	Stop(rules []Rule)
}
