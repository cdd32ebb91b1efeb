// Package bridge makes network namespaces, bridges and the interfaces that
// join them, over netlink in this process. It decides nothing: core/network does.
package bridge

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/network"
	"github.com/berth-project/berth/lib/fault"
)

// made marks, as its alias, an interface that this package has made: others
// are never deleted.
const made = "berth"

// unmarked is in the name of one that is not marked yet, after the engine's
// prefix: nobody else names an interface so.
const unmarked = "~"

// Links implements core's network.Links for one engine.
type Links struct {
	dir    string // of the namespaces' mounts
	prefix string // of the bridges' names
	host   *netlink.Handle

	spares chan *sandbox // namespaces made ahead
	wake   chan struct{}
	doomed chan struct{} // says that interfaces wait for their deletion
	stop   chan struct{}
	done   sync.WaitGroup
	once   sync.Once

	mu      sync.Mutex
	open    map[string]*sandbox
	bridges map[string]int // indexes by name
	roomy   map[string]int // shard with room, by the bridge's name

	sharding sync.Mutex // one shard is made at a time
}

// New keeps namespaces at dir; key tells this engine's bridges from others'.
func New(dir, key string) (*Links, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	l := &Links{dir: dir, prefix: "br" + key + "-", host: host, spares: make(chan *sandbox, spareSandboxes), wake: make(chan struct{}, 1), doomed: make(chan struct{}, 1), stop: make(chan struct{}), open: map[string]*sandbox{}, bridges: map[string]int{}, roomy: map[string]int{}}
	l.done.Add(2)
	go l.refill()
	go l.reap()
	return l, nil
}

// Shutdown ends what runs in the background. Namespaces and bridges stay.
func (l *Links) Shutdown() {
	l.once.Do(func() { close(l.stop) })
	l.done.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, s := range l.open {
		s.release()
		delete(l.open, key)
	}
}

// BridgeName is that of a user-defined network.
func (l *Links) BridgeName(id string) string {
	name := l.prefix + id
	return name[:min(len(name), 15)]
}

// HasIPv6 tells whether the host does IPv6 at all.
func (l *Links) HasIPv6() bool {
	_, err := os.Stat("/proc/net/if_inet6")
	return err == nil
}

