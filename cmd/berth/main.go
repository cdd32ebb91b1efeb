// Command berth is the command line of Berth.
package main

import (
	"context"
	"os"

	"github.com/berth-project/berth/cli"
)

// Written by the linker (see the Makefile).
var version, commit, buildTime = "dev", "unknown", "unknown"

func main() {
	os.Exit(cli.Run(context.Background(), os.Args[1:], cli.Build{Version: version, Commit: commit, Time: buildTime}))
}
