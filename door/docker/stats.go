package docker

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	api "github.com/moby/moby/api/types/container"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// statsInterval is how often docker's stream of counters comes.
const statsInterval = time.Second

func (d *Door) stats(w http.ResponseWriter, r *request) error {
	c, err := d.o.Containers.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	stream := r.flagOr("stream", true)
	read := func() (container.Stats, error) {
		s, err := d.o.Containers.Stats(r.Context(), string(c.ID))
		if errors.Is(err, fault.ErrConflict) {
			return container.Stats{Read: time.Time{}}, nil // not running: zeros, as docker
		}
		return s, err
	}
	now, err := read()
	if err != nil {
		return err
	}
	tick := time.NewTicker(statsInterval)
	defer tick.Stop()
	var before container.Stats
	if !stream && !r.flag("one-shot") && !now.Read.IsZero() {
		// A share of the processor needs two looks.
		before = now
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return nil
		}
		if now, err = read(); err != nil {
			return err
		}
	}
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	for {
		if err := e.Encode(statsBody(c, now, before)); err != nil || !stream {
			return nil
		}
		_ = http.NewResponseController(w).Flush()
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return nil
		}
		before = now
		if now, err = read(); err != nil {
			return nil // it went away
		}
	}
}

func statsBody(c container.Container, now, before container.Stats) api.StatsResponse {
	s := api.StatsResponse{
		ID: string(c.ID), Name: "/" + c.Name, Read: now.Read, PreRead: before.Read, PidsStats: api.PidsStats{Current: now.Pids, Limit: now.PidsLimit},
		CPUStats: cpuBody(now), PreCPUStats: cpuBody(before),
		MemoryStats: api.MemoryStats{Usage: now.Memory.Usage, MaxUsage: now.Memory.MaxUsage, Failcnt: now.Memory.Failcnt, Limit: now.Memory.Limit, Stats: now.Memory.Stats},
	}
	s.BlkioStats = api.BlkioStats{
		IoServiceBytesRecursive: entries(now.Blkio.ServiceBytes), IoServicedRecursive: entries(now.Blkio.Serviced), IoQueuedRecursive: entries(now.Blkio.Queued),
		IoServiceTimeRecursive: entries(now.Blkio.ServiceTime), IoWaitTimeRecursive: entries(now.Blkio.WaitTime), IoMergedRecursive: entries(now.Blkio.Merged),
		IoTimeRecursive: entries(now.Blkio.Time), SectorsRecursive: entries(now.Blkio.Sectors),
	}
	for name, n := range now.Networks {
		if s.Networks == nil {
			s.Networks = map[string]api.NetworkStats{}
		}
		s.Networks[name] = api.NetworkStats{
			RxBytes: n.RxBytes, RxPackets: n.RxPackets, RxErrors: n.RxErrors, RxDropped: n.RxDropped,
			TxBytes: n.TxBytes, TxPackets: n.TxPackets, TxErrors: n.TxErrors, TxDropped: n.TxDropped,
		}
	}
	return s
}

func cpuBody(s container.Stats) api.CPUStats {
	return api.CPUStats{
		CPUUsage:    api.CPUUsage{TotalUsage: s.CPU.Total, PercpuUsage: s.CPU.PerCPU, UsageInKernelmode: s.CPU.Kernel, UsageInUsermode: s.CPU.User},
		SystemUsage: s.SystemCPU, OnlineCPUs: s.OnlineCPUs,
		ThrottlingData: api.ThrottlingData{Periods: s.CPU.Periods, ThrottledPeriods: s.CPU.ThrottledPeriods, ThrottledTime: s.CPU.ThrottledTime},
	}
}

func entries(list []container.BlkioEntry) []api.BlkioStatEntry {
	var out []api.BlkioStatEntry
	for _, e := range list {
		out = append(out, api.BlkioStatEntry{Major: e.Major, Minor: e.Minor, Op: e.Op, Value: e.Value})
	}
	return out
}
