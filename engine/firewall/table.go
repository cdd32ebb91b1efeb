package firewall

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	core "github.com/berth-project/berth/core/network"
)

// The sets and maps of the table of the family inet. Those of addresses are
// there twice, with "4" and "6" at the end.
const (
	setPublished   = "published"     // address . protocol . port → address . port
	setAny         = "published_any" // protocol . port → address . port
	setOpen        = "open"          // address . protocol . port of containers that are reached without translation
	setUnprotected = "unprotected"   // bridges whose containers' ports are all reached
	setSubnets     = "subnets"       // of our bridges
	setMasqueraded = "masqueraded"   // subnets that go out with the host's address
	setBridges     = "bridges"       // ours: what enters them must be published or belong
	setWithin      = "within"        // bridge . bridge: whose containers may reach one another
	setInternal    = "internal"      // bridges whose packets do not leave
)

// shardPrefix begins the names of the bridges that are no network's first.
const shardPrefix = "b~"

// The sets of the table of the family bridge.
const (
	setPorts  = "ports"  // of containers on our bridges
	setMACs   = "macs"   // port . MAC that it may use
	setGiven  = "given"  // addresses that belong to somebody
	setOwners = "owners" // port . address that is its own
)

// sets builds all sets by name; their definitions are the same at each use.
func (f *Firewall) sets() map[string]*nftables.Set {
	inet := &nftables.Table{Family: nftables.TableFamilyINet, Name: f.name}
	bridge := &nftables.Table{Family: nftables.TableFamilyBridge, Name: f.name}
	concat := nftables.MustConcatSetType
	name, proto, port := nftables.TypeIFName, nftables.TypeInetProto, nftables.TypeInetService
	all := map[string]*nftables.Set{
		setBridges:  {Table: inet, KeyType: name, KeyByteOrder: binaryutil.NativeEndian},
		setInternal: {Table: inet, KeyType: name, KeyByteOrder: binaryutil.NativeEndian},
		setWithin:   {Table: inet, KeyType: concat(name, name), Concatenation: true},
	}
	for _, x := range []struct {
		family
		address nftables.SetDatatype
	}{{v4, nftables.TypeIPAddr}, {v6, nftables.TypeIP6Addr}} {
		to := concat(x.address, port)
		all[setPublished+x.suffix] = &nftables.Set{Table: inet, IsMap: true, Concatenation: true, KeyType: concat(x.address, proto, port), DataType: to}
		all[setAny+x.suffix] = &nftables.Set{Table: inet, IsMap: true, Concatenation: true, KeyType: concat(proto, port), DataType: to}
		all[setOpen+x.suffix] = &nftables.Set{Table: inet, Concatenation: true, KeyType: concat(x.address, proto, port)}
		all[setUnprotected+x.suffix] = &nftables.Set{Table: inet, KeyType: name, KeyByteOrder: binaryutil.NativeEndian}
		all[setSubnets+x.suffix] = &nftables.Set{Table: inet, KeyType: x.address, Interval: true}
		all[setMasqueraded+x.suffix] = &nftables.Set{Table: inet, KeyType: x.address, Interval: true}
	}
	if f.guarded {
		all[setPorts] = &nftables.Set{Table: bridge, KeyType: name, KeyByteOrder: binaryutil.NativeEndian}
		all[setMACs] = &nftables.Set{Table: bridge, KeyType: concat(name, nftables.TypeEtherAddr), Concatenation: true}
		all[setGiven+"4"] = &nftables.Set{Table: bridge, KeyType: nftables.TypeIPAddr}
		all[setGiven+"6"] = &nftables.Set{Table: bridge, KeyType: nftables.TypeIP6Addr}
		all[setOwners+"4"] = &nftables.Set{Table: bridge, KeyType: concat(name, nftables.TypeIPAddr), Concatenation: true}
		all[setOwners+"6"] = &nftables.Set{Table: bridge, KeyType: concat(name, nftables.TypeIP6Addr), Concatenation: true}
	}
	for n, s := range all {
		s.Name = n
	}
	return all
}

// writer collects the chains and rules of one table.
type writer struct {
	c    *nftables.Conn
	t    *nftables.Table
	sets map[string]*nftables.Set
}

func (w writer) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return w.c.AddChain(&nftables.Chain{Name: name, Table: w.t, Type: kind, Hooknum: hook, Priority: &priority, Policy: &accept})
}

func (w writer) rule(ch *nftables.Chain, parts ...[]expr.Any) {
	w.c.AddRule(&nftables.Rule{Table: w.t, Chain: ch, Exprs: join(parts...)})
}

func (w writer) in(set string, reg uint32) expr.Any {
	s := w.sets[set]
	return &expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID}
}

func (w writer) notIn(set string, reg uint32) expr.Any {
	s := w.sets[set]
	return &expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID, Invert: true}
}

func (w writer) from(set string) []expr.Any {
	return one(meta(expr.MetaKeyIIFNAME, reg0), w.in(set, reg0))
}

