// Package doctor is the command `berth doctor`: what the kernel and the host
// offer to containers, what is missing, and what to do about it. It needs no daemon.
package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/lib/host"
)

// Levels of a finding.
const (
	ok      = "ok"
	warning = "warning" // something optional is missing
	problem = "problem" // containers cannot run as they should
)

// Finding is one thing looked at.
type Finding struct {
	Name   string `json:"name"`
	Level  string `json:"level"`
	Detail string `json:"detail"`
	Advice string `json:"advice,omitempty"`
}

// New gives the command. defaultHost is looked up where no environment names a daemon.
func New(out io.Writer, defaultHost string) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what this machine offers to containers and what is missing",
		Long: `Tell what this machine offers to containers, what is missing and what to do.

It needs no daemon and changes nothing. The exit code is 1 when there is a
problem that keeps containers from running, 0 otherwise.`,
		Example: "  berth doctor\n  berth doctor --format json",
		Args:    cli.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			findings := append(examine(host.Look()), daemon(defaultHost))
			if err := write(out, format, findings); err != nil {
				return err
			}
			for _, f := range findings {
				if f.Level == problem {
					return cli.StatusError{StatusCode: 1}
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&format, "format", "table", `Output format ("table" or "json")`)
	return cmd
}

// examine judges the facts of a host.
func examine(h host.Facts) []Finding {
	var all []Finding
	add := func(good bool, level, name, detail, missing, advice string) {
		if good {
			all = append(all, Finding{Name: name, Level: ok, Detail: detail})
			return
		}
		all = append(all, Finding{Name: name, Level: level, Detail: missing, Advice: advice})
	}
	add(host.AtLeast(h.Kernel, 5, 10), problem, "kernel", h.Kernel, h.Kernel+" is older than 5.10", "upgrade the kernel")
	add(h.Overlay, problem, "overlayfs", "available", "not available", "modprobe overlay")
	add(h.NFTables, problem, "nf_tables", "available", "not available: no port can be published", "modprobe nf_tables")
	add(h.Bridge && h.Veth, problem, "bridge and veth", "available", "not available: only host and none networks work", "modprobe bridge; modprobe veth")
	add(h.CgroupMode != host.CgroupNone, problem, "cgroups", h.CgroupMode, "none are mounted", "mount -t cgroup2 none /sys/fs/cgroup")
	for _, c := range []string{"memory", "cpu", "cpuset", "pids"} {
		add(h.Controllers[c], warning, "cgroup "+c, "available", "not available: such limits are refused", "enable it on the kernel's command line (cgroup_enable="+c+")")
	}
	add(h.Controllers["io"] || h.Controllers["blkio"], warning, "cgroup block io", "available", "not available: such limits are refused", "")
	add(h.SwapLimit, warning, "swap limit", "available", "not available: --memory-swap is ignored", "add swapaccount=1 to the kernel's command line")
	add(h.Seccomp, warning, "seccomp", "available", "not available: system calls are not filtered", "use a kernel with CONFIG_SECCOMP_FILTER")
	add(h.AppArmor || h.SELinux, warning, "mandatory access control", mac(h), "neither AppArmor nor SELinux is active", "on Debian: apt-get install apparmor, then reboot")
	add(h.UserNS, warning, "user namespaces", "available", "not available: --userns-remap is refused", "sysctl user.max_user_namespaces=15000")
	add(h.IPv6, warning, "IPv6", "available", "not available: networks are IPv4 only", "")
	add(h.SysResource, warning, "CAP_SYS_RESOURCE", "held", "missing: hard limits cannot be raised", "run the daemon with all capabilities")
	add(h.PidfdExitInfo, warning, "exit codes after a keeper's death", "available", "kernel < 6.15: an exit code may be lost (137 is reported) if the keeper is killed", "")
	return all
}

func mac(h host.Facts) string {
	if h.AppArmor {
		return "AppArmor"
	}
	return "SELinux"
}

// daemon looks whether anything answers at the daemon's address.
func daemon(address string) Finding {
	for _, k := range []string{"BERTH_HOST", "DOCKER_HOST"} {
		if v := os.Getenv(k); v != "" {
			address = v
			break
		}
	}
	network, path, _ := strings.Cut(address, "://")
	dialer := net.Dialer{Timeout: 2 * time.Second}
	conn, err := dialer.DialContext(context.Background(), network, path)
	if err != nil {
		return Finding{Name: "daemon", Level: warning, Detail: "none answers at " + address, Advice: "sudo berthd &"}
	}
	_ = conn.Close()
	return Finding{Name: "daemon", Level: ok, Detail: "answers at " + address}
}

func write(out io.Writer, format string, findings []Finding) error {
	switch format {
	case "json":
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(findings)
	case "table", "":
	default:
		return fmt.Errorf("unknown format %q: use table or json", format)
	}
	marks := map[string]string{ok: "ok  ", warning: "warn", problem: "FAIL"}
	if _, tty := out.(interface{ IsTerminal() bool }); tty && os.Getenv("NO_COLOR") == "" && out.(interface{ IsTerminal() bool }).IsTerminal() {
		marks = map[string]string{ok: "\x1b[32mok  \x1b[0m", warning: "\x1b[33mwarn\x1b[0m", problem: "\x1b[31mFAIL\x1b[0m"}
	}
	for _, f := range findings {
		if _, err := fmt.Fprintf(out, "%s  %-34s %s\n", marks[f.Level], f.Name, f.Detail); err != nil {
			return err
		}
		if f.Advice != "" {
			if _, err := fmt.Fprintf(out, "      → %s\n", f.Advice); err != nil {
				return err
			}
		}
	}
	return nil
}
