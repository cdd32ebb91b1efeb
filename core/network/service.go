package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/event"
	"github.com/berth-project/berth/core/filter"
	"github.com/berth-project/berth/lib/fault"
)

// defaultMTU of bridges.
const defaultMTU = 1500

// DefaultBridge says how the network "bridge" is made.
type DefaultBridge struct {
	Name      string // of the bridge; "none" leaves it out
	BIP       netip.Prefix
	FixedCIDR netip.Prefix
	// IPv6 gives it a second subnet: FixedCIDRv6, or one of its own.
	IPv6        bool
	FixedCIDRv6 netip.Prefix
	MTU         int
	ICC, Masq   bool
	HostIP      netip.Addr // default address of published ports
}

// Options of a Service.
type Options struct {
	Store    Store
	Links    Links
	Firewall Firewall // nil writes no rules
	Resolver Resolver
	Proxy    Proxy
	Events   *event.Bus
	Logger   *slog.Logger
	Pools    []Block // none means docker's
	Bridge   DefaultBridge
	Defaults DNSDefaults
	// HostResolv reads the host's resolv.conf as it is now; nil is none.
	HostResolv func() []byte
	// HostGateway is what "host-gateway" means; invalid is the host's address
	// on the default bridge.
	HostGateway netip.Addr
}

// DNSDefaults are the daemon's settings for containers that have none.
type DNSDefaults struct {
	Servers         []netip.Addr
	Options, Search []string
}

// Service owns all networks of an engine and the place of containers on them.
type Service struct {
	o     Options
	log   *slog.Logger
	ports *portTable

	mu     sync.RWMutex
	byID   map[string]*state
	boxes  map[container.ID]*box
	heirs  map[container.ID]container.ID // containers whose host ports another holds until TakeOver
	hidden map[container.ID]bool         // containers whose names lead to others while others have them
	making sync.Mutex                    // one network is created or removed at a time; taken before mu
}

// state is a network with who is on it.
type state struct {
	Network
	pools     []*addressPool
	bridge    string // name of the bridge; "" for host and none
	endpoints map[container.ID]Member
}

// box is one container's sandbox. The container service changes one container
// at a time; mu of the Service guards what lookups of names read.
type box struct {
	id        container.ID
	c         container.Container
	host      bool // the host's own namespace
	endpoints []container.Endpoint
	rules     Rules               // what the firewall lets through for it
	proxied   []Rule              // what the proxy serves for it
	ports     []container.Binding // published now
	held      []container.Binding // reserved in the table of ports
	resolver  bool
}

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

func newID() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// New makes a Service; Restore finds its networks.
func New(o Options) *Service {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if len(o.Pools) == 0 {
		o.Pools = dockerPools()
	}
	if o.Bridge.MTU == 0 {
		o.Bridge.MTU = defaultMTU
	}
	return &Service{o: o, log: o.Logger, ports: newPortTable(), byID: map[string]*state{}, boxes: map[container.ID]*box{}, heirs: map[container.ID]container.ID{}, hidden: map[container.ID]bool{}}
}

// dockerPools are the subnets that docker gives networks by default.
func dockerPools() []Block {
	var list []Block
	for i := 17; i <= 31; i++ {
		list = append(list, Block{netip.MustParsePrefix(fmt.Sprintf("172.%d.0.0/16", i)), 16})
	}
	return append(list, Block{netip.MustParsePrefix("192.168.0.0/16"), 20})
}

func (s *Service) publish(action string, n Network, more ...string) {
	if s.o.Events == nil {
		return
	}
	attributes := map[string]string{"name": n.Name, "type": n.Driver}
	for i := 0; i+1 < len(more); i += 2 {
		attributes[more[i]] = more[i+1]
	}
	s.o.Events.Publish(event.Event{Type: "network", Action: action, ID: n.ID, Attributes: attributes, Time: time.Now()})
}

