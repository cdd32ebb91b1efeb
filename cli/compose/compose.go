// Package compose is the command tree `berth compose`: the commands of docker
// compose with their flags, columns and words, and Berth's own (plan, history,
// rollback). It reads files by format/compose, lets the daemon plan and act by
// cli/remote, and looks at containers by their labels over the Docker API; it
// decides nothing about applications itself.
package compose

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	dockercli "github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/berth-project/berth/cli/locale"
	"github.com/berth-project/berth/cli/remote"
)

// Version is the release of docker compose whose commands these are.
const Version = "v5.6.0"

var say = locale.Say

// tool is what the commands share: the streams, the daemon and the global flags.
type tool struct {
	docker command.Cli
	screen screen // how progress is shown; chosen when the flags are known
	mode   string // of screen: "tty", "plain", "json" or "quiet"
	color  bool   // may the output be coloured

	name          string
	files         []string
	profiles      []string
	envFiles      []string
	dir           string
	workdir       string // the old name of dir
	insecure      []string
	progress      string
	ansi          string
	noANSI        bool
	parallel      int
	compatibility bool
	all           bool
	dryRun        bool
	verbose       bool
	quietPull     bool // do not show the layers of images
}

// New gives the command tree. docker is initialised before any command runs.
func New(docker command.Cli) *cobra.Command {
	t := &tool{docker: docker, screen: quiet{}}
	var version bool
	c := &cobra.Command{
		Use:   "compose",
		Short: say("Applications of several containers (Compose)", "Aplicaciones de varios contenedores (Compose)"),
		Long:  say("Define and run multi-container applications with Docker", "Defina y ejecute aplicaciones de varios contenedores"),
		Example: `  berth compose up -d
  berth compose plan
  berth compose logs -f web
  berth compose rollback`,
		TraverseChildren: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if version {
				return t.versionOf("", false)
			}
			if len(args) == 0 {
				return cmd.Help()
			}
			return dockercli.StatusError{StatusCode: 1, Status: fmt.Sprintf(say("unknown docker command: %q\n\n", "orden desconocida: %q\n\n"), "compose "+args[0]) +
				say("See '"+cmd.CommandPath()+" --help' for the commands there are.", "Vea '"+cmd.CommandPath()+" --help'.")}
		},
		PersistentPreRunE: func(cmd *cobra.Command, args []string) error {
			// Cobra calls only the nearest of these.
			if root := cmd.Root(); root != nil && root.Name() != "compose" && root.PersistentPreRunE != nil {
				if err := root.PersistentPreRunE(cmd, args); err != nil {
					return err
				}
			}
			return t.prepare(cmd)
		},
	}
	c.AddCommand(
		t.attachCommand(), t.commitCommand(), t.copyCommand(), t.eventsCommand(), t.execCommand(), t.exportCommand(),
		t.imagesCommand(), t.killCommand(), t.listCommand(), t.logsCommand(), t.pauseCommand(), t.unpauseCommand(), t.portCommand(),
		t.psCommand(), t.removeCommand(), t.statsCommand(), t.topCommand(), t.versionCommand(), t.volumesCommand(), t.waitCommand(),
		t.upCommand(), t.createCommand(), t.downCommand(), t.startCommand(), t.stopCommand(), t.restartCommand(), t.scaleCommand(),
		t.configCommand(), t.buildCommand(), t.runCommand(), t.pullCommand(), t.pushCommand(), t.watchCommand(), t.publishCommand(), t.planCommand(), t.historyCommand(), t.rollbackCommand(),
	)
	f := c.Flags()
	f.SetInterspersed(false)
	t.addFlags(f)
	f.BoolVarP(&version, "version", "v", false, "Show the Docker Compose version information")
	f.BoolVar(&t.verbose, "verbose", false, "Show more output")
	c.PersistentFlags().BoolVar(&t.dryRun, "dry-run", false, "Execute command in dry run mode")
	for _, hidden := range []string{"version", "verbose", "no-ansi", "workdir", "insecure-registry"} {
		if err := f.MarkHidden(hidden); err != nil {
			panic(err) // a flag that is not there: seen by any test
		}
	}
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return dockercli.StatusError{StatusCode: 1, Status: err.Error() + "\n\n" +
			say("See '"+c.CommandPath()+" --help'.", "Vea '"+c.CommandPath()+" --help'.")}
	})
	t.completeFlags(c)
	return c
}

var modes = []string{"auto", "tty", "plain", "json", "quiet"}

