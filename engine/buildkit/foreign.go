package buildkit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"slices"
	"strings"

	bk "github.com/moby/buildkit/executor"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/util/openfile"
)

// failedExec is the code of a process that could not execute its program.
const failedExec = 255

// machines are those of ELF's e_machine that Linux images are made for, as
// images name them.
var machines = map[uint16]string{3: "386", 8: "mips64le", 21: "ppc64le", 22: "s390x", 40: "arm", 62: "amd64", 183: "arm64", 243: "riscv64", 258: "loong64"}

// native are further machines whose programs a machine executes as well.
var native = map[string][]string{"amd64": {"386"}, "arm64": {"arm"}}

// foreign adds to the error of a step that ended at once, where its program is
// one of another machine, what helps.
func foreign(err error, root string, meta bk.Meta) error {
	var exit *gateway.ExitError
	if !errors.As(err, &exit) || exit.ExitCode != failedExec || len(meta.Args) == 0 {
		return err
	}
	for _, program := range candidates(meta) {
		machine, there := machineOf(root, program)
		if !there {
			continue
		}
		if machine != "" && machine != runtime.GOARCH && !slices.Contains(native[runtime.GOARCH], machine) {
			exit.Err = fmt.Errorf("exit code: %d: %s is a program for linux/%s, which this machine (linux/%s) does not execute: install the package qemu-user-static (with binfmt-support), or build on such a machine",
				exit.ExitCode, program, machine, runtime.GOARCH)
		}
		break
	}
	return err
}

// candidates are where a step's program may be in its root.
func candidates(meta bk.Meta) []string {
	name := meta.Args[0]
	if strings.Contains(name, "/") {
		if !path.IsAbs(name) {
			name = path.Join("/", meta.Cwd, name)
		}
		return []string{name}
	}
	var list []string
	for _, e := range meta.Env {
		if dirs, ok := strings.CutPrefix(e, "PATH="); ok {
			list = nil
			for _, dir := range strings.Split(dirs, ":") {
				list = append(list, path.Join("/", dir, name))
			}
		}
	}
	return list
}

// machineOf tells which machine a program is for, that of its interpreter where
// it is a script; "" where that cannot be told.
func machineOf(root, program string) (machine string, there bool) {
	begin, err := beginning(root, program)
	if err != nil {
		return "", false
	}
	if line, ok := strings.CutPrefix(string(begin), "#!"); ok {
		line, _, _ = strings.Cut(line, "\n")
		if words := strings.Fields(line); len(words) > 0 {
			begin, _ = beginning(root, words[0])
		}
	}
	if len(begin) < 20 || string(begin[:4]) != "\x7fELF" {
		return "", true
	}
	order := binary.ByteOrder(binary.LittleEndian)
	if begin[5] == 2 {
		order = binary.BigEndian
	}
	return machines[order.Uint16(begin[18:])], true
}

// beginning reads as much of a program as the kernel looks at.
func beginning(root, program string) ([]byte, error) {
	f, err := openfile.RegularInRoot(root, program)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 256))
}
