package bridge

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/network"
)

// A Linux bridge has room for 1,023 ports. What comes after goes to further
// bridges, each joined to the first by a pair: one network still, with the
// host's address on the first.
const (
	maxShards      = 64
	manyNeighbours = 512   // sandboxes from which the kernel's default table of neighbours is too small
	neighbours     = 32768 // that it holds then
	backlog        = 65536 // packets that may wait: a broadcast is one for each sandbox
)

// shardPrefix begins the names of further bridges; the firewall knows it too.
const shardPrefix = "b~"

// shardNames gives the name of a further bridge and those of the pair that
// joins it: the end on the first bridge and the end on the further one.
func shardNames(bridge string, n int) (shard, first, further string) {
	sum := sha256.Sum256([]byte(bridge))
	id := hex.EncodeToString(sum[:4]) + "-" + strconv.Itoa(n)
	return shardPrefix + id, "bu" + id, "bv" + id
}

// enter puts the host's end of a pair on the first bridge with room.
func (l *Links) enter(n network.Link, veth netlink.Link) error {
	l.mu.Lock()
	start := l.roomy[n.Bridge]
	l.mu.Unlock()
	for i := range maxShards {
		at := (start + i) % maxShards
		master, err := l.master(n, at)
		if err != nil {
			return err
		}
		err = l.host.LinkSetMasterByIndex(veth, master)
		if errors.Is(err, unix.EXFULL) {
			continue
		}
		if err != nil {
			l.forget(n.Bridge)
			return err
		}
		l.mu.Lock()
		l.roomy[n.Bridge] = at
		l.mu.Unlock()
		return nil
	}
	return fmt.Errorf("bridge %s and its %d shards are full: %w", n.Bridge, maxShards, unix.EXFULL)
}

// master gives the index of the first bridge (0) or of a further one, made
// where it is not there.
func (l *Links) master(n network.Link, shard int) (int, error) {
	if shard == 0 {
		return l.bridge(n.Bridge)
	}
	name, first, further := shardNames(n.Bridge, shard)
	if i, err := l.bridge(name); err == nil {
		return i, nil
	}
	l.sharding.Lock()
	defer l.sharding.Unlock()
	if i, err := l.bridge(name); err == nil {
		return i, nil
	}
	if err := l.makeShard(n, name, first, further); err != nil {
		return 0, errors.Join(fmt.Errorf("make bridge %s: %w", name, err), l.remove(first), l.remove(name))
	}
	return l.bridge(name)
}

func (l *Links) makeShard(n network.Link, name, first, further string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.TxQLen, attrs.HardwareAddr = name, n.MTU, -1, randomMAC()
	if err := l.add(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return err
	}
	main, err := l.bridge(n.Bridge)
	if err != nil {
		return err
	}
	pair := netlink.NewLinkAttrs()
	pair.Name, pair.MTU, pair.TxQLen = first, n.MTU, -1
	if err := l.add(&netlink.Veth{LinkAttrs: pair, PeerName: further}); err != nil {
		return err
	}
	shard, err := l.host.LinkByName(name)
	if err != nil {
		return err
	}
	// The host answers on the first bridge only.
	setSysctl("net/ipv4/conf/"+name+"/arp_ignore", "8")
	setSysctl("net/ipv6/conf/"+name+"/disable_ipv6", "1")
	if err := l.host.LinkSetUp(shard); err != nil {
		return err
	}
	end, err := l.host.LinkByName(further)
	if err != nil {
		return err
	}
	if err := l.enslave(end, shard.Attrs().Index); err != nil {
		return err
	}
	if end, err = l.host.LinkByName(first); err != nil {
		return err
	}
	for range maxShards {
		if err = l.enslave(end, main); !errors.Is(err, unix.EXFULL) {
			break
		}
		// The first bridge gives one of its ports to the new one.
		if err := l.move(n, main, shard.Attrs().Index); err != nil {
			return err
		}
	}
	if err == nil && n.Isolated {
		// Containers of two shards are no more neighbours than those of one.
		err = l.host.LinkSetIsolated(end, true)
	}
	return err
}

func (l *Links) enslave(link netlink.Link, master int) error {
	setSysctl("net/ipv6/conf/"+link.Attrs().Name+"/disable_ipv6", "1")
	if err := l.host.LinkSetMasterByIndex(link, master); err != nil {
		return err
	}
	return l.host.LinkSetUp(link)
}

// move takes a container's port from one bridge to another of the same network.
func (l *Links) move(n network.Link, from, to int) error {
	links, err := whole(l.host.LinkList)
	if err != nil {
		return err
	}
	for _, link := range links {
		if a := link.Attrs(); a.MasterIndex != from || link.Type() != "veth" || !strings.HasPrefix(a.Name, "veth") {
			continue
		}
		if err := l.host.LinkSetMasterByIndex(link, to); err != nil {
			return err
		}
		return l.port(link, n)
	}
	return unix.EXFULL
}

// masters are the indexes of a bridge and its shards.
func (l *Links) masters(bridge string) map[int]bool {
	all := map[int]bool{}
	for i := range maxShards {
		name := bridge
		if i > 0 {
			name, _, _ = shardNames(bridge, i)
		}
		index, err := l.bridge(name)
		if err != nil {
			break
		}
		all[index] = true
	}
	return all
}

// removeShards deletes the further bridges of one.
func (l *Links) removeShards(bridge string) error {
	l.mu.Lock()
	delete(l.roomy, bridge)
	l.mu.Unlock()
	var errs []error
	for i := 1; i < maxShards; i++ {
		name, first, _ := shardNames(bridge, i)
		l.forget(name)
		if _, err := l.host.LinkByName(name); isMissing(err) {
			break
		}
		errs = append(errs, l.remove(first), l.remove(name))
	}
	return errors.Join(errs...)
}

// makeRoom lets the kernel remember as many neighbours as there are sandboxes,
// and deliver what is broadcast to all of them.
func (l *Links) makeRoom() {
	l.raise("net/core/netdev_max_backlog", backlog)
	for _, family := range []string{"ipv4", "ipv6"} {
		for i, name := range []string{"gc_thresh3", "gc_thresh2", "gc_thresh1"} {
			l.raise("net/"+family+"/neigh/default/"+name, neighbours>>i)
		}
	}
}

// raise sets a number of the host that is smaller.
func (l *Links) raise(name string, to int) {
	b, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return // not in this kernel, or the namespace is not the first one
	}
	if have, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && have < to {
		l.sysctl(name, strconv.Itoa(to))
	}
}