// find looks a network up by id, name, or the beginning of an id. s.mu is held.
func (s *Service) find(ref string) (*state, error) {
	if n := s.byID[ref]; n != nil {
		return n, nil
	}
	var found *state
	for _, n := range s.byID {
		if n.Name == ref {
			return n, nil
		}
	}
	for id, n := range s.byID {
		if ref != "" && strings.HasPrefix(id, ref) {
			if found != nil {
				return nil, fault.Invalidf("network %s is ambiguous (2 matches found on ID prefix)", ref)
			}
			found = n
		}
	}
	if found == nil {
		return nil, fault.NotFound("network", ref)
	}
	return found, nil
}

// Resolve gives the id and name of a network that exists.
func (s *Service) Resolve(_ context.Context, ref string) (id, name string, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n, err := s.find(mode(ref))
	if err != nil {
		return "", "", err
	}
	return n.ID, n.Name, nil
}

// mode reads "default" as the network that it means.
func mode(ref string) string {
	if ref == "" || ref == "default" {
		return "bridge"
	}
	return ref
}

// Create makes a network.
func (s *Service) Create(ctx context.Context, o CreateOptions) (id, warning string, err error) {
	s.making.Lock()
	defer s.making.Unlock()
	if o.Driver == "" {
		o.Driver = "bridge"
	}
	if err := s.configure(&o); err != nil {
		return "", "", err
	}
	if err := s.check(o); err != nil {
		return "", "", err
	}
	n := Network{
		ID: newID(), Name: o.Name, Created: time.Now(), Driver: o.Driver, Scope: "local", EnableIPv4: o.EnableIPv4 == nil || *o.EnableIPv4,
		EnableIPv6: o.EnableIPv6 != nil && *o.EnableIPv6, Internal: o.Internal, Attachable: o.Attachable, IPAM: o.IPAM, Options: o.Options, Labels: o.Labels,
		ConfigOnly: o.ConfigOnly, ConfigFrom: o.ConfigFrom,
	}
	st, err := s.build(n)
	if err != nil {
		return "", "", err
	}
	// The row comes first: what is on the host has an owner whenever we end.
	if err := s.o.Store.PutNetwork(ctx, st.Network); err != nil {
		return "", "", err
	}
	undo := func(err error) (string, string, error) {
		if more := errors.Join(s.forbid(st.rules()), s.lower(st), s.o.Store.DeleteNetwork(context.WithoutCancel(ctx), n.ID)); more != nil {
			s.log.Warn("network not wholly undone", "network", o.Name, "error", more)
		}
		return "", "", err
	}
	if err := s.raise(ctx, st); err != nil {
		return undo(err)
	}
	if err := s.let(st.rules()); err != nil {
		return undo(err)
	}
	s.mu.Lock()
	s.byID[n.ID] = st
	s.mu.Unlock()
	s.publish("create", st.Network)
	return n.ID, "", nil
}

func (s *Service) check(o CreateOptions) error {
	switch {
	case o.Name == "":
		return fault.Invalidf("invalid network name: name is empty")
	case !validName.MatchString(o.Name):
		return fault.Invalidf("invalid network name (%s): only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", o.Name)
	case slices.Contains([]string{"bridge", "host", "none", "default"}, o.Name):
		return fault.Forbiddenf("operation is not permitted on predefined %s network ", o.Name)
	case o.Ingress:
		return fault.Unsupportedf("ingress networks need swarm mode, which is not supported")
	case o.Scope != "" && o.Scope != "local":
		return fault.Unsupportedf("networks of scope %q need swarm mode, which is not supported", o.Scope)
	}
	if o.ConfigOnly { // for whatever driver takes it
		return s.unused(o.Name)
	}
	switch o.Driver {
	case driverBridge, driverMacvlan, driverIpvlan:
	case driverHost, driverNull:
		return fault.Forbiddenf("only one instance of %q network is allowed", o.Driver)
	case "overlay":
		return fault.Unavailablef("This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.")
	default:
		return fault.NotFoundf("could not find plugin %s in v1 plugin registry: plugin %q not found", o.Driver, o.Driver)
	}
	if d := o.IPAM.Driver; d != "" && d != "default" {
		return fault.NotFoundf("invalid IPAM driver %q: plugin not found", d)
	}
	return s.unused(o.Name)
}

