package resolver

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/berth-project/berth/core/network"
)

// handler answers the queries of one sandbox.
type handler struct {
	ctx     context.Context // ends with the sandbox
	sandbox string
	names   network.Names
	log     *slog.Logger
	ns      *os.File
	slots   chan struct{}
}

// ServeDNS answers one query.
func (h *handler) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	transport := w.LocalAddr().Network()
	if len(q.Question) != 1 {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeFormatError))
		return
	}
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	default:
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
		return
	}
	m := h.own(q)
	if m == nil {
		m = h.forward(q, transport)
	}
	if transport == "udp" {
		m.Truncate(room(q))
	}
	_ = w.WriteMsg(m)
}

// room is how long an answer may be in one packet.
func room(q *dns.Msg) int {
	if o := q.IsEdns0(); o != nil && o.UDPSize() >= dns.MinMsgSize {
		return int(o.UDPSize())
	}
	return dns.MinMsgSize
}

// own answers names and addresses of containers; nil where it knows none.
func (h *handler) own(q *dns.Msg) *dns.Msg {
	question := q.Question[0]
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	header := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: ttl}
	switch question.Qtype {
	case dns.TypePTR:
		a, ok := reverse(question.Name)
		if !ok {
			return nil
		}
		name, known := h.names.Reverse(h.sandbox, a)
		if !known {
			return nil
		}
		m.Answer = []dns.RR{&dns.PTR{Hdr: header, Ptr: dns.Fqdn(name)}}
		return m
	default:
		addresses, known := h.names.Lookup(h.sandbox, question.Name)
		if !known {
			return nil
		}
		// A name of a container has addresses and nothing else: no other
		// question about it leaves.
		for _, a := range addresses {
			if len(m.Answer) == maxAnswers {
				break
			}
			switch {
			case a.Is4() && question.Qtype == dns.TypeA:
				m.Answer = append(m.Answer, &dns.A{Hdr: header, A: a.AsSlice()})
			case a.Is6() && question.Qtype == dns.TypeAAAA:
				m.Answer = append(m.Answer, &dns.AAAA{Hdr: header, AAAA: a.AsSlice()})
			}
		}
		return m
	}
}

// reverse reads the address out of a name below in-addr.arpa or ip6.arpa.
func reverse(name string) (netip.Addr, bool) {
	name = strings.ToLower(name)
	if text, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		labels := strings.Split(text, ".")
		if len(labels) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
		return a, err == nil
	}
	text, ok := strings.CutSuffix(name, ".ip6.arpa.")
	labels := strings.Split(text, ".")
	if !ok || len(labels) != 32 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := len(labels) - 1; i >= 0; i-- {
		if len(labels[i]) != 1 {
			return netip.Addr{}, false
		}
		b.WriteString(labels[i])
		if i%4 == 0 && i > 0 {
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil
}

// forward asks the servers one after the other.
func (h *handler) forward(q *dns.Msg, transport string) *dns.Msg {
	servers, inside := h.names.Upstream(h.sandbox)
	if len(servers) == 0 {
		return new(dns.Msg).SetRcode(q, dns.RcodeNameError)
	}
	ctx, cancel := context.WithTimeout(h.ctx, queryTimeout)
	defer cancel()
	each := queryTimeout / time.Duration(len(servers))
	var refused *dns.Msg
	for _, s := range servers {
		m, err := h.ask(ctx, q, transport, s.String(), inside, each)
		if err == nil && (m.Rcode == dns.RcodeServerFailure || m.Rcode == dns.RcodeRefused) {
			refused = m
			continue
		}
		if err == nil {
			return m
		}
		h.log.Debug("name server did not answer", "server", s, "error", err)
	}
	if refused != nil {
		return refused
	}
	return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
}

func (h *handler) ask(ctx context.Context, q *dns.Msg, transport, server string, inside bool, timeout time.Duration) (*dns.Msg, error) {
	client := &dns.Client{Net: transport, Timeout: timeout, UDPSize: uint16(room(q))}
	dial := func() (c *dns.Conn, err error) {
		d := net.Dialer{Timeout: timeout}
		conn, err := d.DialContext(ctx, transport, server)
		if err != nil {
			return nil, err
		}
		return &dns.Conn{Conn: conn, UDPSize: client.UDPSize}, nil
	}
	var c *dns.Conn
	var err error
	if inside {
		err = within(h.ns, func() error { c, err = dial(); return err })
	} else {
		c, err = dial()
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })() // the exchange itself heeds deadlines alone
	m, _, err := client.ExchangeWithConnContext(ctx, q, c)
	return m, err
}
