package compose

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/berth-project/berth/core/app"
	"github.com/berth-project/berth/format/compose"
)

// document reads the files and makes what the daemon understands, for the
// services that are named (all where none is).
func (t *tool) document(ctx context.Context, services []string) (app.Document, *app.App, error) {
	a, err := t.load(ctx, services)
	if err != nil {
		return app.Document{}, nil, err
	}
	for _, w := range a.Warnings {
		t.warn("%s", w)
	}
	d, err := app.NewDocument(a)
	return d, a, err
}

// projectOrName is for commands that work with labels: with --project-name and
// no file the name is enough, and there is no application to look at.
func (t *tool) projectOrName(ctx context.Context, services []string) (*app.App, string, error) {
	if t.name != "" && len(t.files) == 0 {
		return nil, t.name, nil
	}
	a, err := t.look(ctx, services)
	if err != nil {
		if name := os.Getenv("COMPOSE_PROJECT_NAME"); name != "" && !isUnknownService(err) {
			return nil, name, nil
		}
		return nil, "", err
	}
	return a, a.Project.Name, nil
}

// projectName is for commands that need no more than it.
func (t *tool) projectName(ctx context.Context) (string, error) {
	if t.name != "" {
		return t.name, nil
	}
	if name := os.Getenv("COMPOSE_PROJECT_NAME"); name != "" {
		return name, nil
	}
	a, err := t.look(ctx, nil)
	if err != nil {
		return "", err
	}
	return a.Project.Name, nil
}

// mustKnow refuses services that are neither in the file nor have a container.
// Where there is neither, nobody can tell, and all pass.
func (t *tool) mustKnow(ctx context.Context, project string, services ...string) error {
	if len(services) == 0 {
		return nil
	}
	var names []string
	if a, err := t.look(ctx, nil); err == nil && a.Project.Name == project {
		names = append(a.Project.ServiceNames(), a.Project.DisabledServiceNames()...)
	}
	found, err := t.containers(ctx, project, selection{stopped: true, oneOff: true})
	if err != nil {
		return err
	}
	for _, c := range found {
		names = append(names, c.Labels[labelService])
	}
	if len(names) == 0 {
		return nil
	}
	for _, s := range services {
		if !slices.Contains(names, s) {
			return compose.NoService(s, names)
		}
	}
	return nil
}

func isUnknownService(err error) bool { return strings.Contains(err.Error(), "no such service") }

// wanted are the services that a command is about: those named, or those of the file.
func wanted(a *app.App, services []string) []string {
	if len(services) > 0 || a == nil {
		return services
	}
	return a.Project.ServiceNames()
}

// isCompatible says whether names have _ between their parts.
func (t *tool) isCompatible(p *types.Project) bool {
	return t.compatibility || p != nil && truth(p.Environment["COMPOSE_COMPATIBILITY"])
}

// warn tells of something that is no failure.
func (t *tool) warn(format string, args ...any) {
	fmt.Fprintln(t.docker.Err(), say("warning: ", "aviso: ")+words(fmt.Sprintf(format, args...)))
}

// confirm asks a question that is answered y or n. Without a terminal nothing
// is asked, and the answer is no.
func (t *tool) confirm(ctx context.Context, question string, byDefault bool) (bool, error) {
	if !t.docker.In().IsTerminal() {
		return false, errors.New(question + ": " + say("nobody can be asked here; give --yes or --force", "aquí no se puede preguntar; use --yes o --force"))
	}
	hint := "[yN]"
	if byDefault {
		hint = "[Yn]"
	}
	fmt.Fprintf(t.docker.Out(), "? %s %s ", question, hint)
	answer := make(chan string, 1)
	go func() { // ends with the line, or with the process
		var line string
		_, _ = fmt.Fscanln(t.docker.In(), &line)
		answer <- line
	}()
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case a := <-answer:
		if strings.TrimSpace(a) == "" {
			return byDefault, nil
		}
		return truth(a) || strings.EqualFold(a, "s") || strings.EqualFold(a, "sí"), nil
	}
}
