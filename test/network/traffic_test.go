package network_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/berth-project/berth/core/network"
)

func (w *world) network(o network.CreateOptions) string {
	w.t.Helper()
	id, _, err := w.Create(context.Background(), o)
	must(w.t, err)
	w.t.Cleanup(func() { must(w.t, w.Remove(context.Background(), id)) })
	return id
}

func TestContainersOnOneNetworkReachOneAnother(t *testing.T) {
	w := newWorld(t)
	a, b := w.open("a", "default"), w.open("b", "default")
	w.serve(a.sandbox.NetNS, "tcp", "0.0.0.0:80", "a")
	w.reaches(b.sandbox.NetNS, "tcp", net.JoinHostPort(a.ip().String(), "80"), "a "+b.ip().String())
	w.reaches("", "tcp", net.JoinHostPort(a.ip().String(), "80"), "a ")
}

func TestContainersGoOutWithTheHostsAddress(t *testing.T) {
	w := newWorld(t)
	a := w.open("a", "default")
	w.serve(w.neighbour, "tcp", "0.0.0.0:80", "n")
	w.reaches(a.sandbox.NetNS, "tcp", neighbourOnLAN+":80", "n "+hostOnLAN)
}

func TestPublishedPortsAreReachedFromEverywhere(t *testing.T) {
	w := newWorld(t)
	a := w.open("a", "default", publish("", 8080, 80, "tcp"), publish("", 5353, 53, "udp"))
	b := w.open("b", "default")
	w.serve(a.sandbox.NetNS, "tcp", "0.0.0.0:80", "a")
	w.serve(a.sandbox.NetNS, "udp", "0.0.0.0:53", "a")
	w.network(network.CreateOptions{Name: "other"})
	c := w.open("c", "other")
	for _, proto := range []string{"tcp", "udp"} {
		port := map[string]string{"tcp": ":8080", "udp": ":5353"}[proto]
		w.reaches(w.neighbour, proto, hostOnLAN+port, "a "+neighbourOnLAN)
		w.reaches("", proto, "127.0.0.1"+port, "a ")
		w.reaches("", proto, hostOnLAN+port, "a ")
		w.reaches(b.sandbox.NetNS, proto, hostOnLAN+port, "a ")
		w.reaches(c.sandbox.NetNS, proto, hostOnLAN+port, "a ")
		w.reaches(a.sandbox.NetNS, proto, hostOnLAN+port, "a ") // itself
	}
	w.reaches("", "tcp", "[::1]:8080", "a ")
}

func TestNetworksAreKeptApart(t *testing.T) {
	w := newWorld(t)
	w.network(network.CreateOptions{Name: "one"})
	w.network(network.CreateOptions{Name: "two"})
	a, b := w.open("a", "one"), w.open("b", "two")
	w.serve(a.sandbox.NetNS, "tcp", "0.0.0.0:80", "a")
	w.blocked(b.sandbox.NetNS, "tcp", net.JoinHostPort(a.ip().String(), "80"))
}

func TestInternalNetworksHaveNoWayOut(t *testing.T) {
	w := newWorld(t)
	w.network(network.CreateOptions{Name: "inner", Internal: true})
	a, b := w.open("a", "inner"), w.open("b", "inner")
	w.serve(w.neighbour, "tcp", "0.0.0.0:80", "n")
	w.serve(a.sandbox.NetNS, "tcp", "0.0.0.0:80", "a")
	w.blocked(a.sandbox.NetNS, "tcp", neighbourOnLAN+":80")
	w.reaches(b.sandbox.NetNS, "tcp", net.JoinHostPort(a.ip().String(), "80"), "a ")
}

func TestContainersWithoutICCDoNotReachOneAnother(t *testing.T) {
	w := newWorld(t)
	w.network(network.CreateOptions{Name: "quiet", Options: map[string]string{"com.docker.network.bridge.enable_icc": "false"}})
	a, b := w.open("a", "quiet", publish("", 8081, 80, "tcp")), w.open("b", "quiet")
	w.serve(a.sandbox.NetNS, "tcp", "0.0.0.0:80", "a")
	w.serve(w.neighbour, "tcp", "0.0.0.0:80", "n")
	w.blocked(b.sandbox.NetNS, "tcp", net.JoinHostPort(a.ip().String(), "80"))
	w.reaches(b.sandbox.NetNS, "tcp", neighbourOnLAN+":80", "n ")
	w.reaches(w.neighbour, "tcp", hostOnLAN+":8081", "a ")
}

func TestPortsPublishedOnLoopbackAreNotForNeighbours(t *testing.T) {
	w := newWorld(t)
	a := w.open("a", "default", publish("127.0.0.1", 8082, 80, "tcp"))
	b := w.open("b", "default")
	w.serve(a.sandbox.NetNS, "tcp", "0.0.0.0:80", "a")
	w.reaches("", "tcp", "127.0.0.1:8082", "a ")
	w.blocked(w.neighbour, "tcp", hostOnLAN+":8082")
	w.blocked(b.sandbox.NetNS, "tcp", hostOnLAN+":8082")
	must(t, in(t, w.neighbour, routeLoopback))
	w.blocked(w.neighbour, "tcp", "127.0.0.1:8082")
}

func TestUnpublishedPortsAreNotForNeighbours(t *testing.T) {
	w := newWorld(t)
	a := w.open("a", "default", publish("", 8083, 80, "tcp"))
	w.serve(a.sandbox.NetNS, "tcp", "0.0.0.0:81", "a")
	must(t, in(t, w.neighbour, func() error { return routeTo(a.ip()) }))
	w.blocked(w.neighbour, "tcp", net.JoinHostPort(a.ip().String(), "81"))
}

func TestUDPClientsFindTheContainerThatFollows(t *testing.T) {
	w := newWorld(t)
	var client net.Conn
	must(t, in(t, w.neighbour, func() (err error) {
		client, err = net.Dial("udp", hostOnLAN+":5354") // one source port all the time
		return err
	}))
	defer client.Close()
	hears := func(name string) bool {
		b := make([]byte, 100)
		for range 30 {
			_, _ = client.Write([]byte("?"))
			_ = client.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			// Late answers of the one before may still come.
			if _, err := client.Read(b); err == nil && string(b[:1]) == name {
				return true
			}
		}
		return false
	}
	_, _ = client.Write([]byte("?")) // before anybody listens
	for _, name := range []string{"a", "b"} {
		c := made(name, "default", publish("", 5354, 53, "udp"))
		s, err := w.Open(context.Background(), c)
		must(t, err)
		w.serve(s.NetNS, "udp", "0.0.0.0:53", name)
		if !hears(name) {
			t.Errorf("%s was not heard", name)
		}
		must(t, w.Close(context.Background(), c))
	}
}
