package compose

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/docker/cli/cli/command/commands"
	"github.com/spf13/cobra"
)

type copyOptions struct {
	index               int
	all, follow, owners bool
}

func (t *tool) copyCommand() *cobra.Command {
	var o copyOptions
	cmd := &cobra.Command{
		Use:     "cp [OPTIONS] SERVICE:SRC_PATH DEST_PATH|-\n\tberth compose cp [OPTIONS] SRC_PATH|- SERVICE:DEST_PATH",
		Short:   say("Copy files/folders between a service container and the local filesystem", "Copia ficheros entre un contenedor de un servicio y esta máquina"),
		Example: "  berth compose cp web:/etc/nginx/nginx.conf .\n  berth compose cp ./site web:/usr/share/nginx/html",
		Args:    cobra.ExactArgs(2),
		RunE: t.run(func(ctx context.Context, args []string) error {
			return t.copyFiles(ctx, o, args[0], args[1])
		}),
		ValidArgsFunction: t.completeServices,
	}
	f := cmd.Flags()
	f.IntVar(&o.index, "index", 0, "Index of the container if service has multiple replicas")
	f.BoolVar(&o.all, "all", false, "Include containers created by the run command")
	f.BoolVarP(&o.follow, "follow-link", "L", false, "Always follow symbol link in SRC_PATH")
	f.BoolVarP(&o.owners, "archive", "a", false, "Archive mode (copy all uid/gid information)")
	return cmd
}

// serviceAndPath splits SERVICE:PATH; the service is empty for a path of this machine.
func serviceAndPath(arg string) (service, path string) {
	if filepath.IsAbs(arg) {
		return "", arg
	}
	service, path, ok := strings.Cut(arg, ":")
	if !ok || strings.HasPrefix(service, ".") {
		return "", arg
	}
	return service, path
}

func (t *tool) copyFiles(ctx context.Context, o copyOptions, source, destination string) error {
	if source == "" {
		return errors.New("source can not be empty")
	}
	if destination == "" {
		return errors.New("destination can not be empty")
	}
	from, fromPath := serviceAndPath(source)
	to, toPath := serviceAndPath(destination)
	switch {
	case from != "" && to != "":
		return errors.New("copying between services is not supported")
	case from == "" && to == "":
		return errors.New("unknown copy direction: " + say("one side is SERVICE:PATH", "un lado es SERVICIO:RUTA"))
	}
	project, err := t.projectName(ctx)
	if err != nil {
		return err
	}
	service := from + to // one of them
	found, err := t.containers(ctx, project, selection{services: []string{service}, stopped: true, oneOff: o.all, index: o.index})
	if err != nil {
		return err
	}
	if len(found) == 0 {
		if err := t.mustKnow(ctx, project, service); err != nil {
			return err
		}
		if o.index > 0 {
			return fmt.Errorf(say("service %q is not running container #%d", "el servicio %q no tiene en marcha el contenedor n.º %d"), service, o.index)
		}
		return fmt.Errorf(say("no container found for service %q", "el servicio %q no tiene ningún contenedor"), service)
	}
	if from != "" {
		found = found[:1]
	}
	t.screen.begin("cp")
	err = each(ctx, 1, found, func(ctx context.Context, _ int, c summary) error {
		name := nameOf(c)
		text := fmt.Sprintf("%s to %s:%s", fromPath, name, toPath)
		args := []string{source, c.ID + ":" + toPath}
		if from != "" {
			text = fmt.Sprintf("%s:%s to %s", name, fromPath, toPath)
			args = []string{c.ID + ":" + fromPath, destination}
		}
		t.screen.on(event{id: name, text: "Copying", details: text})
		if !t.dryRun {
			if err := t.dockerCopy(ctx, o, args); err != nil {
				t.screen.on(event{id: name, state: failed, text: "Error", details: err.Error()})
				return err
			}
		}
		t.screen.on(event{id: name, state: done, text: "Copied", details: text})
		return nil
	})
	t.screen.end(err == nil)
	return err
}

// dockerCopy is `docker cp`: what its rules about folders, links and - are, it knows best.
func (t *tool) dockerCopy(ctx context.Context, o copyOptions, args []string) error {
	root := &cobra.Command{Use: "docker", SilenceErrors: true, SilenceUsage: true}
	commands.AddCommands(root, t.docker)
	flags := []string{"container", "cp", "--quiet"}
	if o.follow {
		flags = append(flags, "--follow-link")
	}
	if o.owners {
		flags = append(flags, "--archive")
	}
	root.SetArgs(append(append(flags, "--"), args...))
	root.SetOut(t.docker.Out())
	root.SetErr(t.docker.Err())
	return root.ExecuteContext(ctx)
}
