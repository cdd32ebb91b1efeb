// Package crash ends the process at a point that a test has chosen, as a crash
// or a cut of power would. Where the environment names no point it does nothing.
package crash

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Variable of the environment: "point:3" kills the process when it comes to
// that point for the third time, "3" at the third point of whatever name.
const Variable = "BERTH_CRASH_AT"

var (
	at   = parse(os.Getenv(Variable))
	seen atomic.Int64
)

type place struct {
	name string // "" is any
	nth  int64  // 0 is never
}

// parse reads a place; what is none is never come to.
func parse(text string) (p place) {
	name, count, named := strings.Cut(text, ":")
	if !named {
		name, count = "", text
	}
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil || n < 1 {
		return place{}
	}
	return place{name, n}
}

// Point is a place where the process may be made to die.
func Point(name string) {
	if at.nth == 0 || at.name != "" && at.name != name {
		return
	}
	if seen.Add(1) == at.nth {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way: nothing further is done
	}
}
