//go:build cgo && seccomp

package filter

/*
#cgo LDFLAGS: -Wl,--wrap=seccomp_init -Wl,--wrap=seccomp_reset -Wl,--wrap=seccomp_merge -Wl,--wrap=seccomp_arch_add -Wl,--wrap=seccomp_arch_remove
#cgo LDFLAGS: -Wl,--wrap=seccomp_attr_set -Wl,--wrap=seccomp_syscall_priority -Wl,--wrap=seccomp_rule_add_array -Wl,--wrap=seccomp_rule_add_exact_array
#cgo LDFLAGS: -Wl,--wrap=seccomp_export_bpf -Wl,--wrap=seccomp_export_pfc -Wl,--wrap=seccomp_load
#cgo pkg-config: libseccomp
#include "wrap.h"
*/
import "C"

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"golang.org/x/sys/unix"
)

// Use lets this process, the first steps of a container, load the filter it
// was given (Cache.Files) where that is the one it is about to compile. It is
// called before libcontainer's own code; without a filter it does nothing.
func Use() {
	seals, err := unix.FcntlInt(given, unix.F_GET_SEALS, 0)
	if err != nil || seals&sealed != sealed {
		return // another descriptor has this number
	}
	// The process's program must not inherit it; its number stays taken until then.
	unix.CloseOnExec(given)
	var info unix.Stat_t
	if unix.Fstat(given, &info) != nil || info.Size <= header || info.Size > sizeLimit {
		return
	}
	b := make([]byte, info.Size)
	if n, err := unix.Pread(given, b, 0); err != nil || n != len(b) {
		return
	}
	making, program := binary.NativeEndian.Uint64(b), binary.NativeEndian.Uint64(b[8:])
	b = b[header:]
	if making > uint64(len(b)) || program > uint64(len(b))-making {
		return
	}
	C.berth_filter_use(C.CBytes(b[:making]), C.size_t(making), C.CBytes(b[making:making+program]), C.size_t(program))
}

// compile is the whole of a process that writes the filter of the profile on
// its input to its output. It takes libcontainer's own way to the filter and
// ends where that has been made.
func compile() error {
	b, err := io.ReadAll(io.LimitReader(os.Stdin, sizeLimit))
	if err != nil {
		return err
	}
	var profile configs.Seccomp
	if err := json.Unmarshal(b, &profile); err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	C.berth_filter_record(C.int(os.Stdout.Fd()))
	if _, err := seccomp.InitSeccomp(&profile); err != nil {
		return err
	}
	return errors.New("no filter was made")
}
