// Package bridge makes network namespaces, bridges and the pairs that join
// them, over netlink in this process. It decides nothing: core/network does.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/core/network"
	"github.com/berth-project/berth/lib/fault"
)

// Links implements core's network.Links for one engine.
type Links struct {
	dir    string // of the namespaces' mounts
	prefix string // of the bridges' names
	host   *netlink.Handle
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
	return &Links{dir: dir, prefix: "br" + key + "-", host: host}, nil
}

// BridgeName is that of a user-defined network.
func (l *Links) BridgeName(id string) string {
	name := l.prefix + id
	return name[:min(len(name), 15)]
}

// EnsureBridge makes a bridge or brings it to what it must be.
func (l *Links) EnsureBridge(_ context.Context, b network.Bridge) error {
	link, err := l.host.LinkByName(b.Name)
	if isMissing(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.TxQLen = b.Name, b.MTU, -1
		if err := l.host.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("make bridge %s: %w", b.Name, err)
		}
		link, err = l.host.LinkByName(b.Name)
	}
	if err != nil {
		return err
	}
	if link.Type() != "bridge" {
		return fault.Conflictf("the interface %s is there and is no bridge", b.Name)
	}
	sysctl("net/ipv4/ip_forward", "1")
	sysctl("net/ipv4/conf/"+b.Name+"/route_localnet", "1") // for ports published on 127.0.0.1; guarded by the firewall
	sysctl("net/ipv6/conf/"+b.Name+"/accept_ra", "0")
	have, err := l.host.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, g := range b.Gateways {
		if g.Addr().Is6() {
			sysctl("net/ipv6/conf/"+b.Name+"/disable_ipv6", "0")
			sysctl("net/ipv6/conf/all/forwarding", "1")
		}
		there := false
		for _, a := range have {
			there = there || a.IPNet.String() == g.String()
		}
		if there {
			continue
		}
		a := address(g)
		if g.Addr().Is6() {
			a.Flags |= unix.IFA_F_NODAD
		}
		if err := l.host.AddrAdd(link, a); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("address %s of bridge %s: %w", g, b.Name, err)
		}
	}
	return l.host.LinkSetUp(link)
}

func isMissing(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}

func address(p netip.Prefix) *netlink.Addr {
	bits := p.Addr().BitLen()
	return &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), bits)}}
}

// sysctl sets one where it is there and differs; what the host cannot do it does not have.
func sysctl(name, value string) {
	path := "/proc/sys/" + name
	if b, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(b)) == value {
		return
	}
	_ = os.WriteFile(path, []byte(value), 0o644)
}

// RemoveBridge deletes a bridge; one that is not there is no error.
func (l *Links) RemoveBridge(name string) error {
	link, err := l.host.LinkByName(name)
	if isMissing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return l.host.LinkDel(link)
}

// Path is where a sandbox's namespace is mounted.
func (l *Links) Path(sandbox string) string { return filepath.Join(l.dir, sandbox) }

// Open makes a namespace with its loopback up.
func (l *Links) Open(_ context.Context, sandbox string, sysctls map[string]string) (string, error) {
	path := l.Path(sandbox)
	var fs unix.Statfs_t
	if unix.Statfs(path, &fs) == nil && fs.Type == unix.NSFS_MAGIC {
		return path, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return "", err
	}
	_ = f.Close()
	failed := make(chan error, 1)
	go func() {
		// The thread is in another namespace for good: it ends with the goroutine.
		runtime.LockOSThread()
		failed <- l.unshare(path, sysctls)
	}()
	if err := <-failed; err != nil {
		return "", errors.Join(fmt.Errorf("make network namespace: %w", err), os.Remove(path))
	}
	return path, nil
}

func (l *Links) unshare(path string, sysctls map[string]string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}); err != nil {
		return err
	}
	for k, v := range sysctls {
		if err := os.WriteFile("/proc/sys/"+strings.ReplaceAll(k, ".", "/"), []byte(v), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Close lets a namespace go; its interfaces go with it.
func (l *Links) Close(sandbox string) error {
	path := l.Path(sandbox)
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Attach gives a sandbox an interface on a bridge.
func (l *Links) Attach(_ context.Context, n network.Link) (err error) {
	master, err := l.host.LinkByName(n.Bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", n.Bridge, err)
	}
	ns, err := os.Open(l.Path(n.Sandbox))
	if err != nil {
		return err
	}
	defer ns.Close()
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return fault.Invalidf("invalid MAC address %q", n.MAC)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex, attrs.TxQLen = n.HostName, n.MTU, master.Attrs().Index, -1
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: n.Interface, PeerHardwareAddr: mac, PeerNamespace: netlink.NsFd(int(ns.Fd()))}
	if err := l.host.LinkAdd(pair); err != nil {
		return fmt.Errorf("make interface %s: %w", n.HostName, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Detach(n))
		}
	}()
	sysctl("net/ipv6/conf/"+n.HostName+"/disable_ipv6", "1") // a bridge's port needs no address
	if n.Isolated {
		if err := l.host.LinkSetIsolated(pair, true); err != nil {
			return fmt.Errorf("isolate interface %s: %w", n.HostName, err)
		}
	}
	if err := l.host.LinkSetUp(pair); err != nil {
		return err
	}
	return l.inside(ns, n)
}

// inside sets addresses and routes in the sandbox.
func (l *Links) inside(ns *os.File, n network.Link) error {
	h, err := handleAt(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(n.Interface)
	if err != nil {
		return err
	}
	for _, p := range n.Addresses {
		a := address(p)
		if p.Addr().Is6() {
			a.Flags |= unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(link, a); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	for _, g := range n.Gateways {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: g.AsSlice()}
		if err := h.RouteAdd(route); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("default route over %s: %w", g, err)
		}
	}
	return nil
}

// Detach removes an interface by the host's end, or by its name inside.
func (l *Links) Detach(n network.Link) error {
	link, err := l.host.LinkByName(n.HostName)
	if isMissing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	err = l.host.LinkDel(link)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// Stats reads the counters of an interface as its container sees them.
func (l *Links) Stats(hostName string) (container.NetStats, error) {
	link, err := l.host.LinkByName(hostName)
	if err != nil {
		return container.NetStats{}, err
	}
	s := link.Attrs().Statistics
	if s == nil {
		return container.NetStats{}, nil
	}
	// What the host's end sends, the container's receives.
	return container.NetStats{
		RxBytes: s.TxBytes, RxPackets: s.TxPackets, RxErrors: s.TxErrors, RxDropped: s.TxDropped,
		TxBytes: s.RxBytes, TxPackets: s.RxPackets, TxErrors: s.RxErrors, TxDropped: s.RxDropped,
	}, nil
}

// Sandboxes lists the namespaces that are mounted or were.
func (l *Links) Sandboxes() ([]string, error) {
	entries, err := os.ReadDir(l.dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// Bridges lists this engine's bridges of user-defined networks.
func (l *Links) Bridges() ([]string, error) {
	links, err := l.host.LinkList()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, link := range links {
		if link.Type() == "bridge" && strings.HasPrefix(link.Attrs().Name, l.prefix) {
			names = append(names, link.Attrs().Name)
		}
	}
	return names, nil
}

// Routed tells whether a subnet overlaps one that the host has a route to.
func (l *Links) Routed(p netip.Prefix) (bool, error) {
	routes, err := l.host.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return false, err
	}
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP == nil {
			continue
		}
		ones, _ := r.Dst.Mask.Size()
		a, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		if ok && ones > 0 && netip.PrefixFrom(a, ones).Overlaps(p) {
			return true, nil
		}
	}
	return false, nil
}
