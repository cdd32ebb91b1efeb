package output

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/berth-project/berth/core/container"
)

// line is one record on its way to a log.
type line struct {
	text   []byte // with its newline, absent in a part
	stderr bool
	nano   int64 // time since 1970
}

// format turns records into bytes of a log file and back.
type format interface {
	encode(b []byte, l line) []byte
	// decode reads the record that b begins with. size is 0 where b holds
	// only a part of it. A damaged record is passed over: ok is false. The
	// record's bytes are b's, and b is changed.
	decode(b []byte) (r container.LogRecord, size int, ok bool)
	// sync finds the first place in b where a record may begin; -1 where there is none.
	sync(b []byte) int
	// prev finds the last whole record in b; start is -1 where there is
	// none. first says that b is the beginning of the file.
	prev(b []byte, first bool) (start, end int)
}

// framed is the form of the driver local. Each record is
//
//	0xBE flags length:2 crc32c:4 time:8 | text | length:2 0xEB '\n'
//
// little endian; it can be read from its end, and found again after damage.
type framed struct{}

const (
	frameHead  = 16
	frameTail  = 4
	frameBegin = 0xBE
	frameEnd   = 0xEB
)

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) } // made once by the library

func (framed) encode(b []byte, l line) []byte {
	at := len(b)
	b = append(b, frameBegin, 0)
	if l.stderr {
		b[at+1] = 1
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(l.text)))
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, uint64(l.nano))
	b = append(b, l.text...)
	binary.LittleEndian.PutUint32(b[at+4:], frameSum(b[at:]))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(l.text)))
	return append(b, frameEnd, '\n')
}

// frameSum is the checksum of a frame without its tail.
func frameSum(b []byte) uint32 {
	t := castagnoli()
	return crc32.Update(crc32.Checksum(b[:4], t), t, b[8:])
}

func (f framed) decode(b []byte) (r container.LogRecord, size int, ok bool) {
	if len(b) == 0 {
		return r, 0, false
	}
	if b[0] == frameBegin {
		if len(b) < frameHead {
			return r, 0, false
		}
		n := frameHead + int(binary.LittleEndian.Uint16(b[2:]))
		if n <= frameHead+maxLine {
			if len(b) < n+frameTail {
				return r, 0, false
			}
			if f.whole(b, n) {
				return container.LogRecord{
					Stderr: b[1] == 1, Time: time.Unix(0, int64(binary.LittleEndian.Uint64(b[8:]))).UTC(), Line: b[frameHead:n:n],
				}, n + frameTail, true
			}
		}
	}
	next := f.sync(b[1:])
	if next < 0 {
		return r, len(b), false
	}
	return r, next + 1, false
}

// whole checks a frame whose text ends at n.
func (framed) whole(b []byte, n int) bool {
	return b[n+2] == frameEnd && b[n+3] == '\n' && b[1] <= 1 && binary.LittleEndian.Uint16(b[n:]) == binary.LittleEndian.Uint16(b[2:]) &&
		binary.LittleEndian.Uint32(b[4:]) == frameSum(b[:n])
}

func (f framed) sync(b []byte) int {
	for at := 0; ; at++ {
		i := bytes.IndexByte(b[at:], frameBegin)
		if i < 0 {
			return -1
		}
		at += i
		rest := b[at:]
		if len(rest) < frameHead {
			return at // may be one
		}
		n := frameHead + int(binary.LittleEndian.Uint16(rest[2:]))
		if n <= frameHead+maxLine && rest[1] <= 1 && (len(rest) < n+frameTail || f.whole(rest, n)) {
			return at
		}
	}
}

func (f framed) prev(b []byte, _ bool) (start, end int) {
	for end = len(b); end >= frameHead+frameTail; end-- {
		if b[end-1] != '\n' || b[end-2] != frameEnd {
			continue
		}
		n := int(binary.LittleEndian.Uint16(b[end-frameTail:]))
		start = end - frameTail - n - frameHead
		if start >= 0 && b[start] == frameBegin && f.whole(b[start:], frameHead+n) {
			return start, end
		}
	}
	return -1, 0
}

// jsonLines is docker's form json-file: one object a line. Its bytes are
// exactly docker's, which escape a tab as \u0009.
type jsonLines struct {
	attrs []byte // encoded; nil for none
	clock *clock
}

// clock writes times; it keeps the text of the present second.
type clock struct {
	second int64
	text   []byte
}

func newJSONLines(attrs map[string]string) jsonLines {
	f := jsonLines{clock: &clock{second: -1}}
	if attrs != nil {
		f.attrs, _ = json.Marshal(attrs) // strings cannot fail
	}
	return f
}

func (c *clock) append(b []byte, nano int64) []byte {
	if s := nano / 1e9; s != c.second {
		c.second = s
		c.text = time.Unix(s, 0).UTC().AppendFormat(c.text[:0], "2006-01-02T15:04:05")
	}
	b = append(b, c.text...)
	if n := nano % 1e9; n != 0 {
		b = append(b, ".000000000"...)
		for i := len(b) - 1; n > 0; i-- {
			b[i] = byte('0' + n%10)
			n /= 10
		}
		b = bytes.TrimRight(b, "0")
	}
	return append(b, 'Z')
}

func (f jsonLines) encode(b []byte, l line) []byte {
	b = append(b, '{')
	if len(l.text) > 0 {
		b = append(b, `"log":`...)
		b = appendJSON(b, l.text)
		b = append(b, ',')
	}
	if l.stderr {
		b = append(b, `"stream":"stderr"`...)
	} else {
		b = append(b, `"stream":"stdout"`...)
	}
	if f.attrs != nil {
		b = append(b, `,"attrs":`...)
		b = append(b, f.attrs...)
	}
	b = append(b, `,"time":"`...)
	b = f.clock.append(b, l.nano)
	return append(b, '"', '}', '\n')
}

