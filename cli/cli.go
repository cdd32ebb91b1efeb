// Package cli is the command line of Berth: the docker command tree, as its
// library gives it, and Berth's own nouns beside it. It talks to the daemon
// over HTTP alone and knows nothing of how the daemon works.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	dockercli "github.com/docker/cli/cli"
	pluginmanager "github.com/docker/cli/cli-plugins/manager"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/commands"
	"github.com/docker/cli/cli/config"
	cliflags "github.com/docker/cli/cli/flags"
	"github.com/docker/cli/cli/version"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/build"
	"github.com/berth-project/berth/cli/compose"
	"github.com/berth-project/berth/cli/doctor"
	"github.com/berth-project/berth/cli/library"
	"github.com/berth-project/berth/cli/locale"
)

var say = locale.Say

// DefaultHost is where the daemon listens when nobody says otherwise.
const DefaultHost = "unix:///run/berth/docker.sock"

// Build says what program this is; main passes what the linker wrote.
type Build struct {
	Version, Commit, Time string
}

// Run runs one command line (without the program's name) and returns its exit code.
func Run(ctx context.Context, args []string, b Build) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	return exit(ctx, run(ctx, args, b))
}

// exit says what went wrong and gives the exit code.
func exit(ctx context.Context, err error) int {
	var status dockercli.StatusError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		if msg := err.Error(); msg != "" {
			fmt.Fprintln(os.Stderr, explain(err))
		}
		if status.StatusCode != 0 {
			return status.StatusCode
		}
		return 1
	case ctx.Err() != nil && errdefs.IsCanceled(err):
		return 130
	}
	fmt.Fprintln(os.Stderr, explain(err))
	return 1
}

func run(ctx context.Context, args []string, b Build) error {
	// The docker tree reads its own version from these, for User-Agent and `version`.
	version.Version, version.GitCommit, version.BuildTime = b.Version, b.Commit, b.Time
	version.PlatformName = "Berth"
	if err := hostFromEnv(); err != nil {
		return err
	}
	docker, err := command.NewDockerCli(command.WithBaseContext(ctx), command.WithUserAgent("Berth-Client/"+b.Version))
	if err != nil {
		return err
	}
	top, opts := newRoot(docker, b, args)
	top.SetArgs(args)
	cmd, rest, err := top.HandleGlobalFlags()
	if err != nil {
		return err
	}
	chooseHost(opts)
	if err := top.Initialize(); err != nil {
		return err
	}
	if len(rest) > 0 {
		if done, err := tryPlugin(docker, cmd, rest); done {
			return err
		}
	}
	cmd.SetArgs(rest)
	return cmd.ExecuteContext(ctx)
}

// newRoot makes the tree of commands, or the part of it that args are about.
func newRoot(docker *command.DockerCli, b Build, args []string) (*dockercli.TopLevelCommand, *cliflags.ClientOptions) {
	cmd := &cobra.Command{
		Use:   "berth [OPTIONS] COMMAND [ARG...]",
		Short: say("A whole container platform in one program", "Una plataforma de contenedores completa en un solo programa"),
		Example: `  berth run -d -p 8080:8080 welcome
  berth ps
  berth compose up -d
  berth doctor`,
		SilenceUsage:          true,
		SilenceErrors:         true,
		TraverseChildren:      true,
		DisableFlagsInUseLine: true,
		Version:               fmt.Sprintf("%s, build %s", b.Version, b.Commit),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return command.ShowHelp(docker.Err())(cmd, args)
			}
			return fmt.Errorf("berth: '%s' is not a berth command.\nSee 'berth --help'", args[0])
		},
	}
	cmd.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	cmd.SetIn(docker.In())
	cmd.SetOut(docker.Out())
	cmd.SetErr(docker.Err())
	opts, _ := dockercli.SetupRootCommand(cmd)
	cmd.Flags().BoolP("version", "v", false, "Print version information and quit")
	// The help of stacks asks the root for what ours has not.
	cmd.PersistentPreRunE = func(*cobra.Command, []string) error { return nil }
	addCommands(cmd, docker, args)
	cmd.Annotations["additionalHelp"] = say("Is this machine ready for containers? See 'berth doctor'.", "¿Está lista esta máquina para contenedores? Vea 'berth doctor'.")
	cmd.SetVersionTemplate("Berth version {{.Version}}\n")
	return dockercli.NewTopLevelCommand(cmd, docker, opts, cmd.Flags()), opts
}

