package vm

import (
	"bufio"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-project/berth/test/kit"
)

// release is the Debian whose kernel and user space the guest has.
const release = "bookworm"

// packages of the guest beyond Debian's smallest base.
var packages = []string{
	"apparmor", "bsdutils", "busybox-static", "curl", "dbus", "iproute2", "kmod", "linux-image-cloud-amd64", "nftables", "procps", "systemd", "systemd-sysv", "udev",
}

// diskModules are what the initramfs loads to find the disks.
var diskModules = []string{"virtio_pci", "virtio_blk"}

//go:embed guest
var guestFiles embed.FS

// command runs a program and gives its output in the error.
func command(dir, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// base gives a folder with the guest's root disk, kernel and initramfs. It is
// made once, which fetches some 100 MB of packages, and kept in the cache.
func base() (string, error) {
	cache := os.Getenv("BERTH_VM_CACHE")
	if cache == "" {
		home, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		cache = filepath.Join(home, "berth-vm")
	}
	dir := filepath.Join(cache, release)
	want := strings.Join(packages, "\n")
	if have, err := os.ReadFile(filepath.Join(dir, "packages")); err == nil && string(have) == want {
		return dir, nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return "", err
	}
	// In a mount namespace: what debootstrap mounts goes with it.
	if err := command(dir, "unshare", "-m", "debootstrap", "--variant=minbase", "--include="+strings.Join(packages, ","), release, tree); err != nil {
		return "", err
	}
	if err := takeKernel(tree, dir); err != nil {
		return "", err
	}
	if err := command(dir, "mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, "root.ext4", "3g"); err != nil {
		return "", err
	}
	if err := os.RemoveAll(tree); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "packages"), []byte(want), 0o644)
}

// takeKernel copies the kernel of a root file system and packs the modules
// that are needed before the root is mounted.
func takeKernel(tree, dir string) error {
	kernels, err := filepath.Glob(filepath.Join(tree, "boot", "vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		return fmt.Errorf("want one kernel in %s, found %v: %v", tree, kernels, err)
	}
	if err := command(dir, "cp", kernels[0], "vmlinuz"); err != nil {
		return err
	}
	version := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	modules := filepath.Join(tree, "lib", "modules", version)
	order, err := needed(filepath.Join(modules, "modules.dep"), diskModules)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "modules"), 0o755); err != nil {
		return err
	}
	names := []string{}
	for _, m := range order {
		if err := command(dir, "cp", filepath.Join(modules, m), "modules"); err != nil {
			return err
		}
		names = append(names, filepath.Base(m))
	}
	return os.WriteFile(filepath.Join(dir, "modules", "order"), []byte(strings.Join(names, "\n")+"\n"), 0o644)
}

// needed lists the files of modules after those that they need.
func needed(dep string, modules []string) (files []string, err error) {
	f, err := os.Open(dep)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	needs := map[string][]string{}
	for s := bufio.NewScanner(f); s.Scan(); {
		file, rest, _ := strings.Cut(s.Text(), ":")
		name, _, _ := strings.Cut(filepath.Base(file), ".ko")
		// The last of a line is needed by the others.
		list := strings.Fields(rest)
		slices.Reverse(list)
		needs[name] = append(list, file)
	}
	for _, m := range modules {
		if needs[m] == nil {
			return nil, fmt.Errorf("the kernel has no module %s", m)
		}
		for _, file := range needs[m] {
			if !slices.Contains(files, file) {
				files = append(files, file)
			}
		}
	}
	return files, nil
}

// initramfs packs busybox, the modules and the first program.
func initramfs(base, dir string) error {
	stage := filepath.Join(dir, "initramfs")
	for _, sub := range []string{"bin", "dev", "proc", "sys", "root"} {
		if err := os.MkdirAll(filepath.Join(stage, sub), 0o755); err != nil {
			return err
		}
	}
	first, err := guestFiles.ReadFile("guest/init")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(stage, "init"), first, 0o755); err != nil {
		return err
	}
	if err := command(stage, "cp", "/bin/busybox", "bin/busybox"); err != nil {
		return err
	}
	if err := command(stage, "cp", "-r", filepath.Join(base, "modules"), "modules"); err != nil {
		return err
	}
	return command(stage, "sh", "-c", "find . | busybox cpio -o -H newc >../initrd")
}

// tests is one run of a test program in the guest.
type tests struct{ folder, pattern string }

// payload makes the disk with what is tested: programs, client, tests.
func payload(t *testing.T, dir string, runs []tests) error {
	bin := os.Getenv("BERTH_TEST_BIN")
	if bin == "" {
		return fmt.Errorf("BERTH_TEST_BIN does not name the folder of the programs: use make test-vm")
	}
	client, err := exec.LookPath("docker")
	if err != nil {
		return err
	}
	stage := filepath.Join(dir, "payload")
	for _, sub := range []string{"bin", "guest", "test"} {
		if err := os.MkdirAll(filepath.Join(stage, sub), 0o755); err != nil {
			return err
		}
	}
	if err := os.CopyFS(stage+"/copy", guestFiles); err != nil {
		return err
	}
	tree, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	steps := [][]string{
		{"sh", "-c", "mv copy/guest/* guest/ && chmod 755 guest/* && rm -r copy"},
		{"sh", "-c", "cp " + filepath.Join(bin, "berth*") + " " + filepath.Join(bin, "containerd-shim-runc-v2") + " bin/"},
		{"cp", "-L", client, "bin/docker"},
	}
	unit, err := os.ReadFile(filepath.Join(tree, "contrib", "systemd", "berth.service"))
	if err != nil {
		return err
	}
	list := ""
	seen := map[string]bool{}
	for _, r := range runs {
		list += r.folder + " " + r.pattern + "\n"
		if seen[r.folder] {
			continue
		}
		seen[r.folder] = true
		steps = append(steps,
			[]string{"env", "CGO_ENABLED=0", "go", "-C", tree, "test", "-c", "-trimpath", "-o", filepath.Join(stage, "test", r.folder+".test"), "./test/" + r.folder},
			[]string{"mkdir", "test/" + r.folder})
		if scripts, _ := filepath.Glob(filepath.Join(tree, "test", r.folder, "*.txtar")); len(scripts) > 0 {
			steps = append(steps, append(append([]string{"cp"}, scripts...), "test/"+r.folder))
		}
	}
	nothing := filepath.Join(dir, "nothing.go")
	if err := os.WriteFile(nothing, []byte(kit.TrueSource), 0o644); err != nil {
		return err
	}
	steps = append(steps, []string{"env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(stage, "bin", "test-true"), nothing})
	for _, s := range steps {
		if err := command(stage, s[0], s[1:]...); err != nil {
			return err
		}
	}
	for name, body := range map[string]string{"tests": list, "berth.service": string(unit)} {
		if err := os.WriteFile(filepath.Join(stage, "guest", name), []byte(body), 0o644); err != nil {
			return err
		}
	}
	return command(dir, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", stage, "payload.ext4", "400m")
}
