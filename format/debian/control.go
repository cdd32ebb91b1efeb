package debian

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strings"
)

// maxField bounds one field of a stanza with its continuation lines, in bytes
// (the Package-List or Files field of a release file is the longest there is).
const maxField = 16 << 20

// Stanza is one paragraph of a control file: values by lower-case field name,
// continuation lines joined by newlines (deb-control(5)).
type Stanza map[string]string

// Get gives a field's value, "" where there is none.
func (s Stanza) Get(field string) string { return s[strings.ToLower(field)] }

// ReadStanzas calls fn for every paragraph of r, in order, until fn fails.
// Fields outside want are skipped; an empty want takes all.
func ReadStanzas(r io.Reader, want []string, fn func(Stanza) error) error {
	wanted := map[string]bool{}
	for _, w := range want {
		wanted[strings.ToLower(w)] = true
	}
	b := bufio.NewReaderSize(r, 256<<10)
	s, last, n := Stanza{}, "", 0
	var value []byte // of the field last, as far as it was read
	keep := func() {
		if last != "" {
			s[last] = string(value)
		}
	}
	end := func() error {
		if n == 0 {
			return nil
		}
		keep()
		whole := s
		s, last, n = Stanza{}, "", 0
		return fn(whole)
	}
	var long []byte
	for number := 1; ; number++ {
		line, err := b.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			long = append(long[:0], line...)
			for err == bufio.ErrBufferFull {
				if len(long) > maxField {
					return fmt.Errorf("line %d: longer than %d bytes", number, maxField)
				}
				line, err = b.ReadSlice('\n')
				long = append(long, line...)
			}
			line = long
		}
		if err != nil && err != io.EOF {
			return err
		}
		last1 := err == io.EOF
		line = bytes.TrimRight(line, " \t\r\n")
		switch {
		case len(line) == 0:
			if err := end(); err != nil {
				return err
			}
		case line[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			if n == 0 {
				return fmt.Errorf("line %d: a continuation without a field", number)
			}
			if last == "" {
				break
			}
			if len(value)+len(line) > maxField {
				return fmt.Errorf("line %d: field %s is longer than %d bytes", number, last, maxField)
			}
			value = append(append(value, '\n'), bytes.TrimSpace(line)...)
		default:
			colon := bytes.IndexByte(line, ':')
			if colon <= 0 {
				return fmt.Errorf("line %d: no field name", number)
			}
			keep()
			n++
			name := strings.ToLower(string(line[:colon]))
			if strings.ContainsAny(name, " \t") {
				return fmt.Errorf("line %d: a blank in the field name %q", number, name)
			}
			if len(wanted) > 0 && !wanted[name] {
				last = ""
				break
			}
			if _, twice := s[name]; twice {
				return fmt.Errorf("line %d: field %s twice", number, name)
			}
			last, value = name, append(value[:0], bytes.TrimSpace(line[colon+1:])...)
		}
		if last1 {
			return end()
		}
	}
}
