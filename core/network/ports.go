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
}

// Link is one interface of a sandbox.
type Link struct {
	Sandbox   string // key
	HostName  string // of the host's end
	Interface string // name inside: "eth0"
	Bridge    string
	MAC       string
	Addresses []netip.Prefix
	Gateways  []netip.Addr // default routes; empty leaves the routes alone
	MTU       int
	Isolated  bool // from other interfaces on the bridge
}

// Links makes network namespaces, bridges and what joins them.
type Links interface {
	EnsureBridge(ctx context.Context, b Bridge) error
	RemoveBridge(name string) error
	// Open makes a namespace with its loopback up; where it is there already it is kept.
	Open(ctx context.Context, sandbox string, sysctls map[string]string) (path string, err error)
	Path(sandbox string) string
	Close(sandbox string) error
	Attach(ctx context.Context, l Link) error
	Detach(l Link) error
	Stats(hostName string) (container.NetStats, error)
	// Sandboxes and Bridges list what this engine has on the host.
	Sandboxes() ([]string, error)
	Bridges() ([]string, error)
	// Routed tells whether a subnet overlaps one that the host has a route to.
	Routed(p netip.Prefix) (bool, error)
	BridgeName(networkID string) string
}

// Rule is a published port.
type Rule struct {
	Proto    string
	HostIP   netip.Addr // unspecified or invalid is every address
	HostPort uint16
	To       netip.AddrPort
}

// Filter is how packets of one bridge are treated.
type Filter struct {
	Bridge     string
	Subnets    []netip.Prefix
	Internal   bool
	ICC        bool
	Masquerade bool
}

// Firewall lets through what is published and keeps networks apart. Each call
// is one transaction whose cost does not grow with what is there.
type Firewall interface {
	AddNetwork(f Filter) error
	RemoveNetwork(f Filter) error
	Publish(rules []Rule) error
	Unpublish(rules []Rule) error
	// Reset replaces all that is there.
	Reset(networks []Filter, rules []Rule) error
	Remove() error
}

// Names answers what a name means to one container.
type Names interface {
	Lookup(sandbox, name string) (addresses []netip.Addr, known bool)
	Reverse(sandbox string, a netip.Addr) (name string, known bool)
	// Upstream gives the servers for all other names; none on internal networks.
	Upstream(sandbox string) []netip.AddrPort
}

// Resolver serves names inside sandboxes at 127.0.0.11.
type Resolver interface {
	Serve(sandbox, path string, names Names) error
	Stop(sandbox string)
}

// Proxy carries connections to a host address that packet rules cannot serve: ::1.
type Proxy interface {
	Serve(rules []Rule) error
	Stop(rules []Rule)
}
