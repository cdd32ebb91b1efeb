// Package firewall writes this engine's packet rules: one nftables table of
// its own, with sets and maps, so that a change costs the same whatever is
// there. It must not know containers; core/network says what to let through.
package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/network"
)

// batch bounds the elements of one netlink message.
const batch = 500

// Firewall implements core's network.Firewall with the table "berth" or
// "berth-<key>" of the family ip:
//
//	published        address . protocol . port → address . port
//	published_any    protocol . port           → address . port
//	bridges          our bridges; what enters them must be published or belong
//	within           bridges whose containers may reach one another
//	internal         bridges whose packets do not leave
//	masqueraded      subnets that go out with the host's address
type Firewall struct {
	name string
	mu   sync.Mutex
}

// New makes a Firewall for the engine with this key.
func New(key string) *Firewall {
	name := "berth"
	if key != "" {
		name += "-" + key
	}
	return &Firewall{name: name}
}

func (f *Firewall) table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: f.name}
}

// sets of the table; their definitions must be the same at each use.
type sets struct {
	published, any, bridges, within, internal, subnets, masqueraded *nftables.Set
}

func define(t *nftables.Table) sets {
	to := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	return sets{
		published: &nftables.Set{Table: t, Name: "published", IsMap: true, Concatenation: true, DataType: to,
			KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)},
		any: &nftables.Set{Table: t, Name: "published_any", IsMap: true, Concatenation: true, DataType: to,
			KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)},
		bridges:     &nftables.Set{Table: t, Name: "bridges", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian},
		within:      &nftables.Set{Table: t, Name: "within", KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName), Concatenation: true, KeyByteOrder: binaryutil.NativeEndian},
		internal:    &nftables.Set{Table: t, Name: "internal", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian},
		subnets:     &nftables.Set{Table: t, Name: "subnets", KeyType: nftables.TypeIPAddr, Interval: true},
		masqueraded: &nftables.Set{Table: t, Name: "masqueraded", KeyType: nftables.TypeIPAddr, Interval: true},
	}
}

// Registers of four bytes each (NFT_REG32_00 is 8).
const (
	reg0 = 8
	reg1 = 9
	reg2 = 10
	reg4 = 12
	reg5 = 13
)

func payload(offset, size uint32, base expr.PayloadBase, reg uint32) expr.Any {
	return &expr.Payload{OperationType: expr.PayloadLoad, DestRegister: reg, Base: base, Offset: offset, Len: size}
}

func daddr(reg uint32) expr.Any { return payload(16, 4, expr.PayloadBaseNetworkHeader, reg) }
func saddr(reg uint32) expr.Any { return payload(12, 4, expr.PayloadBaseNetworkHeader, reg) }
func dport(reg uint32) expr.Any { return payload(2, 2, expr.PayloadBaseTransportHeader, reg) }
func meta(k expr.MetaKey, reg uint32) expr.Any {
	return &expr.Meta{Key: k, Register: reg}
}
func in(s *nftables.Set, reg uint32, invert bool) expr.Any {
	return &expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID, Invert: invert}
}
func verdict(k expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: k} }

// localTo matches packets for an address of this host.
func localTo() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg0, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// translate sends a packet where a map says; without an element it goes on.
func translate(s *nftables.Set, key ...expr.Any) []expr.Any {
	out := append([]expr.Any{}, key...)
	return append(out,
		&expr.Lookup{SourceRegister: reg0, DestRegister: reg4, IsDestRegSet: true, SetName: s.Name, SetID: s.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg4, RegProtoMin: reg5})
}

// translated matches connections whose destination was translated.
func translated() []expr.Any {
	const dnat = 1 << 5 // IPS_DST_NAT
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg0},
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(dnat), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: make([]byte, 4)},
	}
}

func known() []expr.Any {
	const established, related = 1 << 1, 1 << 2 // NF_CT_STATE_BIT
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg0},
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(established | related), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: make([]byte, 4)},
	}
}

// loopback matches 127.0.0.0/8 in a register that holds an address.
func loopback(address func(uint32) expr.Any) []expr.Any {
	return []expr.Any{address(reg0),
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: []byte{255, 0, 0, 0}, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{127, 0, 0, 0}}}
}