// EnsureBridge makes a bridge or brings it to what it must be.
func (l *Links) EnsureBridge(_ context.Context, b network.Bridge) error {
	l.forget(b.Name)
	link, err := l.host.LinkByName(b.Name)
	if isMissing(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.TxQLen = b.Name, b.MTU, -1
		// Without an address of its own a bridge takes its ports' in turn, and
		// containers lose their gateway as others come and go.
		attrs.HardwareAddr = randomMAC()
		if err := l.add(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("make bridge %s: %w", b.Name, err)
		}
		link, err = l.host.LinkByName(b.Name)
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", b.Name, err)
	}
	if link.Type() != "bridge" {
		return fault.Conflictf("existing interface %s is not a bridge", b.Name)
	}
	l.sysctl("net/ipv4/ip_forward", "1")
	l.sysctl("net/ipv4/conf/"+b.Name+"/route_localnet", "1") // for ports published on 127.0.0.1; guarded by the firewall
	l.sysctl("net/ipv6/conf/"+b.Name+"/accept_ra", "0")
	if b.IPv6 {
		l.sysctl("net/ipv6/conf/"+b.Name+"/disable_ipv6", "0")
		l.keepRouterAdvertisements()
		l.sysctl("net/ipv6/conf/all/forwarding", "1")
	} else {
		l.sysctl("net/ipv6/conf/"+b.Name+"/disable_ipv6", "1")
	}
	have, err := whole(func() ([]netlink.Addr, error) { return l.host.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	for _, g := range b.Gateways {
		wanted[g.String()] = true
	}
	for _, a := range have {
		switch {
		case wanted[a.IPNet.String()]:
			delete(wanted, a.IPNet.String())
		case link.Attrs().Alias == made && a.Scope == int(netlink.SCOPE_UNIVERSE):
			if err := l.host.AddrDel(link, &a); err != nil {
				return fmt.Errorf("address %s of bridge %s: %w", a.IPNet, b.Name, err)
			}
		}
	}
	for _, g := range b.Gateways {
		if wanted[g.String()] {
			if err := l.host.AddrAdd(link, address(g)); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("address %s of bridge %s: %w", g, b.Name, err)
			}
		}
	}
	return l.host.LinkSetUp(link)
}

// add makes a link that this package may delete again. The kernel takes name
// and mark one after the other, so until it is marked its name is one of ours,
// which sweeps find should the daemon end in between.
func (l *Links) add(link netlink.Link) error {
	attrs := link.Attrs()
	name := attrs.Name
	attrs.Name = l.BridgeName(unmarked + rand.Text())
	if err := l.host.LinkAdd(link); err != nil {
		return err
	}
	there, err := l.host.LinkByName(attrs.Name)
	attrs.Name = name
	if err != nil {
		return err
	}
	if err = l.host.LinkSetAlias(there, made); err == nil {
		err = l.host.LinkSetName(there, name)
	}
	if err != nil {
		err = errors.Join(err, l.host.LinkDel(there))
	}
	return err
}

// remove deletes a link that add has made; one that is not there is no error.
func (l *Links) remove(name string) error {
	link, err := l.host.LinkByName(name)
	if isMissing(err) || err == nil && link.Attrs().Alias != made && !strings.HasPrefix(name, l.prefix+unmarked) {
		return nil
	}
	if err != nil {
		return err
	}
	return l.host.LinkDel(link)
}

// RemoveBridge deletes a bridge that EnsureBridge has made.
func (l *Links) RemoveBridge(name string) error {
	l.forget(name)
	return errors.Join(l.removeShards(name), l.remove(name))
}

// RemoveParent deletes an interface that EnsureParent has made.
func (l *Links) RemoveParent(name string) error { return l.remove(name) }

// EnsureParent finds the interface that macvlan and ipvlan lie on. "eth0.10"
// is VLAN 10 of eth0; a network without a parent has one that leads nowhere.
func (l *Links) EnsureParent(_ context.Context, name string) error {
	link, err := l.host.LinkByName(name)
	if err == nil {
		return l.host.LinkSetUp(link)
	}
	if !isMissing(err) {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if len(name) > 15 {
		return fault.Invalidf("invalid parent interface %q", name)
	}
	if strings.HasPrefix(name, "dm-") {
		if err := l.add(&netlink.Dummy{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("make interface %s: %w", name, err)
		}
	} else {
		base, tag, ok := strings.Cut(name, ".")
		id, bad := strconv.ParseUint(tag, 10, 12)
		on, err := l.host.LinkByName(base)
		if !ok || bad != nil || err != nil {
			return fault.Invalidf("-o parent interface was not found on the host: %s", name)
		}
		attrs.ParentIndex = on.Attrs().Index
		if err := l.add(&netlink.Vlan{LinkAttrs: attrs, VlanId: int(id)}); err != nil {
			return fmt.Errorf("make interface %s: %w", name, err)
		}
	}
	link, err = l.host.LinkByName(name)
	if err != nil {
		return err
	}
	return l.host.LinkSetUp(link)
}

// randomMAC is local and for one interface only (IEEE 802).
func randomMAC() net.HardwareAddr {
	m := make(net.HardwareAddr, 6)
	_, _ = rand.Read(m) // never fails
	m[0] = m[0]&^1 | 2
	return m
}

func isMissing(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}

func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // nobody else may have it
	}
	if p.Addr().IsLinkLocalUnicast() {
		a.Scope = int(netlink.SCOPE_LINK)
	}
	return a
}

// sysctl sets one of the host where it is there and differs, and records what
// it was beside the namespaces' folder.
func (l *Links) sysctl(name, value string) {
	old, changed := setSysctl(name, value)
	if !changed {
		return
	}
	f, err := os.OpenFile(l.dir+".sysctl", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return // a record only
	}
	defer f.Close()
	_, _ = fmt.Fprintf(f, "%s: %s → %s\n", name, old, value)
}

// setSysctl writes a setting of the thread's network namespace; what the
// kernel does not have is left.
func setSysctl(name, value string) (old string, changed bool) {
	path := "/proc/sys/" + name
	b, err := os.ReadFile(path)
	old = strings.TrimSpace(string(b))
	if err != nil || old == value {
		return old, false
	}
	return old, os.WriteFile(path, []byte(value), 0o644) == nil
}

// keepRouterAdvertisements lets the host's interfaces that learn routes from
// their routers go on when forwarding is switched on (accept_ra 2).
func (l *Links) keepRouterAdvertisements() {
	if b, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/forwarding"); err != nil || strings.TrimSpace(string(b)) == "1" {
		return
	}
	entries, err := os.ReadDir("/proc/sys/net/ipv6/conf")
	if err != nil {
		return
	}
	for _, e := range entries {
		if b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + e.Name() + "/accept_ra"); err == nil && strings.TrimSpace(string(b)) == "1" && e.Name() != "all" && e.Name() != "default" && e.Name() != "lo" {
			l.sysctl("net/ipv6/conf/"+e.Name()+"/accept_ra", "2")
		}
	}
}

// whole asks again while what is listed changed during the listing: the kernel
// says that its answer may lack something then.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 100 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// Bridges lists this engine's bridges of user-defined networks, and what a
// killed daemon was about to make.
func (l *Links) Bridges() ([]string, error) {
	links, err := whole(l.host.LinkList)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, link := range links {
		a := link.Attrs()
		if link.Type() == "bridge" && a.Alias == made && strings.HasPrefix(a.Name, l.prefix) || strings.HasPrefix(a.Name, l.prefix+unmarked) {
			names = append(names, a.Name)
		}
	}
	return names, nil
}

// Ports lists the hosts' ends of containers' interfaces on a bridge.
func (l *Links) Ports(bridge string) ([]string, error) {
	masters := l.masters(bridge)
	links, err := whole(l.host.LinkList)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, link := range links {
		if a := link.Attrs(); a.MasterIndex != 0 && masters[a.MasterIndex] && link.Type() == "veth" && strings.HasPrefix(a.Name, "veth") {
			names = append(names, a.Name)
		}
	}
	return names, nil
}

// Routed tells whether a subnet overlaps one that the host has a route to.
func (l *Links) Routed(p netip.Prefix) (bool, error) {
	family := netlink.FAMILY_V4
	if p.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := whole(func() ([]netlink.Route, error) { return l.host.RouteList(nil, family) })
	if err != nil {
		return false, err
	}
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP == nil {
			continue
		}
		ones, _ := r.Dst.Mask.Size()
		a, ok := netip.AddrFromSlice(r.Dst.IP)
		if ok && ones > 0 && netip.PrefixFrom(a.Unmap(), ones).Overlaps(p) {
			return true, nil
		}
	}
	return false, nil
}
