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

	"github.com/berth-project/berth/cli/locale"
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
	Name   string `json:"name"` // the same in every language
	Level  string `json:"level"`
	Detail string `json:"detail"`
	Advice string `json:"advice,omitempty"`
}

// Say chooses between English and Spanish, as locale.Say does.
type Say func(english, spanish string) string

// New gives the command. defaultHost is looked up where no environment names a daemon.
func New(out io.Writer, defaultHost string) *cobra.Command {
	say := locale.Say
	var format string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: say("Tell what this machine offers to containers and what is missing", "Dice qué ofrece esta máquina a los contenedores y qué le falta"),
		Long: say(`Tell what this machine offers to containers, what is missing and what to do.

It needs no daemon and changes nothing. The exit code is 1 when there is a
problem that keeps containers from running, 0 otherwise.`, `Dice qué ofrece esta máquina a los contenedores, qué le falta y qué hacer.

No necesita ningún demonio ni cambia nada. El código de salida es 1 cuando un
problema impide que los contenedores funcionen, y 0 en otro caso.`),
		Example: "  berth doctor\n  berth doctor --format json",
		Args:    cli.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			findings := append(examine(host.Look(), say), daemon(defaultHost, say))
			if err := write(out, format, findings, say); err != nil {
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
	cmd.Flags().StringVar(&format, "format", "table", say(`Output format ("table" or "json")`, `Formato de salida ("table" o "json")`))
	return cmd
}

// daemon looks whether anything answers at the daemon's address.
func daemon(address string, say Say) Finding {
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
		return Finding{Name: "daemon", Level: warning, Detail: say("none answers at ", "ninguno responde en ") + address, Advice: "sudo berthd &"}
	}
	_ = conn.Close()
	return Finding{Name: "daemon", Level: ok, Detail: say("answers at ", "responde en ") + address}
}

// spanish gives the names of findings that are not the same in Spanish.
var spanish = map[string]string{
	"kernel": "núcleo", "bridge and veth": "bridge y veth", "cgroup block io": "cgroup de disco", "swap limit": "límite de intercambio",
	"mandatory access control": "control de acceso obligatorio", "user namespaces": "espacios de nombres de usuario", "daemon": "demonio",
	"exit codes after a keeper's death": "códigos de salida sin keeper",
}

func title(name string, say Say) string {
	if other := spanish[name]; other != "" {
		return say(name, other)
	}
	return name
}

func write(out io.Writer, format string, findings []Finding, say Say) error {
	switch format {
	case "json":
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(findings)
	case "table", "":
	default:
		return fmt.Errorf(say("unknown format %q: use table or json", "formato %q desconocido: use table o json"), format)
	}
	marks := map[string]string{ok: "ok  ", warning: "warn", problem: "FAIL"}
	if _, tty := out.(interface{ IsTerminal() bool }); tty && os.Getenv("NO_COLOR") == "" && out.(interface{ IsTerminal() bool }).IsTerminal() {
		marks = map[string]string{ok: "\x1b[32mok  \x1b[0m", warning: "\x1b[33mwarn\x1b[0m", problem: "\x1b[31mFAIL\x1b[0m"}
	}
	for _, f := range findings {
		if _, err := fmt.Fprintf(out, "%s  %-34s %s\n", marks[f.Level], title(f.Name, say), f.Detail); err != nil {
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