func join(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func one(e ...expr.Any) []expr.Any { return e }

// Reset replaces the whole table in one transaction.
func (f *Firewall) Reset(networks []network.Filter, rules []network.Rule) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := f.table()
	c.AddTable(t) // so that the deletion finds one
	c.DelTable(t)
	c.AddTable(t)
	s := define(t)
	for _, set := range []*nftables.Set{s.published, s.any, s.bridges, s.within, s.internal, s.subnets, s.masqueraded} {
		if err := c.AddSet(set, nil); err != nil {
			return err
		}
	}
	f.chains(c, t, s)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write firewall table %s: %w", f.name, err)
	}
	for _, n := range networks {
		if err := f.network(n, true); err != nil {
			return err
		}
	}
	return f.elements(rules, true)
}

func (f *Firewall) chains(c *nftables.Conn, t *nftables.Table, s sets) {
	accept := nftables.ChainPolicyAccept
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: t, Type: kind, Hooknum: hook, Priority: &priority, Policy: &accept})
	}
	rule := func(ch *nftables.Chain, parts ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: join(parts...)})
	}
	exact := one(daddr(reg0), meta(expr.MetaKeyL4PROTO, reg1), dport(reg2))
	wild := one(meta(expr.MetaKeyL4PROTO, reg0), dport(reg1))

	raw := chain("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw)
	// The bridges route 127.0.0.0/8 for published ports: nobody outside may use that.
	rule(raw, one(meta(expr.MetaKeyIIFNAME, 1), in(s.bridges, 1, false)), loopback(daddr), one(verdict(expr.VerdictDrop)))

	pre := chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest)
	out := chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, *nftables.ChainPriorityNATDest)
	for _, ch := range []*nftables.Chain{pre, out} {
		rule(ch, localTo(), translate(s.published, exact...))
		rule(ch, localTo(), translate(s.any, wild...))
	}
	post := chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource)
	toUs := one(meta(expr.MetaKeyOIFNAME, 1), in(s.bridges, 1, false))
	masquerade := one(&expr.Masq{})
	rule(post, toUs, loopback(saddr), masquerade)                                            // the host's own 127.0.0.1
	rule(post, toUs, translated(), one(saddr(reg0), in(s.subnets, reg0, false)), masquerade) // a container over the host's address
	rule(post, one(meta(expr.MetaKeyOIFNAME, 1), in(s.bridges, 1, true), saddr(reg0), in(s.masqueraded, reg0, false)), masquerade)

	fwd := chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter)
	fromUs := one(meta(expr.MetaKeyIIFNAME, 1), in(s.bridges, 1, false))
	rule(fwd, one(meta(expr.MetaKeyIIFNAME, 1), in(s.internal, 1, false)), one(meta(expr.MetaKeyOIFNAME, 1), in(s.internal, 1, true)), one(verdict(expr.VerdictDrop)))
	rule(fwd, toUs, known(), one(verdict(expr.VerdictAccept)))
	rule(fwd, toUs, translated(), one(verdict(expr.VerdictAccept)))
	// Where br_netfilter is on, frames between two ports of one bridge come here too.
	rule(fwd, one(meta(expr.MetaKeyIIFNAME, 1), meta(expr.MetaKeyOIFNAME, 2), in(s.within, 1, false)), one(verdict(expr.VerdictAccept)))
	rule(fwd, toUs, one(verdict(expr.VerdictDrop))) // neither published nor an answer: another network, or from outside
	rule(fwd, fromUs, one(verdict(expr.VerdictAccept)))
}

func ifname(name string) []byte {
	b := make([]byte, 16)
	copy(b, name)
	return b
}

// AddNetwork lets a bridge's containers out.
func (f *Firewall) AddNetwork(n network.Filter) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.network(n, true)
}

// RemoveNetwork forgets a bridge.
func (f *Firewall) RemoveNetwork(n network.Filter) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.network(n, false)
}

