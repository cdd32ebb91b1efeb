package cli

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/docker/cli/cli-plugins/metadata"
	"github.com/docker/cli/cli-plugins/plugin"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/version"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/compose"
)

// RunCompose runs the program under the name docker-compose: as docker's
// plugin (`docker compose …`) or by itself (`docker-compose …`).
func RunCompose(ctx context.Context, args []string, b Build) int {
	return exit(ctx, runCompose(ctx, args, b))
}

func runCompose(ctx context.Context, args []string, b Build) error {
	version.Version, version.GitCommit, version.BuildTime = b.Version, b.Commit, b.Time
	version.PlatformName = "Berth"
	if err := hostFromEnv(); err != nil {
		return err
	}
	if plugin.RunningStandalone() {
		var err error
		if args, err = asPlugin(args); err != nil {
			return err
		}
	}
	docker, err := command.NewDockerCli(command.WithBaseContext(ctx), command.WithUserAgent("Berth-Client/"+b.Version))
	if err != nil {
		return err
	}
	os.Args = append([]string{"docker"}, args...) // what the plugin's library looks at
	c := compose.New(docker)
	before := c.PersistentPreRunE
	c.PersistentPreRunE = func(cmd *cobra.Command, args []string) error {
		if err := plugin.PersistentPreRunE(cmd, args); err != nil {
			return err
		}
		return before(cmd, args)
	}
	return plugin.RunPlugin(docker, c, metadata.Metadata{SchemaVersion: "0.1.0", Vendor: "Berth", Version: compose.Version})
}

// Options of docker itself that docker-compose takes too, by whether a value follows.
var dockerOptions = map[string]bool{
	"--debug": false, "-D": false, "--tls": false, "--tlsverify": false,
	"--tlscacert": true, "--tlscert": true, "--tlskey": true, "--host": true, "-H": true, "--context": true, "--log-level": true,
}

// asPlugin turns a command line of docker-compose into the one docker gives
// its plugin: docker's options, the word compose, and the rest.
func asPlugin(args []string) ([]string, error) {
	var docker []string
	rest := []string{"compose"}
	named := os.Getenv("DOCKER_HOST") != "" || os.Getenv("DOCKER_CONTEXT") != "" || config.LoadDefaultConfigFile(os.Stderr).CurrentContext != ""
	for i := 0; i < len(args); i++ {
		arg := args[i]
		name, value, joined := strings.Cut(arg, "=")
		valued, ofDocker := dockerOptions[name]
		switch {
		case arg == cobra.ShellCompRequestCmd || arg == cobra.ShellCompNoDescRequestCmd:
			rest = append([]string{arg}, rest...)
			continue
		case !strings.HasPrefix(arg, "-"):
			rest = append(rest, args[i:]...)
			i = len(args)
			continue
		case arg == "-h":
			rest = append(rest, "--help")
			continue
		case arg == "--version" || arg == "-v":
			rest = append(rest, "version")
			continue
		case arg == "--verbose":
			docker = append(docker, "--debug")
			continue
		case !ofDocker:
			rest = append(rest, arg)
			continue
		}
		named = named || name == "--host" || name == "-H" || name == "--context"
		docker = append(docker, name)
		switch {
		case joined:
			docker = append(docker, value)
		case valued:
			if i++; i >= len(args) {
				return nil, fmt.Errorf("flag needs an argument: %s", arg)
			}
			docker = append(docker, args[i])
		}
	}
	if !named {
		docker = append(docker, "--host", DefaultHost)
	}
	return append(docker, rest...), nil
}