func (w writer) to(set string) []expr.Any {
	return one(meta(expr.MetaKeyOIFNAME, reg0), w.in(set, reg0))
}

// translate sends a packet where a map says; without an element it goes on.
func (w writer) translate(f family, set string, key ...expr.Any) []expr.Any {
	s := w.sets[set]
	return append(key,
		&expr.Lookup{SourceRegister: reg0, DestRegister: f.toReg, IsDestRegSet: true, SetName: s.Name, SetID: s.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: f.toReg, RegProtoMin: f.toPortReg})
}

// inet writes what is let through, translated and masqueraded.
func (w writer) inet() {
	accept, drop, masquerade := one(verdict(expr.VerdictAccept)), one(verdict(expr.VerdictDrop)), one(&expr.Masq{})
	guard := w.chain("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw)
	// The bridges route 127.0.0.0/8 for published ports: nobody outside may use that.
	w.rule(guard, w.from(setBridges), v4.is(), v4.local(v4.daddr(reg0)), drop)

	// Where br_netfilter is on, a packet comes by at every bridge of a network
	// that has several; only the first one decides.
	w.rule(guard, one(meta(expr.MetaKeyIIFNAME, reg0), equal(reg0, []byte(shardPrefix)...), &expr.Notrack{}))

	pre := w.chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest)
	out := w.chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, *nftables.ChainPriorityNATDest)
	for _, ch := range []*nftables.Chain{pre, out} {
		for _, f := range []family{v4, v6} {
			for _, set := range []string{setPublished, setAny} {
				match := join(f.is(), toHost())
				if f.proto == v6.proto && ch == out {
					// The kernel routes ::1 nowhere else: the proxy listens there.
					match = append(match, f.daddr(reg0), differs(reg0, f.loopback...))
				}
				key := one(f.daddr(reg0), meta(expr.MetaKeyL4PROTO, f.protoReg), dport(f.portReg))
				if set == setAny {
					key = one(meta(expr.MetaKeyL4PROTO, reg0), dport(reg1))
				}
				w.rule(ch, match, w.translate(f, set+f.suffix, key...))
			}
		}
	}

	post := w.chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource)
	w.rule(post, w.to(setBridges), v4.is(), v4.local(v4.saddr(reg0)), masquerade) // the host's own 127.0.0.1
	for _, f := range []family{v4, v6} {
		subnet := one(f.saddr(reg0), w.in(setSubnets+f.suffix, reg0))
		w.rule(post, w.to(setBridges), translated(), f.is(), subnet, masquerade) // a container over the host's address
		w.rule(post, one(meta(expr.MetaKeyOIFNAME, reg0), w.notIn(setBridges, reg0)), f.is(), one(f.saddr(reg0), w.in(setMasqueraded+f.suffix, reg0)), masquerade)
	}

	fwd := w.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter)
	// Where br_netfilter is on, frames between two ports of one bridge come here too.
	w.rule(fwd, one(meta(expr.MetaKeyIIFNAME, reg0), meta(expr.MetaKeyOIFNAME, reg4), w.in(setWithin, reg0)), accept)
	w.rule(fwd, w.from(setInternal), drop)
	w.rule(fwd, w.to(setInternal), drop)
	w.rule(fwd, w.to(setBridges), answers(), accept)
	w.rule(fwd, w.to(setBridges), translated(), accept)
	for _, f := range []family{v4, v6} {
		w.rule(fwd, f.is(), w.to(setUnprotected+f.suffix), accept)
		w.rule(fwd, f.is(), w.to(setBridges), one(f.daddr(reg0), meta(expr.MetaKeyL4PROTO, f.protoReg), dport(f.portReg), w.in(setOpen+f.suffix, reg0)), accept)
	}
	w.rule(fwd, w.to(setBridges), drop) // neither published nor an answer: another network, or from outside
	w.rule(fwd, w.from(setBridges), accept)
}

