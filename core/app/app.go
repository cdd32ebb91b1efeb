// Package app decides about applications: what a project wants, what is there,
// and which steps lead from one to the other. It knows nothing of HTTP, of files
// or of the engine; those come through its ports.
package app

import (
	"fmt"

	"github.com/compose-spec/compose-go/v2/types"
)

// App is a project as a person wrote it, read and normalised.
type App struct {
	Project  *types.Project
	Sources  map[string]Position // where each path of the model ("services.web.image") was written
	Warnings []string            // what the reader noticed and did not refuse
	EnvFiles []string            // as the person named them (--env-file)
	Files    map[string]string   // texts of files that options name, where they came with the model
}

// Position is a place in a file that a person wrote.
type Position struct {
	File string
	Line int // from 1; 0 where only the file is known
}

func (p Position) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}