func (f *Firewall) network(n network.Filter, add bool) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	s := define(f.table())
	var errs []error
	change := func(set *nftables.Set, elements []nftables.SetElement) {
		if add {
			errs = append(errs, c.SetAddElements(set, elements))
		} else {
			errs = append(errs, c.SetDeleteElements(set, elements))
		}
	}
	change(s.bridges, []nftables.SetElement{{Key: ifname(n.Bridge)}})
	if n.ICC {
		change(s.within, []nftables.SetElement{{Key: append(ifname(n.Bridge), ifname(n.Bridge)...)}})
	}
	if n.Internal {
		change(s.internal, []nftables.SetElement{{Key: ifname(n.Bridge)}})
	}
	for _, p := range n.Subnets {
		if !p.Addr().Is4() {
			continue
		}
		e := interval(p)
		change(s.subnets, e)
		if n.Masquerade && !n.Internal {
			change(s.masqueraded, e)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := c.Flush(); err != nil && (add || !errors.Is(err, unix.ENOENT)) {
		return fmt.Errorf("firewall of bridge %s: %w", n.Bridge, err)
	}
	return nil
}

func interval(p netip.Prefix) []nftables.SetElement {
	first := p.Masked().Addr().As4()
	end := binary.BigEndian.Uint32(first[:]) + 1<<(32-p.Bits())
	return []nftables.SetElement{{Key: first[:]}, {Key: binary.BigEndian.AppendUint32(nil, end), IntervalEnd: true}}
}

// Publish lets packets for host ports in.
func (f *Firewall) Publish(rules []network.Rule) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.elements(rules, true)
}

// Unpublish takes that back.
func (f *Firewall) Unpublish(rules []network.Rule) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.elements(rules, false)
}

var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

func port(n uint16) []byte { return []byte{byte(n >> 8), byte(n), 0, 0} }

func (f *Firewall) elements(rules []network.Rule, add bool) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	s := define(f.table())
	var exact, any []nftables.SetElement
	for _, r := range rules {
		to := r.To.Addr().As4()
		e := nftables.SetElement{Val: append(to[:], port(r.To.Port())...)}
		key := append([]byte{protocols[r.Proto], 0, 0, 0}, port(r.HostPort)...)
		switch {
		case !r.HostIP.Is4():
			continue // the proxy serves it
		case r.HostIP.IsUnspecified():
			e.Key = key
			any = append(any, e)
		default:
			a := r.HostIP.As4()
			e.Key = append(a[:], key...)
			exact = append(exact, e)
		}
	}
	for _, part := range []struct {
		set      *nftables.Set
		elements []nftables.SetElement
	}{{s.published, exact}, {s.any, any}} {
		for len(part.elements) > 0 {
			n := min(batch, len(part.elements))
			var err error
			if add {
				err = c.SetAddElements(part.set, part.elements[:n])
			} else {
				err = c.SetDeleteElements(part.set, part.elements[:n])
			}
			if err != nil {
				return err
			}
			part.elements = part.elements[n:]
		}
	}
	if err := c.Flush(); err != nil && (add || !errors.Is(err, unix.ENOENT)) {
		return err
	}
	return nil
}

// Remove deletes the table.
func (f *Firewall) Remove() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := nftables.New()
	if err != nil {
		return err
	}
	c.AddTable(f.table())
	c.DelTable(f.table())
	return c.Flush()
}

// RedirectDNS sends port 53 of 127.0.0.11 in a namespace to other ports.
func RedirectDNS(ns *os.File, udp, tcp uint16) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "berth-dns"}
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)
	priority := *nftables.ChainPriorityNATDest
	ch := c.AddChain(&nftables.Chain{Name: "output", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: &priority})
	for _, p := range []struct {
		proto byte
		port  uint16
	}{{unix.IPPROTO_UDP, udp}, {unix.IPPROTO_TCP, tcp}} {
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
			daddr(reg0), &expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{127, 0, 0, 11}},
			meta(expr.MetaKeyL4PROTO, reg0), &expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{p.proto}},
			dport(reg0), &expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{0, 53}},
			&expr.Immediate{Register: reg4, Data: []byte{127, 0, 0, 11}}, &expr.Immediate{Register: reg5, Data: []byte{byte(p.port >> 8), byte(p.port)}},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg4, RegProtoMin: reg5},
		}})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("redirect DNS in the sandbox: %w", err)
	}
	return nil
}