// bridge writes what a container may claim to be: it uses its own MAC, takes
// no address that is another's, and is no router of IPv6 for its neighbours.
func (w writer) bridge() {
	accept, drop := one(verdict(expr.VerdictAccept)), one(verdict(expr.VerdictDrop))
	link := func(offset, size, reg uint32) expr.Any { return payload(expr.PayloadBaseLLHeader, offset, size, reg) }
	port := meta(expr.MetaKeyIIFNAME, reg0)
	ether := func(high, low byte) []expr.Any { return one(meta(expr.MetaKeyPROTOCOL, reg0), equal(reg0, high, low)) }
	// claims drops a packet that names an address of somebody else.
	claims := func(suffix string, load func(reg uint32) expr.Any) []expr.Any {
		return join(one(load(reg0), w.in(setGiven+suffix, reg0)), one(port, load(reg4), w.notIn(setOwners+suffix, reg0)), drop)
	}
	ch := w.chain("prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw)
	w.rule(ch, one(port, w.notIn(setPorts, reg0)), accept)
	w.rule(ch, one(port, link(6, 6, reg4), w.notIn(setMACs, reg0)), drop)
	w.rule(ch, ether(0x08, 0x06), claims("4", func(reg uint32) expr.Any { return header(14, 4, reg) })) // ARP's sender
	w.rule(ch, ether(0x08, 0x00), claims("4", v4.saddr))
	w.rule(ch, ether(0x86, 0xdd), claims("6", v6.saddr))
	icmp := func(kind byte) []expr.Any {
		return join(ether(0x86, 0xdd), one(meta(expr.MetaKeyL4PROTO, reg0), equal(reg0, unix.IPPROTO_ICMPV6), payload(expr.PayloadBaseTransportHeader, 0, 1, reg0), equal(reg0, kind)))
	}
	const advertisement, neighbour, redirect = 134, 136, 137 // RFC 4861
	w.rule(ch, icmp(advertisement), drop)
	w.rule(ch, icmp(redirect), drop)
	w.rule(ch, icmp(neighbour), claims("6", func(reg uint32) expr.Any { return payload(expr.PayloadBaseTransportHeader, 8, 16, reg) }))
}

// entry is one element of a set, or the two ends of one interval.
type entry struct {
	set      string
	key      string
	elements []nftables.SetElement
}

func single(set string, key ...[]byte) entry {
	var k []byte
	for _, part := range key {
		k = append(k, part...)
	}
	return entry{set: set, key: string(k), elements: []nftables.SetElement{{Key: k}}}
}

func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func suffixOf(a netip.Addr) string {
	if a.Is4() {
		return v4.suffix
	}
	return v6.suffix
}

func interval(set string, p netip.Prefix) entry {
	p = p.Masked()
	first, after := p.Addr().AsSlice(), p.Addr().AsSlice()
	for i := p.Bits() - 1; i >= 0; i-- {
		bit := byte(1) << (7 - i%8)
		after[i/8] ^= bit
		if after[i/8]&bit != 0 {
			break // no carry
		}
	}
	e := single(set+suffixOf(p.Addr()), first)
	e.key = p.String()
	e.elements = append(e.elements, nftables.SetElement{Key: after, IntervalEnd: true})
	return e
}

var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

func protoAndPort(proto string, port uint16) []byte {
	return append([]byte{protocols[proto], 0, 0, 0}, portBytes(port)...)
}

// portBytes fill a register of four bytes.
func portBytes(port uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, port), 0, 0) }

// entries are all elements that rules ask for.
func (f *Firewall) entries(r core.Rules) []entry {
	var all []entry
	for _, n := range r.Networks {
		all = append(all, single(setBridges, ifname(n.Bridge)))
		if n.ICC {
			all = append(all, single(setWithin, ifname(n.Bridge), ifname(n.Bridge)))
		}
		if n.Internal {
			all = append(all, single(setInternal, ifname(n.Bridge)))
		}
		for _, s := range n.Subnets {
			all = append(all, interval(setSubnets, s.Prefix))
			if s.Masquerade {
				all = append(all, interval(setMasqueraded, s.Prefix))
			}
			if s.Unprotected {
				all = append(all, single(setUnprotected+suffixOf(s.Addr()), ifname(n.Bridge)))
			}
			if f.guarded && s.Gateway.IsValid() {
				all = append(all, single(setGiven+suffixOf(s.Gateway), s.Gateway.AsSlice()))
			}
		}
	}
	for _, p := range r.Ports {
		if e, ok := portEntry(p); ok {
			all = append(all, e)
		}
	}
	for _, g := range r.Guards {
		mac, err := net.ParseMAC(g.MAC)
		if !f.guarded || err != nil {
			continue
		}
		all = append(all, single(setPorts, ifname(g.Port)), single(setMACs, ifname(g.Port), mac, []byte{0, 0}))
		for _, a := range g.Addresses {
			all = append(all, single(setGiven+suffixOf(a), a.AsSlice()), single(setOwners+suffixOf(a), ifname(g.Port), a.AsSlice()))
		}
	}
	return all
}

// portEntry is the element of a published port. One between the families has
// none: the proxy serves it.
func portEntry(p core.Rule) (entry, bool) {
	to := p.To.Addr()
	if p.Routed {
		return single(setOpen+suffixOf(to), to.AsSlice(), protoAndPort(p.Proto, p.To.Port())), true
	}
	if p.HostIP.Is4() != to.Is4() {
		return entry{}, false
	}
	e := single(setAny+suffixOf(to), protoAndPort(p.Proto, p.HostPort))
	if !p.HostIP.IsUnspecified() {
		e = single(setPublished+suffixOf(to), p.HostIP.AsSlice(), protoAndPort(p.Proto, p.HostPort))
	}
	e.elements[0].Val = append(to.AsSlice(), portBytes(p.To.Port())...)
	return e, true
}
