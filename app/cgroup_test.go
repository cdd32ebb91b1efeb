package app

import (
	"testing"

	"github.com/berth-project/berth/lib/host"
)

func TestWhoMakesCgroups(t *testing.T) {
	modern := host.Facts{Systemd: true, CgroupMode: host.CgroupV2, CgroupNS: true}
	old := host.Facts{Systemd: true, CgroupMode: host.CgroupV1, CgroupNS: true}
	plain := host.Facts{CgroupMode: host.CgroupV2, CgroupNS: true}
	for name, c := range map[string]struct {
		args           []string
		facts          host.Facts
		driver, parent string
		fails          bool
	}{
		"systemd on version 2":                {nil, modern, "systemd", "system.slice", false},
		"the engine on version 1":             {nil, old, "cgroupfs", "/berth", false},
		"the engine without systemd":          {nil, plain, "cgroupfs", "/berth", false},
		"the engine where it is asked for":    {[]string{"--exec-opt", "native.cgroupdriver=cgroupfs"}, modern, "cgroupfs", "/berth", false},
		"systemd on version 1 where asked":    {[]string{"--exec-opt", "native.cgroupdriver=systemd"}, old, "systemd", "system.slice", false},
		"systemd where there is none":         {[]string{"--exec-opt", "native.cgroupdriver=systemd"}, plain, "", "", true},
		"a driver that nobody knows":          {[]string{"--exec-opt", "native.cgroupdriver=moon"}, modern, "", "", true},
		"an option that nobody knows":         {[]string{"--exec-opt", "moon=1"}, modern, "", "", true},
		"a parent slice":                      {[]string{"--cgroup-parent", "a-b.slice"}, modern, "systemd", "a-b.slice", false},
		"a parent folder under systemd":       {[]string{"--cgroup-parent", "/a"}, modern, "", "", true},
		"a parent folder":                     {[]string{"--cgroup-parent", "/a"}, plain, "cgroupfs", "/a", false},
		"another engine has another parent":   {[]string{"--exec-root", "/run/other"}, plain, "cgroupfs", "/berth-dfd84f", false},
		"another engine is in the same slice": {[]string{"--exec-root", "/run/other"}, modern, "systemd", "system.slice", false},
	} {
		t.Run(name, func(t *testing.T) {
			config, _, err := parse(c.args)
			if err != nil {
				t.Fatal(err)
			}
			driver, err := config.cgroupDriver(c.facts)
			if (err != nil) != c.fails {
				t.Fatal(err)
			}
			if driver != c.driver {
				t.Errorf("driver %q, want %q", driver, c.driver)
			}
			if parent := config.cgroupParent(driver); !c.fails && parent != c.parent {
				t.Errorf("parent %q, want %q", parent, c.parent)
			}
		})
	}
}

func TestCgroupNamespacesByDefault(t *testing.T) {
	for name, c := range map[string]struct {
		args  []string
		facts host.Facts
		want  string
		fails bool
	}{
		"private on version 2":        {nil, host.Facts{CgroupMode: host.CgroupV2, CgroupNS: true}, "private", false},
		"the host's on version 1":     {nil, host.Facts{CgroupMode: host.CgroupV1, CgroupNS: true}, "host", false},
		"the host's on a hybrid":      {nil, host.Facts{CgroupMode: host.CgroupHybrid, CgroupNS: true}, "host", false},
		"what is asked for":           {[]string{"--default-cgroupns-mode", "private"}, host.Facts{CgroupMode: host.CgroupV1, CgroupNS: true}, "private", false},
		"nothing that nobody knows":   {[]string{"--default-cgroupns-mode", "moon"}, host.Facts{CgroupMode: host.CgroupV2}, "", true},
		"the host's on an old kernel": {nil, host.Facts{CgroupMode: host.CgroupV2}, "host", false},
	} {
		t.Run(name, func(t *testing.T) {
			config, _, err := parse(c.args)
			if err != nil {
				t.Fatal(err)
			}
			mode, err := config.cgroupnsMode(c.facts)
			if (err != nil) != c.fails || mode != c.want {
				t.Errorf("mode %q (%v), want %q", mode, err, c.want)
			}
		})
	}
}
