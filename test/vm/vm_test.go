// Package vm runs the tests of other packages where users mostly are: on
// Debian's own kernel with nothing but cgroup v2 and with AppArmor, once with
// the plainest init and once under systemd. The machine is emulated by QEMU
// in software. It owns the guest; it knows nothing of what is tested.
package vm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/test/kit"
)

// bootLimit bounds one guest, from power on to its end, on a busy machine.
const bootLimit = 75 * time.Minute

// How much longer than on a real processor a wait in the guest may take.
const patience = "12"

func TestMain(m *testing.M) { os.Exit(m.Run()) }

func TestTheEngineInAGuestOnCgroupV2(t *testing.T) {
	report(t, boot(t, "plain", []tests{
		{"script", scripts("main_job", "cgroup2_.*", "apparmor_.*", "limits_.*", "security_.*", "container_pause_.*", "container_stats", "container_top", "network_publish", "network_names_resolve")},
		{"crash", "^TestKilling"},
	}))
}

func TestTheServiceUnderSystemd(t *testing.T) {
	report(t, boot(t, "systemd", []tests{
		{"script", scripts("service_.*")}, // alone: it restarts the daemon
		{"script", scripts("main_job", "cgroup2_.*", "apparmor_.*", "limits_memory", "container_pause_and_unpause")},
	}))
}

// scripts is the pattern of scripts of test/script by their names.
func scripts(names ...string) string {
	return "/^script$/^(" + strings.Join(names, "|") + ")$"
}

// underSystemd is what systemd reads from the kernel's command line: its log
// goes to the console, which a failure shows; what nobody needs here stays off.
// udev's trigger would load a module for each device of the machine, which in
// emulation takes minutes and holds up the modules that the engine asks for.
const underSystemd = " systemd.unified_cgroup_hierarchy=1 systemd.journald.forward_to_console=1 systemd.mask=systemd-udev-trigger.service" +
	" systemd.mask=e2scrub_reap.service systemd.mask=getty.target"

// boot runs the guest and gives what its tests wrote.
func boot(t *testing.T, kind string, runs []tests) string {
	if os.Getenv("BERTH_TEST_VM") == "" {
		kit.Skip(t, "guests are booted by make test-vm")
	}
	kit.Need(t, "qemu-system-x86_64", "debootstrap", "mke2fs", "busybox", "docker")
	base, err := base()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := initramfs(base, dir); err != nil {
		t.Fatal(err)
	}
	if err := payload(t, dir, runs); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), bootLimit)
	defer cancel()
	console := filepath.Join(dir, "console")
	// Software emulation only: hardware help is not everywhere.
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048",
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-kernel", filepath.Join(base, "vmlinuz"), "-initrd", filepath.Join(dir, "initrd"),
		"-append", "console=ttyS0 quiet panic=-1 apparmor=1 security=apparmor"+underSystemd+" BERTH_TEST_PATIENCE="+patience+" berth.guest="+kind,
		"-drive", "if=virtio,format=raw,snapshot=on,file="+filepath.Join(base, "root.ext4"),
		"-drive", "if=virtio,format=raw,readonly=on,file="+filepath.Join(dir, "payload.ext4"),
		"-serial", "file:"+console, "-serial", "stdio")
	cmd.Stderr = os.Stderr
	cmd.WaitDelay = time.Minute
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	var to io.Writer = &text
	if testing.Verbose() {
		to = io.MultiWriter(&text, os.Stdout) // it takes minutes: show that it goes on
	}
	done := false
	for s := bufio.NewScanner(out); !done && s.Scan(); {
		_, _ = to.Write(append(s.Bytes(), '\n'))
		done = strings.TrimSpace(s.Text()) == "guest: done"
	}
	if done {
		// All is said: nobody waits for a machine to put itself off.
		_ = cmd.Process.Kill()
	}
	if err := cmd.Wait(); !done {
		tail, _ := os.ReadFile(console)
		t.Fatalf("the guest did not come to its end: %v\n%s\nits console:\n%s", err, text.String(), tail)
	}
	return strings.ReplaceAll(text.String(), "\r", "")
}

var (
	result = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) `)
	ended  = regexp.MustCompile(`^guest: end (\S+) (\d+)$`)
)

// report makes a subtest of each test in the guest and judges what else it said.
func report(t *testing.T, text string) {
	count := map[string]int{}
	doctor, inDoctor := "", false
	for s := bufio.NewScanner(strings.NewReader(text)); s.Scan(); {
		line := s.Text()
		if m := ended.FindStringSubmatch(line); m != nil {
			inDoctor = false
			if m[2] != "0" {
				t.Errorf("%s ended with %s", m[1], m[2])
			}
		}
		if inDoctor {
			doctor += line + "\n"
		}
		inDoctor = inDoctor || line == "guest: doctor"
		m := result.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		count[m[1]]++
		t.Run(m[2], func(t *testing.T) {
			switch m[1] {
			case "FAIL":
				t.Fail()
			case "SKIP":
				t.Skip("skipped in the guest")
			}
		})
	}
	t.Logf("in the guest: %v", count)
	if count["PASS"] == 0 {
		t.Error("no test ran in the guest")
	}
	if t.Failed() {
		t.Log(text)
	}
	judge(t, doctor)
}

// judge wants berth doctor to find nothing wrong with a Debian machine.
func judge(t *testing.T, doctor string) {
	var findings []struct{ Name, Level, Detail string }
	if err := json.Unmarshal([]byte(doctor), &findings); err != nil {
		t.Errorf("berth doctor: %v\n%s", err, doctor)
		return
	}
	for _, f := range findings {
		switch f.Name {
		case "exit codes after a keeper's death", "daemon": // an older kernel; no daemon beside the tests'
			continue
		}
		if f.Level != "ok" {
			t.Errorf("berth doctor on Debian: %s: %s: %s", f.Level, f.Name, f.Detail)
		}
	}
}
