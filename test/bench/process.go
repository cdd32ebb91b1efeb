package main

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth/test/kit"
)

// processes gives the numbers of the engine's own processes: all of these
// names in this namespace, which are no container's.
func processes(e *kit.Engine) (pids []string, err error) {
	mine := []string{"berthd", "berth-keeper"}
	if e.IsPeer {
		mine = []string{"dockerd", "containerd", "containerd-shim", "docker-proxy"}
	}
	entries, err := os.ReadDir("/proc")
	for _, p := range entries {
		name, err := os.ReadFile("/proc/" + p.Name() + "/comm")
		if err != nil || !slices.ContainsFunc(mine, func(m string) bool { return strings.HasPrefix(strings.TrimSpace(string(name)), m[:min(len(m), 15)]) }) {
			continue
		}
		pids = append(pids, p.Name())
	}
	return pids, err
}

// memory adds the proportional memory of the engine's own processes, in bytes.
func memory(e *kit.Engine) (float64, error) {
	pids, err := processes(e)
	total := 0.0
	for _, pid := range pids {
		b, err := os.ReadFile("/proc/" + pid + "/smaps_rollup")
		if err != nil {
			continue
		}
		for l := range strings.Lines(string(b)) {
			if f := strings.Fields(l); len(f) > 1 && f[0] == "Pss:" {
				kb, _ := strconv.ParseFloat(f[1], 64)
				total += kb * 1024
			}
		}
	}
	return total, err
}

// tick is how the kernel counts processor time here, in milliseconds (USER_HZ).
const tick = 10

// spent adds the processor time of the engine's own processes and of all that
// they have waited for, in milliseconds.
func spent(e *kit.Engine) (float64, error) {
	pids, err := processes(e)
	total := 0
	for _, pid := range pids {
		total += ticks(pid, 11, 15) // utime, stime, cutime, cstime
	}
	if e.IsPeer {
		total += ticks("1", 13, 15) // shims end as children of this namespace's first process
	}
	return float64(total) * tick, err
}

// ticks adds fields of /proc/<pid>/stat, counted from the one after the name.
func ticks(pid string, from, to int) (n int) {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	for i := from; i < to && i < len(f); i++ {
		v, _ := strconv.Atoi(f[i])
		n += v
	}
	return n
}

// processor measures the processor time of what another measurement does,
// where the time that passes depends on what else the machine does.
func processor(begin func(context.Context, *kit.Engine) (func() (float64, error), func(), error)) func(context.Context, *kit.Engine) (func() (float64, error), func(), error) {
	const each = 8
	return func(ctx context.Context, e *kit.Engine) (func() (float64, error), func(), error) {
		do, end, err := begin(ctx, e)
		sample := func() (float64, error) {
			before, err := spent(e)
			if err != nil {
				return 0, err
			}
			for range each {
				if _, err := do(); err != nil {
					return 0, err
				}
			}
			after, err := spent(e)
			return (after - before) / each, err
		}
		return sample, end, err
	}
}
