package compose

import (
	"context"

	"github.com/berth-project/berth/core/app"
	"github.com/berth-project/berth/format/compose"
)

// load reads the files that the flags and the environment name, for the
// services given (all where none is).
func (t *tool) load(ctx context.Context, services []string) (*app.App, error) {
	return compose.Load(ctx, t.loadOptions(services))
}

// look is load for commands that need names and order: files of variables may be missing.
func (t *tool) look(ctx context.Context, services []string) (*app.App, error) {
	o := t.loadOptions(services)
	o.KeepEnvFiles = true
	return compose.Load(ctx, o)
}

func (t *tool) loadOptions(services []string) compose.Options {
	return compose.Options{
		Files: t.files, ProjectName: t.name, ProjectDirectory: t.dir, EnvFiles: t.envFiles, Profiles: t.profiles, Services: services,
		Stdin: t.docker.In(), AllResources: t.all, Remotes: t.remotes(),
	}
}
