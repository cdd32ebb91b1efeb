package firewall

import (
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers of four bytes each: NFT_REG32_00 is 8. An address of IPv6 takes
// four of them, a name of an interface too.
const (
	reg0 = 8
	reg1 = 9
	reg2 = 10
	reg4 = 12
	reg5 = 13
	reg6 = 14
	reg8 = 16
	rega = 18
)

// family is what differs between IPv4 and IPv6 in a packet.
type family struct {
	proto              byte // NFPROTO
	suffix             string
	source, target     uint32 // offsets of the addresses
	length             uint32 // of an address
	protoReg, portReg  uint32 // of a key that begins with an address
	toReg, toPortReg   uint32 // of what a map gives
	loopback, loopMask []byte
}

var (
	v4 = family{proto: unix.NFPROTO_IPV4, suffix: "4", source: 12, target: 16, length: 4, protoReg: reg1, portReg: reg2, toReg: reg4, toPortReg: reg5,
		loopback: []byte{127, 0, 0, 0}, loopMask: []byte{255, 0, 0, 0}}
	v6 = family{proto: unix.NFPROTO_IPV6, suffix: "6", source: 8, target: 24, length: 16, protoReg: reg4, portReg: reg5, toReg: reg6, toPortReg: rega,
		loopback: netip.IPv6Loopback().AsSlice(), loopMask: []byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255}}
)

func payload(base expr.PayloadBase, offset, size, reg uint32) expr.Any {
	return &expr.Payload{OperationType: expr.PayloadLoad, DestRegister: reg, Base: base, Offset: offset, Len: size}
}

func header(offset, size, reg uint32) expr.Any {
	return payload(expr.PayloadBaseNetworkHeader, offset, size, reg)
}

func dport(reg uint32) expr.Any { return payload(expr.PayloadBaseTransportHeader, 2, 2, reg) }

func meta(k expr.MetaKey, reg uint32) expr.Any { return &expr.Meta{Key: k, Register: reg} }

func verdict(k expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: k} }

func equal(reg uint32, data ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}
}

func differs(reg uint32, data ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: data}
}

func masked(reg uint32, mask []byte) expr.Any {
	return &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))}
}

// anyOf matches where one of the bits is set in what e loads.
func anyOf(e expr.Any, bits uint32) []expr.Any {
	return one(e, masked(reg0, binaryutil.NativeEndian.PutUint32(bits)), differs(reg0, 0, 0, 0, 0))
}

func join(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func one(e ...expr.Any) []expr.Any { return e }

// is matches the family's packets.
func (f family) is() []expr.Any { return one(meta(expr.MetaKeyNFPROTO, reg0), equal(reg0, f.proto)) }

func (f family) saddr(reg uint32) expr.Any { return header(f.source, f.length, reg) }
func (f family) daddr(reg uint32) expr.Any { return header(f.target, f.length, reg) }

// local matches addresses of the host's own loopback.
func (f family) local(load expr.Any) []expr.Any {
	return one(load, masked(reg0, f.loopMask), equal(reg0, f.loopback...))
}

// toHost matches packets for an address of this host.
func toHost() []expr.Any {
	return one(&expr.Fib{Register: reg0, ResultADDRTYPE: true, FlagDADDR: true}, equal(reg0, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)...))
}

// translated matches connections whose destination was translated.
func translated() []expr.Any {
	const dnat = 1 << 5 // IPS_DST_NAT
	return anyOf(&expr.Ct{Key: expr.CtKeySTATUS, Register: reg0}, dnat)
}

// answers matches packets of connections that exist.
func answers() []expr.Any {
	const established, related = 1 << 1, 1 << 2 // NF_CT_STATE_BIT
	return anyOf(&expr.Ct{Key: expr.CtKeySTATE, Register: reg0}, established|related)
}
