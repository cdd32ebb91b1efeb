package doctor

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/berth-project/berth/lib/host"
)

func english(e, _ string) string   { return e }
func castilian(_, s string) string { return s }

// debian is what a user's machine offers: everything.
func debian() host.Facts {
	return host.Facts{
		Root: true, Kernel: "6.1.0-50-cloud-amd64", CgroupMode: host.CgroupV2, Systemd: true,
		Controllers: map[string]bool{"memory": true, "cpu": true, "cpuset": true, "pids": true, "io": true}, SwapLimit: true,
		Overlay: true, Bridge: true, Veth: true, NFTables: true, IPv6: true, Seccomp: true, AppArmor: true, AppArmorParser: true,
		UserNS: true, SysResource: true, PidfdExitInfo: true,
	}
}

func TestAWholeMachineHasNoFault(t *testing.T) {
	for _, f := range examine(debian(), english) {
		if f.Level != ok || f.Advice != "" {
			t.Errorf("%+v", f)
		}
	}
}

func TestWhatIsMissingIsToldWithAdvice(t *testing.T) {
	for name, c := range map[string]struct {
		change        func(*host.Facts)
		finding       string
		level, advice string
	}{
		"no cgroups":                   {func(f *host.Facts) { f.CgroupMode = host.CgroupNone }, "cgroups", problem, "mount -t cgroup2"},
		"no memory controller":         {func(f *host.Facts) { delete(f.Controllers, "memory") }, "cgroup memory", warning, "cgroup_enable=memory"},
		"no memory controller, hybrid": {func(f *host.Facts) { f.CgroupMode = host.CgroupHybrid; delete(f.Controllers, "memory") }, "cgroup memory", warning, "mount -t cgroup -o memory"},
		"no swap limit":                {func(f *host.Facts) { f.SwapLimit = false }, "swap limit", warning, "CONFIG_SWAP"},
		"no swap limit, version 1":     {func(f *host.Facts) { f.SwapLimit = false; f.CgroupMode = host.CgroupV1 }, "swap limit", warning, "swapaccount=1"},
		"an old kernel":                {func(f *host.Facts) { f.Kernel = "4.19.0" }, "kernel", problem, "upgrade"},
		"AppArmor without its parser":  {func(f *host.Facts) { f.AppArmorParser = false }, "mandatory access control", warning, "apt-get install apparmor"},
		"no security module":           {func(f *host.Facts) { f.AppArmor = false }, "mandatory access control", warning, "security=apparmor"},
		"not root":                     {func(f *host.Facts) { f.Root = false }, "root", warning, "sudo"},
	} {
		t.Run(name, func(t *testing.T) {
			facts := debian()
			c.change(&facts)
			found := false
			for _, f := range examine(facts, english) {
				if f.Name != c.finding {
					continue
				}
				found = true
				if f.Level != c.level || !strings.Contains(f.Advice, c.advice) {
					t.Errorf("%+v", f)
				}
			}
			if !found {
				t.Error("not told")
			}
		})
	}
}

func TestBothLanguagesTellTheSame(t *testing.T) {
	en, es := examine(host.Facts{}, english), examine(host.Facts{}, castilian)
	if len(en) != len(es) {
		t.Fatal(len(en), len(es))
	}
	differ := 0
	for i := range en {
		if en[i].Name != es[i].Name || en[i].Level != es[i].Level || (en[i].Advice == "") != (es[i].Advice == "") {
			t.Errorf("%+v\n%+v", en[i], es[i])
		}
		if en[i].Detail != es[i].Detail {
			differ++
		}
	}
	if differ == 0 {
		t.Error("nothing is in Spanish")
	}
}

func TestOutputIsATableOrJSON(t *testing.T) {
	findings := examine(host.Facts{}, castilian)
	var out bytes.Buffer
	if err := write(&out, "json", findings, castilian); err != nil {
		t.Fatal(err)
	}
	var back []Finding
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || len(back) != len(findings) {
		t.Error(err, len(back))
	}
	out.Reset()
	if err := write(&out, "table", findings, castilian); err != nil || !strings.Contains(out.String(), "núcleo") {
		t.Error(err, out.String())
	}
	if err := write(&out, "yaml", findings, english); err == nil {
		t.Error("yaml was taken")
	}
}