func plain(c byte) bool {
	return c >= 0x20 && c < utf8.RuneSelf && c != '"' && c != '\\' && c != '<' && c != '>' && c != '&'
}

func appendJSON(b, s []byte) []byte {
	const digits = "0123456789abcdef"
	b = append(b, '"')
	for len(s) > 0 {
		n := 0
		for n < len(s) && plain(s[n]) {
			n++
		}
		b = append(b, s[:n]...)
		if s = s[n:]; len(s) == 0 {
			break
		}
		c, size := utf8.DecodeRune(s)
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', byte(c))
		case c == '\n':
			b = append(b, '\\', 'n')
		case c == '\r':
			b = append(b, '\\', 'r')
		case c < utf8.RuneSelf:
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		case c == utf8.RuneError && size == 1:
			b = append(b, `\ufffd`...)
		case c == '\u2028' || c == '\u2029':
			b = append(b, '\\', 'u', '2', '0', '2', digits[c&15])
		default:
			b = append(b, s[:size]...)
		}
		s = s[size:]
	}
	return append(b, '"')
}

func (jsonLines) decode(b []byte) (r container.LogRecord, size int, ok bool) {
	size = bytes.IndexByte(b, '\n') + 1
	if size == 0 {
		return r, 0, false
	}
	b = b[:size-1]
	if r, ok = decodeFast(b); ok {
		return r, size, true
	}
	var l struct {
		Log, Stream string
		Attrs       map[string]string
		Time        time.Time
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return r, size, false
	}
	return container.LogRecord{Stderr: l.Stream == "stderr", Time: l.Time, Line: []byte(l.Log), Attrs: l.Attrs}, size, true
}

// decodeFast reads what encode writes without attributes. It changes b only
// when it succeeds.
func decodeFast(b []byte) (r container.LogRecord, ok bool) {
	const head, stream, when, tail = `{"log":"`, `","stream":"std`, `,"time":"`, `"}`
	if !bytes.HasPrefix(b, []byte(head)) || !bytes.HasSuffix(b, []byte(tail)) {
		return r, false
	}
	text := b[len(head):]
	end := 0
	for ; ; end++ {
		i := bytes.IndexAny(text[end:], `"\`)
		if i < 0 {
			return r, false
		}
		if end += i; text[end] == '"' {
			break
		}
		end++ // what is escaped
	}
	rest, found := bytes.CutPrefix(text[end:], []byte(stream))
	if !found || len(rest) < 4 {
		return r, false
	}
	switch string(rest[:4]) {
	case `out"`:
	case `err"`:
		r.Stderr = true
	default:
		return r, false
	}
	if rest, found = bytes.CutPrefix(rest[4:], []byte(when)); !found {
		return r, false
	}
	t, err := time.Parse(time.RFC3339Nano, string(rest[:len(rest)-len(tail)]))
	if err != nil {
		return r, false
	}
	r.Time = t
	r.Line, ok = unescape(text[:end:end])
	return r, ok
}

// unescape undoes JSON's escapes in place: what they stand for is never longer.
func unescape(s []byte) ([]byte, bool) {
	first := bytes.IndexByte(s, '\\')
	if first < 0 {
		return s, true
	}
	if first == len(s)-2 && s[first+1] == 'n' { // by far the commonest
		s[first] = '\n'
		return s[:first+1], true
	}
	out := append([]byte(nil), s[:first]...)
	for s = s[first:]; len(s) > 0; {
		if s[0] != '\\' {
			n := bytes.IndexByte(s, '\\')
			if n < 0 {
				n = len(s)
			}
			out, s = append(out, s[:n]...), s[n:]
			continue
		}
		if len(s) < 2 {
			return nil, false
		}
		switch c := s[1]; c {
		case 'n':
			out, s = append(out, '\n'), s[2:]
		case 'r':
			out, s = append(out, '\r'), s[2:]
		case 't':
			out, s = append(out, '\t'), s[2:]
		case 'b':
			out, s = append(out, '\b'), s[2:]
		case 'f':
			out, s = append(out, '\f'), s[2:]
		case '"', '\\', '/':
			out, s = append(out, c), s[2:]
		case 'u':
			v, ok := hex4(s)
			if !ok {
				return nil, false
			}
			s = s[6:]
			if utf16.IsSurrogate(v) {
				w, ok := hex4(s)
				if d := utf16.DecodeRune(v, w); ok && d != utf8.RuneError {
					v, s = d, s[6:]
				} else {
					v = utf8.RuneError
				}
			}
			out = utf8.AppendRune(out, v)
		default:
			return nil, false
		}
	}
	return out, true
}

// hex4 reads \uXXXX.
func hex4(s []byte) (v rune, ok bool) {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0, false
	}
	for _, c := range s[2:6] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		v = v<<4 | rune(c)
	}
	return v, true
}

func (jsonLines) sync(b []byte) int {
	i := bytes.IndexByte(b, '\n')
	if i < 0 || i == len(b)-1 {
		return -1
	}
	return i + 1
}

func (jsonLines) prev(b []byte, first bool) (start, end int) {
	end = bytes.LastIndexByte(b, '\n') + 1
	if end == 0 {
		return -1, 0
	}
	start = bytes.LastIndexByte(b[:end-1], '\n') + 1
	if start == 0 && !first {
		return -1, 0
	}
	return start, end
}
