package build

import (
	"io"
	"os"
	"path/filepath"
	"regexp"

	"github.com/docker/cli/cli/command/completion"
	"github.com/spf13/cobra"
)

// complete tells the shell what may stand in the command line of a build.
func complete(cmd *cobra.Command) {
	cmd.ValidArgsFunction = func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return nil, cobra.ShellCompDirectiveFilterDirs
	}
	for flag, words := range map[string][]string{
		"progress": modes, "network": {"default", "none", "host"}, "provenance": {"false", "min", "max"}, "sbom": {"true", "false"},
		"allow": {"network.host", "security.insecure"}, "attest": {"type=provenance", "type=sbom"},
	} {
		_ = cmd.RegisterFlagCompletionFunc(flag, completion.FromList(words...))
	}
	for _, flag := range []string{"file", "iidfile", "metadata-file", "output"} {
		_ = cmd.RegisterFlagCompletionFunc(flag, completion.FileNames())
	}
	_ = cmd.RegisterFlagCompletionFunc("platform", completion.Platforms())
	stages := func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		file, _ := cmd.Flags().GetString("file")
		if file == "" {
			file = "Dockerfile"
			if len(args) > 0 {
				file = filepath.Join(args[0], file)
			}
		}
		return stagesOf(file), cobra.ShellCompDirectiveNoFileComp
	}
	_ = cmd.RegisterFlagCompletionFunc("target", stages)
	_ = cmd.RegisterFlagCompletionFunc("no-cache-filter", stages)
}

var stageLine = regexp.MustCompile(`(?im)^[ \t]*FROM[ \t]+.*[ \t]AS[ \t]+(\S+)[ \t\r]*$`)

// stagesOf lists the names of a Dockerfile's stages, as far as lines tell them.
func stagesOf(file string) []string {
	info, err := os.Stat(file)
	if err != nil || !info.Mode().IsRegular() {
		return nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxDockerfile))
	if err != nil {
		return nil
	}
	var names []string
	for _, m := range stageLine.FindAllStringSubmatch(string(text), -1) {
		names = append(names, m[1])
	}
	return names
}
