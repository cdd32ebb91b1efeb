package buildkit

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bk "github.com/moby/buildkit/executor"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
)

// program is the beginning of one for a machine.
func program(machine uint16) []byte {
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01")
	if machines[machine] == "s390x" {
		b[5] = 2
		binary.BigEndian.PutUint16(b[18:], machine)
	} else {
		binary.LittleEndian.PutUint16(b[18:], machine)
	}
	return b
}

func TestAProgramOfAnotherMachineIsNamedWithWhatHelps(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "usr/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"s390x": program(22), "none": program(0), "short": []byte("\x7fELF"), "text": []byte("hello"), "script": []byte("#! /bin/s390x -e\nexit"),
		"lost": []byte("#!/nothere\n"), "loop": []byte("#!/bin/loop\n"),
	} {
		if err := os.WriteFile(filepath.Join(root, "usr/bin", name), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"bin": "usr/bin", "usr/bin/link": "/bin/s390x", "usr/bin/out": "../../../../../../etc/passwd"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		what string
		args []string
		cwd  string
		code uint32
		says string // "" where nothing is added
	}{
		{"by path", []string{"/bin/s390x"}, "/", 255, "/bin/s390x is a program for linux/s390x"},
		{"by the search path", []string{"s390x", "x"}, "/", 255, "/usr/bin/s390x is a program for linux/s390x"},
		{"by a relative path", []string{"./s390x"}, "/bin", 255, "/bin/s390x is a program"},
		{"through links of the root", []string{"/bin/link"}, "/", 255, "/bin/link is a program for linux/s390x"},
		{"a script", []string{"/bin/script"}, "/", 255, "/bin/script is a program for linux/s390x"},
		{"a program that ends with another code", []string{"/bin/s390x"}, "/", 1, ""},
		{"of a machine that nobody knows", []string{"/bin/none"}, "/", 255, ""},
		{"cut off", []string{"/bin/short"}, "/", 255, ""},
		{"a text", []string{"/bin/text"}, "/", 255, ""},
		{"a script without its interpreter", []string{"/bin/lost"}, "/", 255, ""},
		{"a script that is its own", []string{"/bin/loop"}, "/", 255, ""},
		{"not there", []string{"/bin/nothing"}, "/", 255, ""},
		{"a link that leaves", []string{"/bin/out"}, "/", 255, ""},
		{"no arguments", nil, "/", 255, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			err := foreign(&gateway.ExitError{ExitCode: c.code}, root, bk.Meta{Args: c.args, Cwd: c.cwd, Env: []string{"PATH=/sbin:/usr/bin"}})
			var exit *gateway.ExitError
			if !errors.As(err, &exit) || exit.ExitCode != c.code {
				t.Fatal(err)
			}
			helps := strings.Contains(err.Error(), "qemu-user-static")
			if helps != (c.says != "") || !strings.Contains(err.Error(), c.says) {
				t.Error(err)
			}
		})
	}
}