func (s *Service) unused(name string) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, n := range s.byID {
		if n.Name == name {
			return fault.Conflictf("network with name %s already exists", name)
		}
	}
	return nil
}

// build plans a network: its bridge and its pools.
func (s *Service) build(n Network) (*state, error) {
	st := &state{Network: n, endpoints: map[container.ID]Member{}}
	if !st.wired() {
		return st, nil
	}
	if err := checkOptions(n); err != nil {
		return nil, err
	}
	if n.Driver != driverBridge {
		return st, s.plan(st)
	}
	st.bridge = n.Options[optionName]
	if st.bridge == "" {
		st.bridge = s.o.Links.BridgeName(n.ID)
	}
	if len(st.bridge) > longestName || strings.ContainsAny(st.bridge, "/ \t\n:") {
		return nil, fault.Invalidf("invalid bridge name %q: at most 15 characters without blanks and slashes", st.bridge)
	}
	s.mu.RLock()
	for _, other := range s.byID {
		if other.bridge == st.bridge && other.ID != n.ID {
			s.mu.RUnlock()
			return nil, fault.Conflictf("cannot create network %s (%s): conflicts with network %s (%s): networks have same bridge name", n.ID, st.bridge, other.ID, other.bridge)
		}
	}
	s.mu.RUnlock()
	if err := s.plan(st); err != nil {
		return nil, err
	}
	return st, nil
}

// plan gives a network its pools: those asked for, else free ones.
func (s *Service) plan(st *state) error {
	has4, has6 := false, false
	var pools []Pool
	for _, p := range st.IPAM.Pools {
		if !p.Subnet.IsValid() {
			continue
		}
		if p.Subnet.Addr().Is4() {
			has4 = true
		} else {
			has6 = true
		}
		pools = append(pools, p)
	}
	if st.EnableIPv4 && !has4 {
		subnet, err := s.freeSubnet()
		if err != nil {
			return err
		}
		pools = append([]Pool{{Subnet: subnet, Auto: true}}, pools...)
	}
	if st.EnableIPv6 && !has6 {
		// A unique local prefix of its own (RFC 4193).
		b := make([]byte, 5)
		_, _ = rand.Read(b)
		a := [16]byte{0xfd, b[0], b[1], b[2], b[3], b[4]}
		pools = append(pools, Pool{Subnet: netip.PrefixFrom(netip.AddrFrom16(a), 64), Auto: true})
	}
	st.IPAM.Pools, st.pools = nil, nil
	for _, p := range pools {
		if err := s.checkPool(st, &p); err != nil {
			return err
		}
		ap, err := newAddressPool(p)
		if err != nil {
			return err
		}
		p.Gateway = ap.gateway
		st.IPAM.Pools = append(st.IPAM.Pools, p)
		if p.Subnet.Addr().Is4() && st.EnableIPv4 || p.Subnet.Addr().Is6() && st.EnableIPv6 {
			st.pools = append(st.pools, ap)
		}
	}
	return nil
}