// addCommands adds docker's tree and Berth's nouns. Where the line begins with
// one of these it is added alone: docker's tree takes a tenth of the time that
// the shortest command needs.
func addCommands(root *cobra.Command, docker *command.DockerCli, args []string) {
	ours := []struct {
		name string
		make func() *cobra.Command
	}{
		{"build", func() *cobra.Command { return build.New(docker) }},
		{"compose", func() *cobra.Command { return compose.New(docker) }},
		{"doctor", func() *cobra.Command { return doctor.New(docker.Out(), DefaultHost) }},
		{"library", func() *cobra.Command { return library.New(docker) }},
	}
	for _, noun := range ours {
		if len(args) > 0 && args[0] == noun.name {
			root.AddCommand(noun.make())
			return
		}
	}
	commands.AddCommands(root, docker)
	reword(root)
	for _, c := range root.Commands() {
		switch c.Name() {
		case "build":
			root.RemoveCommand(c) // that of the classic builder
		case "builder":
			c.AddCommand(build.Cache(docker))
		}
	}
	for _, noun := range ours {
		root.AddCommand(noun.make())
	}
}

// hostFromEnv lets BERTH_HOST go before DOCKER_HOST.
func hostFromEnv() error {
	if h := os.Getenv("BERTH_HOST"); h != "" {
		return os.Setenv("DOCKER_HOST", h)
	}
	return nil
}

// chooseHost falls back to Berth's own socket where neither an option, the
// environment nor a context names another.
func chooseHost(o *cliflags.ClientOptions) {
	named := len(o.Hosts) > 0 || o.Context != "" ||
		os.Getenv("DOCKER_HOST") != "" || os.Getenv("DOCKER_CONTEXT") != "" ||
		config.LoadDefaultConfigFile(os.Stderr).CurrentContext != ""
	if !named {
		o.Hosts = []string{DefaultHost}
	}
}

// tryPlugin runs a docker CLI plugin (buildx, compose) for a word that the
// tree does not know.
func tryPlugin(docker *command.DockerCli, cmd *cobra.Command, args []string) (done bool, err error) {
	if slices.Contains([]string{cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd, "completion", "help"}, args[0]) || strings.HasPrefix(args[0], "-") {
		return false, nil
	}
	if found, _, err := cmd.Find(args); err == nil && found != cmd {
		return false, nil
	}
	plugin, err := pluginmanager.PluginRunCommand(docker, args[0], cmd)
	if err != nil {
		return false, nil
	}
	err = plugin.Run()
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		return true, dockercli.StatusError{StatusCode: exit.ExitCode()}
	}
	return true, err
}

// unreached is how a request to Docker Hub fails for one of its official images.
var unreached = regexp.MustCompile(`"https://registry-1\.docker\.io/v2/library/([^/"]+)/manifests/[^"]*": `)

// explain adds to an error what to do next.
func explain(err error) string {
	msg := err.Error()
	if client.IsErrConnectionFailed(err) || strings.Contains(msg, "failed to connect to the docker API") || strings.Contains(msg, "Cannot connect to the Docker daemon") {
		return msg + "\n\n" + say(
			"No Berth daemon answers there. Start one:\n    sudo berthd &                  (or: sudo systemctl start berth)\nLook at this machine:\n    berth doctor",
			"Ahí no responde ningún demonio de Berth. Inícielo:\n    sudo berthd &                  (o: sudo systemctl start berth)\nExamine esta máquina:\n    berth doctor")
	}
	if m := unreached.FindStringSubmatch(msg); m != nil && library.Has(m[1]) {
		return msg + "\n\n" + fmt.Sprintf(say("Docker Hub was not reached. Berth makes an image of this name from Debian's packages:\n    berth library build %s",
			"No se llegó a Docker Hub. Berth hace una imagen de este nombre con paquetes de Debian:\n    berth library build %s"), m[1])
	}
	return msg
}
