package output

import (
	"bytes"
	"encoding/json"
	"net"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tinylib/msgp/msgp"

	"github.com/berth-project/berth/core/container"
)

func packet(t *testing.T, c net.PacketConn) []byte {
	t.Helper()
	b := make([]byte, 1<<16)
	n, _, err := c.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

func listenUDP(t *testing.T) net.PacketConn {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// remoteRun writes a line to each stream and checks that they can be read here too.
func remoteRun(t *testing.T, c container.Container) {
	t.Helper()
	o := testOutput(t)
	p := start(t, o, c)
	write(t, p.out, "to out\n")
	if err := p.out.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, p.err, "to err\n")
	if err := p.err.Close(); err != nil {
		t.Fatal(err)
	}
	<-p.stream.Drained()
	if got, _ := records(t, o, c, all()); len(got) != 2 {
		t.Errorf("%q", got)
	}
}

func TestSyslogGetsLines(t *testing.T) {
	for _, mode := range []string{"blocking", "non-blocking"} {
		l := listenUDP(t)
		remoteRun(t, testContainer("syslog", "mode", mode, "syslog-address", "udp://"+l.LocalAddr().String(), "syslog-format", "rfc5424micro", "tag", "{{.Name}}"))
		got := []string{string(packet(t, l)), string(packet(t, l))}
		for _, want := range []string{`^<30>1 \S+ \S+ c1 \d+ c1 - to out\n$`, `^<27>1 \S+ \S+ c1 \d+ c1 - to err\n$`} {
			if re := regexp.MustCompile(want); !re.MatchString(got[0]) && !re.MatchString(got[1]) {
				t.Errorf("%s: no %s in %q", mode, want, got)
			}
		}
	}
}

func TestSyslogHearsOnAUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := net.ListenPacket("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	remoteRun(t, testContainer("syslog", "syslog-address", "unixgram://"+path, "syslog-facility", "local0"))
	if got := string(packet(t, l)); !regexp.MustCompile(`^<13[14]>.* abababababab\[\d+\]: to (out|err)\n$`).MatchString(got) {
		t.Errorf("%q", got)
	}
}

func TestGelfGetsLines(t *testing.T) {
	l := listenUDP(t)
	c := testContainer("gelf", "gelf-address", "udp://"+l.LocalAddr().String(), "gelf-compression-type", "none", "labels", "l")
	c.Spec.Labels = map[string]string{"l": "v"}
	remoteRun(t, c)
	seen := map[string]any{}
	for range 2 {
		var m map[string]any
		if err := json.Unmarshal(packet(t, l), &m); err != nil {
			t.Fatal(err)
		}
		if m["_l"] != "v" || m["_container_id"] != string(c.ID) || m["_tag"] != c.ID.Short() {
			t.Errorf("%v", m)
		}
		seen[m["short_message"].(string)] = m["level"]
	}
	if d := cmp.Diff(map[string]any{"to out": 6., "to err": 3.}, seen); d != "" {
		t.Error(d)
	}
}

func TestFluentdGetsLines(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan map[string]any)
	go func() {
		defer close(got)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r := msgp.NewReader(conn)
		for {
			v, err := r.ReadIntf()
			if err != nil {
				return
			}
			got <- v.([]any)[2].(map[string]any)
		}
	}()
	read := make(chan map[any]any)
	go func() { read <- collect(t, got) }()
	remoteRun(t, testContainer("fluentd", "fluentd-address", "tcp://"+l.Addr().String()))
	if d := cmp.Diff(map[any]any{"stdout": "to out", "stderr": "to err"}, <-read); d != "" {
		t.Error(d)
	}
}

func collect(t *testing.T, got <-chan map[string]any) map[any]any {
	seen := map[any]any{}
	for m := range got {
		if m["container_name"] != "/c1" {
			t.Errorf("%v", m)
		}
		seen[m["source"]] = m["log"]
	}
	return seen
}

func TestARemoteLogThatIsAwayStopsAStartButNotAContinuation(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := testContainer("fluentd", "fluentd-address", "tcp://"+l.Addr().String())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = testOutput(t).Pump(t.Context(), c, container.Pipes{})
	if err == nil || !strings.HasPrefix(err.Error(), "failed to initialize logging driver: dial tcp ") {
		t.Errorf("%v", err)
	}
	s, err := parse(c.Spec.Log)
	if err != nil {
		t.Fatal(err)
	}
	to, err := openSink(s, c, c.Spec.Log, true, testOutput(t).o.Logger)
	if err != nil {
		t.Fatal(err)
	}
	to.send(message{text: []byte("x")})
	to.close()
}

func TestLongLinesAreNumberedInParts(t *testing.T) {
	var p partial
	var got []message
	for _, text := range []string{"a\n", "b", "c", "d\n", "e\n"} {
		m := p.next(line{text: []byte(text)})
		if m.id != "" {
			m.id = "id"
		}
		m.text, m.time = nil, m.time.AddDate(0, 0, 0)
		got = append(got, m)
	}
	type part struct {
		id      string
		ordinal int
		last    bool
	}
	var parts []part
	for _, m := range got {
		parts = append(parts, part{m.id, m.ordinal, m.last})
	}
	want := []part{{"", 0, true}, {"id", 1, false}, {"id", 2, false}, {"id", 3, true}, {"", 0, true}}
	if d := cmp.Diff(want, parts, cmp.AllowUnexported(part{})); d != "" {
		t.Error(d)
	}
}

func TestAnIdleContainerHasTwoGoroutinesAndNoBuffers(t *testing.T) {
	o := testOutput(t)
	before := runtime.NumGoroutine()
	var all []process
	for i := range 50 {
		c := testContainer("local")
		c.ID = container.ID(strings.Repeat("0", 60) + string(rune('a'+i/26)) + string(rune('a'+i%26)) + "00")
		all = append(all, start(t, o, c))
	}
	if n := runtime.NumGoroutine() - before; n > 100 {
		t.Errorf("%d goroutines", n)
	}
	for _, p := range all {
		var b bytes.Buffer
		p.stream.Subscribe(&b, nil)
		p.end(t)
	}
}
