// Command berth-keeper is the parent of all containers of one engine. The
// daemon starts it; people need not.
package main

import (
	"os"

	"github.com/berth-project/berth/engine/keeper/serve"
)

// Written by the linker (see the Makefile).
var version = "dev"

func main() { os.Exit(serve.Main(os.Args, version)) }