func (t *tool) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&t.profiles, "profile", nil, "Specify a profile to enable")
	f.StringVarP(&t.name, "project-name", "p", "", "Project name")
	f.StringArrayVarP(&t.files, "file", "f", nil, "Compose configuration files")
	f.StringArrayVar(&t.insecure, "insecure-registry", nil, "Use insecure registry to pull Compose OCI artifacts. Doesn't apply to images")
	f.StringArrayVar(&t.envFiles, "env-file", splitComma(os.Getenv("COMPOSE_ENV_FILES")), "Specify an alternate environment file")
	f.StringVar(&t.dir, "project-directory", "", "Specify an alternate working directory\n(default: the path of the, first specified, Compose file)")
	f.StringVar(&t.workdir, "workdir", "", "DEPRECATED! USE --project-directory INSTEAD.")
	f.BoolVar(&t.compatibility, "compatibility", false, "Run compose in backward compatibility mode")
	f.StringVar(&t.progress, "progress", os.Getenv("COMPOSE_PROGRESS"), "Set type of progress output ("+strings.Join(modes, ", ")+")")
	f.BoolVar(&t.all, "all-resources", false, "Include all resources, even those not used by services")
	f.StringVar(&t.ansi, "ansi", "auto", `Control when to print ANSI control characters ("never"|"always"|"auto")`)
	f.BoolVar(&t.noANSI, "no-ansi", false, "Do not print ANSI control characters (DEPRECATED)")
	f.IntVar(&t.parallel, "parallel", -1, "Control max parallelism, -1 for unlimited")
}

func splitComma(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

// truth reads a switch of the environment as docker compose does.
func truth(s string) bool {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "1", "t", "true", "y", "yes", "on":
		return true
	}
	return false
}

// prepare completes the global flags from the environment and chooses the screen.
func (t *tool) prepare(cmd *cobra.Command) error {
	if t.verbose { // what the libraries that read files and talk to the daemon tell of themselves
		logrus.SetLevel(logrus.TraceLevel)
	}
	root := cmd
	for root.Name() != "compose" && root.HasParent() {
		root = root.Parent()
	}
	changed := func(name string) bool { return root.Flags().Changed(name) }
	if t.noANSI {
		if changed("ansi") {
			return errors.New(`cannot specify DEPRECATED "--no-ansi" and "--ansi". Please use only "--ansi"`)
		}
		t.ansi = "never"
		fmt.Fprintln(t.docker.Err(), "option '--no-ansi' is DEPRECATED ! Please use '--ansi' instead.")
	}
	if v, ok := os.LookupEnv("COMPOSE_ANSI"); ok && !changed("ansi") && !t.noANSI {
		t.ansi = v
	}
	if !slices.Contains([]string{"auto", "always", "never"}, t.ansi) {
		return fmt.Errorf(`unsupported --ansi value %q: use "never", "always" or "auto"`, t.ansi)
	}
	if t.workdir != "" {
		if t.dir != "" {
			return errors.New(`cannot specify DEPRECATED "--workdir" and "--project-directory". Please use only "--project-directory" instead`)
		}
		t.dir = t.workdir
		fmt.Fprintln(t.docker.Err(), "option '--workdir' is DEPRECATED at root level! Please use '--project-directory' instead.")
	}
	for i, name := range t.envFiles {
		abs, err := filepath.Abs(home(name))
		if err != nil {
			return err
		}
		t.envFiles[i] = abs
	}
	if v, ok := os.LookupEnv("COMPOSE_PARALLEL_LIMIT"); ok && !changed("parallel") {
		n, err := strconv.Atoi(v)
		if err != nil {
			return fmt.Errorf("COMPOSE_PARALLEL_LIMIT must be an integer (found: %q)", v)
		}
		t.parallel = n
	}
	return t.chooseScreen()
}

// home puts the home folder in place of a leading ~.
func home(path string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		if h, err := os.UserHomeDir(); err == nil {
			return filepath.Join(h, rest)
		}
	}
	return path
}

// run makes a cobra function: a canceled context is exit code 130, and with
// --progress json an error is JSON too.
func (t *tool) run(fn func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		// As a plugin of docker nobody above listens to signals.
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		err := spoken(fn(ctx, args))
		if err == nil {
			return nil
		}
		var status dockercli.StatusError
		hasCode := errors.As(err, &status)
		if !hasCode && (errors.Is(err, context.Canceled) || errdefs.IsCanceled(err) || ctx.Err() != nil) {
			return dockercli.StatusError{StatusCode: 130}
		}
		if t.mode != "json" {
			return err
		}
		code := 1
		if hasCode {
			code = status.StatusCode
		}
		b, jsonErr := json.Marshal(map[string]any{"error": true, "message": err.Error()})
		if jsonErr != nil {
			return err
		}
		return dockercli.StatusError{StatusCode: code, Status: string(b)}
	}
}

// noDryRun refuses --dry-run for a command that would have nothing to show.
func (t *tool) noDryRun(command string) error {
	if t.dryRun {
		return fmt.Errorf("%s is not supported in dry-run mode", command)
	}
	return nil
}

// remote is the daemon's native API.
func (t *tool) remote() *remote.Client { return remote.New(t.docker.Client().Dialer()) }

// limit is how many calls may be under way at a time.
func (t *tool) limit() int {
	if t.parallel > 0 {
		return t.parallel
	}
	return 32
}
