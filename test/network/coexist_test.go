package network_test

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/core/network"
)

func nft(t *testing.T, commands ...string) string {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %s", out)
	}
	return string(out)
}

func TestPublishedPortsPassTheHostsOwnFirewall(t *testing.T) {
	w := newWorld(t)
	a := w.open("a", "default", publish("", 8110, 80, "tcp"))
	w.serve(a.sandbox.NetNS, "tcp", "0.0.0.0:80", "a")
	w.serve(a.sandbox.NetNS, "tcp", "0.0.0.0:81", "a")
	w.serve(w.neighbour, "tcp", "0.0.0.0:80", "n")
	// As iptables -P FORWARD DROP and firewalld have it.
	nft(t, "add table ip filter", "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
		"add table inet other", "add chain inet other forward { type filter hook forward priority 10; }", "add rule inet other forward reject with icmpx admin-prohibited")
	t.Cleanup(func() { nft(t, "delete table ip filter", "delete table inet other") })
	eventually(t, 2*time.Second, "rules in the host's chains", func() bool {
		return strings.Count(nft(t, "list ruleset"), "berth from berth0") == 2
	})
	w.reaches(w.neighbour, "tcp", hostOnLAN+":8110", "a ")
	w.reaches(a.sandbox.NetNS, "tcp", neighbourOnLAN+":80", "n ")
	must(t, in(t, w.neighbour, func() error { return routeTo(a.ip()) }))
	w.blocked(w.neighbour, "tcp", at(a.ip(), "81"))
	w.network(network.CreateOptions{Name: "alpha"})
	b := w.open("b", "alpha")
	w.reaches(b.sandbox.NetNS, "tcp", neighbourOnLAN+":80", "n ")
	nft(t, "flush chain ip filter FORWARD")
	eventually(t, 2*time.Second, "rules after a reload", func() bool { return strings.Count(nft(t, "list ruleset"), `comment "berth `) == 8 })
	must(t, w.Shutdown()) // containers go on, so do the rules
	if n := strings.Count(nft(t, "list ruleset"), `comment "berth `); n != 8 {
		t.Errorf("%d rules are there without the daemon", n)
	}
	w.start(a.Container, b.Container)
}
