package library

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/docker/cli/cli"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/locale"
	"github.com/berth-project/berth/format/recipe"
)

// detail is all that is known of an image without making it.
type detail struct {
	row
	Licence     string   `json:"licence"`
	Packages    []string `json:"packages,omitempty"`
	From        string   `json:"from"`
	Entrypoint  []string `json:"entrypoint,omitempty"`
	Command     []string `json:"command,omitempty"`
	Ports       []string `json:"ports,omitempty"`
	Volumes     []string `json:"volumes,omitempty"`
	Environment []string `json:"environment,omitempty"`
	StopSignal  string   `json:"stop_signal,omitempty"`
	Health      []string `json:"health_check,omitempty"`
	RunsAs      string   `json:"runs_as,omitempty"`
	HubSource   string   `json:"hub_source,omitempty"`
}

func (n *noun) show() *cobra.Command {
	var format string
	var dockerfile bool
	cmd := &cobra.Command{
		Use:               "show [OPTIONS] NAME",
		Short:             locale.Say("Tell what an official image is made of and how it runs", "Decir de qué está hecha una imagen oficial y cómo se ejecuta"),
		Example:           "  berth library show postgres\n  berth library show --dockerfile redis",
		Args:              cli.ExactArgs(1),
		ValidArgsFunction: n.completeNames(1),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		list, err := n.named(args)
		if err != nil {
			return err
		}
		if dockerfile {
			text, err := fs.ReadFile(n.files(), list[0].Name+"/Dockerfile")
			if err == nil {
				_, err = n.docker.Out().Write(text)
			}
			return err
		}
		d, err := n.detail(list[0])
		if err != nil {
			return err
		}
		// What it is made of is known without an engine.
		if err := n.find(cmd.Context(), &d.row); err != nil && !client.IsErrConnectionFailed(err) {
			return err
		}
		if format == "json" {
			return writeJSON(n.docker.Out(), d)
		}
		n.write(d)
		return nil
	}
	n.formatFlag(cmd, &format)
	cmd.Flags().BoolVar(&dockerfile, "dockerfile", false, locale.Say("Print the recipe's Dockerfile", "Escribir el Dockerfile de la receta"))
	return cmd
}

func (n *noun) detail(r *recipe.Recipe) (detail, error) {
	last := r.Stages[len(r.Stages)-1]
	d := detail{row: n.row(r), Licence: r.Manifest.Licence, From: last.From, RunsAs: r.Manifest.RunsAs}
	for _, s := range r.Stages {
		for _, step := range s.Steps {
			d.Packages = append(d.Packages, step.Install...)
		}
	}
	c, err := n.config(r)
	if err != nil {
		return d, err
	}
	d.Entrypoint, d.Command, d.Environment, d.StopSignal = c.Entrypoint, c.Cmd, c.Env, c.StopSignal
	if c.Healthcheck != nil {
		d.Health = c.Healthcheck.Test
	}
	for p := range c.ExposedPorts {
		d.Ports = append(d.Ports, p)
	}
	for v := range c.Volumes {
		d.Volumes = append(d.Volumes, v)
	}
	slices.Sort(d.Ports)
	slices.Sort(d.Volumes)
	if r.Manifest.Hub != nil {
		d.HubSource = r.Manifest.Hub.Recorded
	}
	return d, nil
}

// config is the image's configuration over those below it.
func (n *noun) config(r *recipe.Recipe) (dockerspec.DockerOCIImageConfig, error) {
	last := r.Stages[len(r.Stages)-1]
	var base dockerspec.DockerOCIImageConfig
	if last.From != "scratch" {
		below, err := recipe.Read(n.files(), last.From)
		if err != nil {
			return base, err
		}
		if base, err = n.config(below); err != nil {
			return base, err
		}
	}
	return last.Config(base)
}

func (n *noun) write(d detail) {
	line := func(english, spanish, value string) {
		if value != "" {
			fmt.Fprintf(n.docker.Out(), "%-16s %s\n", locale.Say(english, spanish), value)
		}
	}
	line("Name", "Nombre", strings.Join(append([]string{d.Name}, d.Aliases...), ", "))
	line("Description", "Descripción", d.Description)
	line("Licence", "Licencia", d.Licence)
	line("Made from", "Hecha sobre", d.From)
	line("Packages", "Paquetes", strings.Join(d.Packages, " "))
	line("Entry point", "Punto de entrada", strings.Join(d.Entrypoint, " "))
	line("Command", "Orden", strings.Join(d.Command, " "))
	line("Ports", "Puertos", strings.Join(d.Ports, ", "))
	line("Volumes", "Volúmenes", strings.Join(d.Volumes, ", "))
	line("Environment", "Entorno", strings.Join(d.Environment, " "))
	line("Runs as", "Se ejecuta como", d.RunsAs)
	line("Stop signal", "Señal de parada", d.StopSignal)
	line("Health check", "Salud", strings.Join(d.Health, " "))
	if d.ID != "" {
		line("In the engine", "En el motor", strings.Join(slices.DeleteFunc([]string{d.Version, mb(float64(d.Size) / 1e6), short(d.ID)}, func(s string) bool { return s == "" }), ", "))
	}
	if d.HubMB > 0 {
		line("On Docker Hub", "En Docker Hub", d.HubImage+", "+mb(d.HubMB)+" ("+d.HubSource+")")
	}
}
