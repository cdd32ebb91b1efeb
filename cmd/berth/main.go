// Command berth is the command line of Berth.
package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/berth-project/berth/cli"
)

// Written by the linker (see the Makefile).
var version, commit, buildTime = "dev", "unknown", "unknown"

func main() {
	b := cli.Build{Version: version, Commit: commit, Time: buildTime}
	if filepath.Base(os.Args[0]) == "docker-compose" {
		os.Exit(cli.RunCompose(context.Background(), os.Args[1:], b))
	}
	os.Exit(cli.Run(context.Background(), os.Args[1:], b))
}
