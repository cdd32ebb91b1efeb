package firewall

import (
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// RedirectDNS sends port 53 of 127.0.0.11 in a namespace to other ports, and
// answers from those back.
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
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: join(
			one(v4.daddr(reg0), equal(reg0, 127, 0, 0, 11)),
			one(meta(expr.MetaKeyL4PROTO, reg0), equal(reg0, p.proto), dport(reg0), equal(reg0, 0, 53)),
			one(&expr.Immediate{Register: reg4, Data: []byte{127, 0, 0, 11}}, &expr.Immediate{Register: reg5, Data: []byte{byte(p.port >> 8), byte(p.port)}},
				&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg4, RegProtoMin: reg5}),
		)})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("redirect DNS in the sandbox: %w", err)
	}
	return nil
}
