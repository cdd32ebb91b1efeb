package network_test

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/network"
	"github.com/berth-project/berth/engine/firewall"
	"github.com/berth-project/berth/test/kit"
)

// listeners makes the receive buffers of this process's sockets for notices of
// nftables as small as can be, and tells how many notices they have lost.
func listeners(t *testing.T) (lost func() int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	inodes := map[string]bool{}
	for _, e := range fds {
		var fd int
		if _, err := fmt.Sscan(e.Name(), &fd); err != nil {
			continue
		}
		link, _ := os.Readlink("/proc/self/fd/" + e.Name())
		inode, ok := strings.CutPrefix(link, "socket:[")
		if !ok {
			continue
		}
		if p, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || p != unix.NETLINK_NETFILTER {
			continue
		}
		inodes[strings.TrimSuffix(inode, "]")] = true
		if groups, err := unix.GetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_LIST_MEMBERSHIPS); err == nil && groups != 0 {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(inodes) == 0 {
		t.Fatal("no socket listens to nftables")
	}
	return func() (n int) {
		f, err := os.Open("/proc/thread-self/net/netlink")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		// sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
		for s := bufio.NewScanner(f); s.Scan(); {
			if w := strings.Fields(s.Text()); len(w) == 10 && inodes[w[9]] {
				var drops int
				_, _ = fmt.Sscan(w[8], &drops)
				n += drops
			}
		}
		return n
	}
}

// record is a log that can be read while it is written.
type record struct {
	mu sync.Mutex
	b  strings.Builder
}

func (c *record) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.Write(p)
}

func (c *record) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.String()
}

// However much the engine writes itself, it is not taken for another's doing:
// a repair that was would be followed by a repair for ever.
func TestOwnChangesAreNoDamage(t *testing.T) {
	c := &record{}
	f := firewall.New("own", slog.New(slog.NewTextHandler(c, nil)))
	if err := f.Reset(network.Rules{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	lost := listeners(t)
	var ports []network.Rule
	for i := range 3000 {
		ports = append(ports, network.Rule{Proto: "tcp", HostIP: netip.MustParseAddr("127.0.0.2"), HostPort: uint16(1000 + i), To: netip.MustParseAddrPort("10.9.9.9:80")})
	}
	if err := f.Add(network.Rules{Ports: ports}); err != nil {
		t.Fatal(err)
	}
	if n := lost(); n != 0 {
		t.Fatalf("%d notices of the engine's own change were lost", n)
	}
	if out, err := exec.Command("nft", "delete", "table", "inet", "berth-own").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := kit.Until(20*time.Second, func() error {
		out, err := exec.Command("nft", "list", "map", "inet", "berth-own", "published4").CombinedOutput()
		if err == nil && !strings.Contains(string(out), "3999") {
			err = errors.New("the last port is missing")
		}
		return err
	}); err != nil {
		t.Fatalf("not written again: %v\n%s", err, c.text())
	}
	if n := strings.Count(c.text(), "changed by another program"); n != 1 {
		t.Errorf("%d repairs of one damage:\n%s", n, c.text())
	}
}
