package inflate

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func TestEveryCompressionIsUndone(t *testing.T) {
	var g bytes.Buffer
	w := gzip.NewWriter(&g)
	_, _ = w.Write([]byte("hello\n"))
	_ = w.Close()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	constant := func(text string) []byte {
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, c := range map[string]struct {
		in   []byte
		want string
	}{
		"gzip":    {g.Bytes(), "hello\n"},
		"zstd":    {z.EncodeAll([]byte("hello\n"), nil), "hello\n"},
		"bzip2":   {constant("QlpoOTFBWSZTWcHAgOIAAAFBAAAQAkSgADDNAMNGKZcXckU4UJDBwIDi"), "hello\n"},
		"xz":      {constant("/Td6WFoAAATm1rRGAgAhARYAAAB0L+WjAQAFaGVsbG8KAAAApWCX8ZT2/eAAAR4GwS+kHR+2830BAAAAAARZWg=="), "hello\n"},
		"nothing": {nil, ""},
		"plain":   {[]byte("BZ"), "BZ"},
	} {
		r, err := NewReader(bytes.NewReader(c.in))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := io.ReadAll(r)
		if err != nil || string(got) != c.want {
			t.Errorf("%s gives %q, %v", name, got, err)
		}
		if err := r.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzHostileStreamsEnd(f *testing.F) {
	for _, s := range []string{"", "BZh91AY", "\x28\xb5\x2f\xfd\xff", "\xfd7zXZ\x00\x00\x04", "\x1f\x8b\x08"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		r, err := NewReader(bytes.NewReader(b))
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(r, 1<<20))
		_ = r.Close()
	})
}

func TestPlainStreamsAreNotConsumed(t *testing.T) {
	r, err := NewReader(strings.NewReader("a longer plain text"))
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(r); string(b) != "a longer plain text" {
		t.Errorf("%q", b)
	}
}
