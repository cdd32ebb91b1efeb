package proxy

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of one port.
const (
	dialTimeout    = 10 * time.Second
	maxConnections = 4096             // open at once
	maxPeers       = 1024             // of UDP, remembered at once
	peerTimeout    = 90 * time.Second // after a peer's last answer
	packetBytes    = 64 << 10
)

func serveTCP(at netip.AddrPort, to *atomic.Pointer[netip.AddrPort]) (stop func(), err error) {
	l, err := net.Listen("tcp6", at.String())
	if err != nil {
		return nil, err
	}
	slots := make(chan struct{}, maxConnections)
	var done sync.WaitGroup
	done.Add(1)
	go func() {
		defer done.Done()
		for {
			slots <- struct{}{}
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { <-slots }()
				carry(c.(*net.TCPConn), *to.Load())
			}()
		}
	}()
	return func() {
		_ = l.Close()
		select {
		case <-slots: // where all are taken, the loop waits for one
		default:
		}
		done.Wait()
	}, nil
}

func carry(c *net.TCPConn, to netip.AddrPort) {
	defer c.Close()
	conn, err := dial("tcp", to)
	if err != nil {
		return
	}
	d := conn.(*net.TCPConn)
	defer d.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(d, c)
		_ = d.CloseWrite()
	}()
	_, _ = io.Copy(c, d)
	_ = c.CloseWrite()
	<-done
}

func serveUDP(at netip.AddrPort, to *atomic.Pointer[netip.AddrPort]) (stop func(), err error) {
	l, err := net.ListenUDP("udp6", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	u := &packets{l: l, to: to, peers: map[netip.AddrPort]way{}}
	u.done.Add(1)
	go u.read()
	return func() {
		_ = l.Close()
		u.mu.Lock()
		for _, w := range u.peers {
			_ = w.Close()
		}
		u.peers = nil // the packet at hand opens none
		u.mu.Unlock()
		u.done.Wait()
	}, nil
}

// packets carries those of one port; each peer has a socket of its own.
type packets struct {
	l    *net.UDPConn
	to   *atomic.Pointer[netip.AddrPort]
	done sync.WaitGroup

	mu    sync.Mutex
	peers map[netip.AddrPort]way // nil when stopped
}

// way is a peer's socket and where it leads.
type way struct {
	net.Conn
	to netip.AddrPort
}

func (u *packets) read() {
	defer u.done.Done()
	b := make([]byte, packetBytes)
	for {
		n, peer, err := u.l.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		if c := u.peer(peer); c != nil {
			_, _ = c.Write(b[:n])
		}
	}
}

func (u *packets) peer(peer netip.AddrPort) net.Conn {
	u.mu.Lock()
	defer u.mu.Unlock()
	to := *u.to.Load()
	w, known := u.peers[peer]
	switch {
	case u.peers == nil, !known && len(u.peers) >= maxPeers:
		return nil
	case known && w.to == to:
		return w
	case known:
		_ = w.Close() // another container has taken the port over
	}
	c, err := dial("udp", to)
	if err != nil {
		delete(u.peers, peer)
		return nil
	}
	w = way{c, to}
	u.peers[peer] = w
	u.done.Add(1)
	go u.answer(peer, w)
	return w
}

func (u *packets) answer(peer netip.AddrPort, c way) {
	defer u.done.Done()
	b := make([]byte, packetBytes)
	for {
		_ = c.SetReadDeadline(time.Now().Add(peerTimeout))
		n, err := c.Read(b)
		if err != nil {
			break
		}
		if _, err := u.l.WriteToUDPAddrPort(b[:n], peer); err != nil {
			break
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.peers[peer] == c {
		delete(u.peers, peer)
	}
	_ = c.Close()
}
