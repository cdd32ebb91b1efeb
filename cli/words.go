package cli

import (
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The docker tree names its own program where people would look for ours.
// What is Docker's stays so called: its Hub, its files, its API, its contexts.
var (
	mention   = regexp.MustCompile(`\bdocker ((?:[a-z]+ )?(?:--help|CMD|` + strings.Join(topCommands, "|") + `)\b)`)
	sentences = strings.NewReplacer(
		"Show the Docker version information", "Show version information",
		"Return low-level information on Docker objects", "Return low-level information on objects",
		"Manage Docker image manifests", "Manage image manifests",
		"Show docker disk usage", "Show disk usage",
		"Set the default docker context", "Set the default context",
		"the Docker host's", "the host's",
		"Docker daemon", "Berth daemon",
		"Docker objects", "objects",
	)
)

// topCommands are the first words of the docker tree that its texts mention.
var topCommands = []string{
	"attach", "build", "builder", "buildx", "commit", "config", "container", "context", "cp", "create", "diff", "events", "exec", "export", "history", "image", "images",
	"import", "info", "inspect", "kill", "load", "login", "logout", "logs", "manifest", "network", "node", "pause", "plugin", "port", "ps", "pull", "push", "rename",
	"restart", "rm", "rmi", "run", "save", "search", "secret", "service", "stack", "start", "stats", "stop", "swarm", "system", "tag", "top", "trust", "unpause", "update",
	"version", "volume", "wait",
}

// reword makes help texts of the docker tree speak of this program.
func reword(cmd *cobra.Command) {
	if cmd.Short == "Manage Docker" {
		cmd.Short = "Manage Berth"
	}
	for _, text := range []*string{&cmd.Use, &cmd.Short, &cmd.Long, &cmd.Example, &cmd.Deprecated} {
		*text = ourWords(*text)
	}
	if aliases, ok := cmd.Annotations["aliases"]; ok {
		cmd.Annotations["aliases"] = ourWords(aliases)
	}
	for _, set := range []*pflag.FlagSet{cmd.Flags(), cmd.PersistentFlags()} {
		set.VisitAll(func(f *pflag.Flag) { f.Usage = ourWords(f.Usage) })
	}
	for _, child := range cmd.Commands() {
		reword(child)
	}
}

func ourWords(text string) string {
	if !strings.Contains(text, "ocker") {
		return text
	}
	return mention.ReplaceAllString(sentences.Replace(text), "berth $1")
}
