package compose

import (
	"context"
	"errors"

	composecli "github.com/compose-spec/compose-go/v2/cli"

	"github.com/berth-project/berth/core/app"
)

// load reads the files that the flags and the environment name, for the
// services given (all where none is).
func (t *tool) load(ctx context.Context, services []string) (*app.App, error) {
	o, err := composecli.NewProjectOptions(t.files,
		composecli.WithWorkingDirectory(t.dir), composecli.WithOsEnv,
		composecli.WithEnvFiles(t.envFiles...), composecli.WithDotEnv, composecli.WithConfigFileEnv, composecli.WithDefaultConfigPath,
		composecli.WithEnvFiles(t.envFiles...), composecli.WithDotEnv, composecli.WithDefaultProfiles(t.profiles...), composecli.WithName(t.name))
	if err != nil {
		return nil, err
	}
	p, err := o.LoadProject(ctx)
	if err != nil {
		return nil, err
	}
	if p.Name == "" {
		return nil, errors.New("project name can't be empty")
	}
	if p, err = p.WithServicesEnabled(services...); err != nil {
		return nil, err
	}
	if p, err = p.WithSelectedServices(services); err != nil {
		return nil, err
	}
	if !t.all {
		p = p.WithoutUnnecessaryResources()
	}
	return &app.App{Project: p, EnvFiles: t.envFiles}, nil
}
