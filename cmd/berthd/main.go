// Command berthd is the daemon of Berth.
package main

import (
	"context"
	"os"

	"github.com/berth-project/berth/app"
)

// Written by the linker (see the Makefile).
var version, commit, buildTime = "dev", "unknown", "unknown"

func main() {
	os.Exit(app.Run(context.Background(), os.Args[1:], app.Build{Version: version, Commit: commit, Time: buildTime}))
}
