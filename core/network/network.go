// Package network owns the noun network: address pools, endpoints, published
// ports and names. It decides; the engine's ports make links, addresses,
// firewall elements and resolvers. It must not know HTTP, SQL or netlink.
package network

import (
	"net/netip"
	"time"

	"github.com/berth-project/berth/core/container"
)

// Network is one network as the store keeps it.
type Network struct {
	ID         string // 64 lower-case hexadecimal digits
	Name       string
	Created    time.Time
	Driver     string // bridge, host, null, macvlan
	Scope      string // "local"
	EnableIPv4 bool
	EnableIPv6 bool
	Internal   bool
	Attachable bool
	Ingress    bool
	ConfigOnly bool
	ConfigFrom string
	IPAM       IPAM
	Options    map[string]string // driver options: com.docker.network.bridge.name, …
	Labels     map[string]string
}

// IPAM is how a network's addresses are given out.
type IPAM struct {
	Driver  string // "default"
	Options map[string]string
	Pools   []Pool
}

// Pool is one subnet.
type Pool struct {
	Subnet  netip.Prefix
	Range   netip.Prefix // invalid: the whole subnet
	Gateway netip.Addr
	Aux     map[string]netip.Addr
	Auto    bool `json:",omitempty"` // the service has chosen it: nobody may ask for addresses of it
}

// CreateOptions of a network. Pools may be empty or lack fields: the service fills them.
type CreateOptions struct {
	Name                                      string
	Driver, Scope                             string
	EnableIPv4                                *bool
	EnableIPv6                                *bool
	Internal, Attachable, Ingress, ConfigOnly bool
	ConfigFrom                                string
	IPAM                                      IPAM
	Options, Labels                           map[string]string
}

// Attached is a network with the endpoints on it now, by container id.
type Attached struct {
	Network
	Endpoints map[container.ID]Member
	Use       []Use // of each subnet
}

// Use tells how full a subnet is.
type Use struct {
	Subnet netip.Prefix
	Taken  uint64 // addresses that nobody else gets: containers', the gateway, the network's own
	Free   uint64 // addresses left for those who ask for none in particular
}

// Member is one container on a network.
type Member struct {
	Name     string // of the container
	Endpoint container.Endpoint
}
