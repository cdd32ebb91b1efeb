package output

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/core/container"
)

// readAll reads bytes as a log in the three ways there are.
func readAll(t *testing.T, f format, b []byte) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var got []string
	r := &reading{format: f, path: path, opt: all(), emit: func(r container.LogRecord) error { got = append(got, string(r.Line)); return nil }}
	s := section{file, int64(len(b))}
	if _, err := r.forward(t.Context(), s, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.backward(s, 3); err != nil {
		t.Fatal(err)
	}
	r.opt.Since = r.opt.Since.Add(1)
	if at := r.search(s); at < 0 || at > s.size {
		t.Errorf("search ends at %d of %d", at, s.size)
	}
	if end, err := wholeSize(f, file, s.size); err != nil || end < 0 || end > s.size {
		t.Errorf("whole until %d of %d: %v", end, s.size, err)
	}
	return got
}

func sample(f format) []byte {
	var b []byte
	for i, text := range []string{"one\n", "", "\n", "two \xbe\xeb\n", "part"} {
		b = f.encode(b, line{[]byte(text), i%2 == 1, 1_700_000_000_000_000_000 + int64(i)})
	}
	return b
}

func FuzzFramed(f *testing.F) {
	f.Add(sample(framed{}), 0, byte(0))
	f.Add(sample(framed{})[3:], 20, byte(frameBegin))
	f.Fuzz(func(t *testing.T, b []byte, at int, change byte) {
		readAll(t, framed{}, b)
		// Whole records behind any damage are found again.
		if len(b) > 0 && at >= 0 {
			b = bytes.Clone(b)
			b[at%len(b)] ^= change
		}
		tail := framed{}.encode(nil, line{text: []byte("after\n"), nano: 1})
		got := readAll(t, framed{}, append(b, tail...))
		if len(got) == 0 || got[len(got)-1] != "after\n" {
			t.Errorf("the last record is not found: %q", got)
		}
	})
}

func FuzzJSONLines(f *testing.F) {
	f.Add(sample(newJSONLines(nil)))
	f.Add(sample(newJSONLines(map[string]string{"a": "b"})))
	f.Add([]byte(`{"log":"\ud83d\ude00\u12","stream":"stdout","time":"2024-01-01T00:00:00Z"}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) { readAll(t, newJSONLines(nil), b) })
}

func FuzzJSONRoundTrip(f *testing.F) {
	f.Add([]byte("a\tb\"\\<\u2028\xff\n"), int64(1_700_000_000_000_000_001))
	f.Fuzz(func(t *testing.T, text []byte, nano int64) {
		nano = max(nano, -nano) & (1<<61 - 1)
		b := newJSONLines(nil).encode(nil, line{text: text, nano: nano})
		r, size, ok := jsonLines{}.decode(bytes.Clone(b))
		want := string(bytes.ToValidUTF8(text, []byte("\ufffd")))
		if len(text) > 0 && bytes.Contains([]byte(want), []byte("\ufffd")) {
			want = "" // each wrong byte becomes one sign: ToValidUTF8 joins them
		}
		if !ok || size != len(b) || want != "" && string(r.Line) != want || r.Time.UnixNano() != nano {
			t.Errorf("%q becomes %q (%v)", text, r.Line, ok)
		}
	})
}

func TestDamageCostsOnlyTheRecordItHits(t *testing.T) {
	b := sample(framed{})
	b[frameHead] ^= 1 // the first record's text
	if d := cmp.Diff([]string{"", "\n", "two \xbe\xeb\n", "part"}, readAll(t, framed{}, b)); d != "" {
		t.Error(d)
	}
}
