package kit

import (
	"bufio"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
)

// Census is what an engine has put on its host: each entry one line.
type Census map[string][]string

// Take counts processes, mounts, links, firewall tables, cgroups and run-time
// files. Only what belongs to this namespace or this engine is seen.
func (e *Engine) Take() (Census, error) {
	c := Census{}
	var err error
	if c["mount"], err = mounts(e.Dir); err != nil {
		return nil, err
	}
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		c["link"] = append(c["link"], l.Name)
	}
	if out, err := exec.Command("nft", "list", "tables").Output(); err == nil {
		c["table"] = lines(string(out))
	}
	c["cgroup"] = e.cgroups()
	c["process"] = processes()
	c["file"] = files(e.ExecRoot())
	for _, v := range c {
		sort.Strings(v)
	}
	return c, nil
}

// Without returns what is in c and not in base.
func (c Census) Without(base Census) []string {
	var out []string
	for kind, list := range c {
		for _, entry := range list {
			if !slices.Contains(base[kind], entry) {
				out = append(out, kind+" "+entry)
			}
		}
	}
	sort.Strings(out)
	return out
}

func mounts(below string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if w := strings.Fields(s.Text()); len(w) > 4 && (strings.HasPrefix(w[4], below) || strings.HasPrefix(w[4], "/run/")) {
			out = append(out, w[4])
		}
	}
	return out, nil
}

func (e *Engine) cgroups() []string {
	var out []string
	top, _ := filepath.Glob("/sys/fs/cgroup/*/" + e.cgroup())
	pure, _ := filepath.Glob("/sys/fs/cgroup/" + e.cgroup())
	for _, dir := range append(top, pure...) {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				out = append(out, path)
			}
			return nil
		})
	}
	return out
}

// processes lists the processes of this namespace that are not of the tests.
func processes() []string {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var out []string
	for _, dir := range dirs {
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(line) == 0 {
			continue
		}
		words := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		if words[0] == "/proc/self/exe" || words[0] == os.Args[0] {
			continue
		}
		out = append(out, fmt.Sprintf("%s %s", filepath.Base(dir), strings.Join(words, " ")))
	}
	return out
}

func files(root string) []string {
	var out []string
	_ = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != root {
			out = append(out, strings.TrimPrefix(path, root+"/"))
		}
		return nil
	})
	return out
}

func lines(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == '\n' })
}

// Leftovers lists what remains after the engine stopped, except its logs and
// data, and the run-time folders it made before it had any container. It is
// nil when the host is as it was.
func (e *Engine) Leftovers() ([]string, error) {
	c, err := e.Take()
	if err != nil {
		return nil, err
	}
	return c.Without(Census{"link": {"lo"}, "file": e.base["file"], "mount": {e.DataRoot()}}), nil
}

// RemoveCgroups deletes the empty cgroup folders that the peer leaves.
func (e *Engine) RemoveCgroups() {
	list := e.cgroups()
	keepers, _ := filepath.Glob("/sys/fs/cgroup/*/" + strings.Replace(e.cgroup(), "berth-", "berth-keeper-", 1))
	list = append(list, keepers...)
	for i := range list {
		_ = os.Remove(list[len(list)-1-i])
	}
}