func (s *Service) checkPool(st *state, p *Pool) error {
	if p.Subnet != p.Subnet.Masked() {
		return fault.Invalidf("invalid network config:\ninvalid subnet %s: it should be %s", p.Subnet, p.Subnet.Masked())
	}
	if p.Gateway.IsValid() && !p.Subnet.Contains(p.Gateway) {
		return fault.Invalidf("invalid network config:\ninvalid gateway %s: parent subnet %s doesn't contain it", p.Gateway, p.Subnet)
	}
	if p.Range.IsValid() && (!p.Subnet.Contains(p.Range.Addr()) || p.Range.Bits() < p.Subnet.Bits()) {
		return fault.Invalidf("invalid network config:\ninvalid ip-range %s: parent subnet %s doesn't contain it", p.Range, p.Subnet)
	}
	for _, a := range p.Aux {
		if !p.Subnet.Contains(a) {
			return fault.Invalidf("invalid network config:\ninvalid auxiliary address %s: parent subnet %s doesn't contain it", a, p.Subnet)
		}
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, other := range s.byID {
		if other.ID == st.ID {
			continue
		}
		for _, q := range other.pools {
			if q.subnet.Overlaps(p.Subnet) {
				return fault.Forbiddenf("invalid pool request: Pool overlaps with other one on this address space")
			}
		}
	}
	return nil
}

// freeSubnet finds one that neither a network of ours nor a route of the host uses.
func (s *Service) freeSubnet() (netip.Prefix, error) {
	for _, b := range s.o.Pools {
		subnet := netip.PrefixFrom(b.Base.Addr(), b.Size).Masked()
		for b.Base.Contains(subnet.Addr()) {
			s.mu.RLock()
			taken := false
			for _, n := range s.byID {
				for _, p := range n.IPAM.Pools {
					taken = taken || p.Subnet.Overlaps(subnet)
				}
			}
			s.mu.RUnlock()
			if !taken {
				routed, err := s.o.Links.Routed(subnet)
				if err != nil {
					return subnet, err
				}
				if !routed {
					return subnet, nil
				}
			}
			next, ok := after(subnet)
			if !ok {
				break
			}
			subnet = next
		}
	}
	return netip.Prefix{}, fault.Invalidf("all predefined address pools have been fully subnetted")
}

// raise makes what a network needs on the host: its bridge or parent.
func (s *Service) raise(ctx context.Context, st *state) error {
	switch st.Driver {
	case driverMacvlan, driverIpvlan:
		return s.o.Links.EnsureParent(ctx, st.parent())
	case driverBridge:
	default:
		return nil
	}
	b := Bridge{Name: st.bridge, MTU: st.mtu()}
	for _, p := range st.pools {
		b.IPv6 = b.IPv6 || p.gateway.Is6()
		if st.hasGateway(p) {
			b.Gateways = append(b.Gateways, netip.PrefixFrom(p.gateway, p.subnet.Bits()))
		}
	}
	return s.o.Links.EnsureBridge(ctx, b)
}

// lower takes that away.
func (s *Service) lower(st *state) error {
	switch st.Driver {
	case driverMacvlan, driverIpvlan:
		parent := st.parent()
		if slices.ContainsFunc(s.list(), func(other *state) bool {
			return other != st && other.bridge == "" && other.wired() && other.parent() == parent
		}) {
			return nil // another network lies on it
		}
		return s.o.Links.RemoveParent(parent)
	case driverBridge:
		return s.o.Links.RemoveBridge(st.bridge)
	}
	return nil
}

// let and forbid change the firewall, where there is one.
func (s *Service) let(r Rules) error {
	if s.o.Firewall == nil || r.empty() {
		return nil
	}
	return s.o.Firewall.Add(r)
}

func (s *Service) forbid(r Rules) error {
	if s.o.Firewall == nil || r.empty() {
		return nil
	}
	return s.o.Firewall.Remove(r)
}

func (r Rules) empty() bool { return len(r.Networks)+len(r.Ports)+len(r.Guards) == 0 }

func (st *state) rules() Rules {
	if st.Driver != driverBridge {
		return Rules{}
	}
	return Rules{Networks: []Filter{st.filter()}}
}

// Remove takes a network away that no container is on.
func (s *Service) Remove(ctx context.Context, ref string) error {
	s.making.Lock()
	defer s.making.Unlock()
	s.mu.Lock()
	st, err := s.find(ref)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	if slices.Contains([]string{"bridge", "host", "none"}, st.Name) {
		s.mu.Unlock()
		return fault.Forbiddenf("%s is a pre-defined network and cannot be removed", st.Name)
	}
	if user := s.configured(st); user != "" {
		s.mu.Unlock()
		return fault.Forbiddenf("configuration network %q is in use by network %s", st.Name, user)
	}
	if len(st.endpoints) > 0 {
		var names []string
		for _, m := range st.endpoints {
			names = append(names, fmt.Sprintf("name:%q id:%q", m.Name, m.Endpoint.EndpointID[:12]))
		}
		s.mu.Unlock()
		slices.Sort(names)
		return fault.Forbiddenf("error while removing network: network %s has active endpoints (%s)", st.Name, strings.Join(names, ", "))
	}
	delete(s.byID, st.ID)
	s.mu.Unlock()
	if err := errors.Join(s.forbid(st.rules()), s.lower(st)); err != nil {
		s.log.Warn("network not wholly removed", "network", st.Name, "error", err)
	}
	// The row goes last: what is on the host has an owner whenever we end.
	if err := s.o.Store.DeleteNetwork(context.WithoutCancel(ctx), st.ID); err != nil {
		s.mu.Lock()
		s.byID[st.ID] = st
		s.mu.Unlock()
		return errors.Join(err, s.raise(ctx, st), s.let(st.rules()))
	}
	s.publish("destroy", st.Network)
	return nil
}

func (st *state) attached() Attached {
	a := Attached{Network: st.Network, Endpoints: map[container.ID]Member{}}
	for id, m := range st.endpoints {
		a.Endpoints[id] = m
	}
	for _, p := range st.pools {
		a.Use = append(a.Use, p.use())
	}
	return a
}

// Get gives one network with who is on it.
func (s *Service) Get(_ context.Context, ref, scope string) (Attached, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st, err := s.find(ref)
	if err != nil {
		return Attached{}, err
	}
	if scope != "" && scope != st.Scope {
		return Attached{}, fault.NotFound("network", ref)
	}
	return st.attached(), nil
}

// List gives the networks that pass the filters.
func (s *Service) List(_ context.Context, f filter.Args) ([]Attached, error) {
	if err := f.Check("dangling", "driver", "id", "label", "name", "scope", "type"); err != nil {
		return nil, err
	}
	dangling, given, err := f.Bool("dangling")
	if err != nil {
		return nil, err
	}
	for _, t := range f["type"] {
		if t != "builtin" && t != "custom" {
			return nil, fault.Invalidf("invalid filter: 'type'='%s'", t)
		}
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := []Attached{}
	for _, n := range s.byID {
		predefined := slices.Contains([]string{"bridge", "host", "none"}, n.Name)
		kind := "custom"
		if predefined {
			kind = "builtin"
		}
		switch {
		case !f.Exact("driver", n.Driver), !f.Match("id", n.ID), !f.Labels("label", n.Labels), !f.Exact("scope", n.Scope), !f.Exact("type", kind),
			len(f["name"]) > 0 && !slices.ContainsFunc(f["name"], func(v string) bool { return strings.Contains(n.Name, v) }),
			given && (predefined || dangling != (len(n.endpoints) == 0)):
			continue
		}
		list = append(list, n.attached())
	}
	slices.SortFunc(list, func(a, b Attached) int { return b.Created.Compare(a.Created) })
	return list, nil
}

// Prune removes all networks that no container is on.
func (s *Service) Prune(ctx context.Context, f filter.Args) ([]string, error) {
	if err := f.Check("label", "label!", "until"); err != nil {
		return nil, err
	}
	until, err := f.Until("until")
	if err != nil {
		return nil, err
	}
	all, err := s.List(ctx, filter.Args{"type": {"custom"}})
	if err != nil {
		return nil, err
	}
	var removed []string
	for _, n := range all {
		if len(n.Endpoints) > 0 || !f.Labels("label", n.Labels) || len(f["label!"]) > 0 && f.Labels("label!", n.Labels) || !until.IsZero() && n.Created.After(until) {
			continue
		}
		if err := s.Remove(ctx, n.ID); err != nil {
			s.log.Warn("network not pruned", "network", n.Name, "error", err)
			continue
		}
		removed = append(removed, n.Name)
	}
	if s.o.Events != nil {
		s.o.Events.Publish(event.Event{Type: "network", Action: "prune", Attributes: map[string]string{"reclaimed": "0"}, Time: time.Now()})
	}
	return removed, nil
}
