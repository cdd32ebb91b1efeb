package firewall

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// RedirectDNS sends port 53 of 127.0.0.11 in a namespace to other ports, and
// answers from those back.
func RedirectDNS(ns *os.File, udp, tcp uint16) error {
	err := redirectDNS(ns, udp, tcp, false)
	if errors.Is(err, unix.EEXIST) {
		err = redirectDNS(ns, udp, tcp, true)
	}
	if err != nil {
		return fmt.Errorf("redirect DNS in the sandbox: %w", err)
	}
	return nil
}

// redirectDNS writes the table; to replace one is much slower than to make one.
func redirectDNS(ns *os.File, udp, tcp uint16, replace bool) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())), nftables.WithSockOptions(func(raw *netlink.Conn) error {
		return raw.SetDeadline(time.Now().Add(replyTimeout))
	}))
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "berth-dns"}
	if replace {
		c.DelTable(t)
	}
	c.CreateTable(t)
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
	return c.Flush()
}
