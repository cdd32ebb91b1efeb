// Package build is the command `berth build`, and how images are built wherever
// the command line has to: BuildKit's client inside the program, with no
// plugin. It gathers what a person asks for, sends it to the daemon's builder,
// and shows how it goes.
package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	units "github.com/docker/go-units"
	buildctl "github.com/moby/buildkit/cmd/buildctl/build"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/util/progress/progressui"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/locale"
)

var say = locale.Say

// options are the flags of `berth build`, as docker build names them.
type options struct {
	Target
	args, labels, contexts                  []string // name=value
	secrets                                 []string // id=name[,src=file|env=VARIABLE]
	shmSize                                 string
	progress, iidFile, metadataFile         string
	quiet, load, check, shell, hasNoMeaning bool
}

// New gives the command.
func New(docker command.Cli) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "build [OPTIONS] PATH | URL | -",
		Short: say("Build an image from a Dockerfile", "Construye una imagen a partir de un Dockerfile"),
		Example: `  berth build -t web .
  berth build --target test --build-arg VERSION=2 .
  berth build -o out .                        # files instead of an image
  berth build --secret id=token,src=tok .
  berth build --shell-on-failure .            # look around in the step that failed
  berth build -t web https://example.org/repo.git#main:web`,
		Args: cli.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Context = args[0]
			return run(cmd.Context(), docker, o)
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&o.Tags, "tag", "t", nil, say("Name of the image, name:tag", "Nombre de la imagen, nombre:etiqueta"))
	f.StringVarP(&o.File, "file", "f", "", say("Path of the Dockerfile (default PATH/Dockerfile); - reads it from stdin", "Ruta del Dockerfile (por omisión PATH/Dockerfile); - lo lee de la entrada"))
	f.StringArrayVar(&o.args, "build-arg", nil, say("Value of an ARG, name=value; without a value the environment's", "Valor de un ARG, nombre=valor; sin valor, el del entorno"))
	f.StringArrayVar(&o.labels, "label", nil, say("Label of the image, key=value", "Etiqueta (label) de la imagen, clave=valor"))
	f.StringArrayVar(&o.contexts, "build-context", nil, say("Further context, name=path, URL, docker-image://… or oci-layout://…", "Otro contexto, nombre=ruta, URL, docker-image://… u oci-layout://…"))
	f.StringVar(&o.Stage, "target", "", say("Stage to build", "Etapa que se construye"))
	f.StringSliceVar(&o.Platforms, "platform", nil, say("Platforms to build for, linux/amd64,…", "Plataformas para las que se construye, linux/amd64,…"))
	f.BoolVar(&o.NoCache, "no-cache", false, say("Use nothing of the cache", "No usar nada de la caché"))
	f.StringSliceVar(&o.NoCacheFilter, "no-cache-filter", nil, say("Stages that use nothing of the cache", "Etapas que no usan nada de la caché"))
	f.BoolVar(&o.Pull, "pull", false, say("Ask registries for newer base images", "Preguntar a los registros por imágenes base más nuevas"))
	f.StringVar(&o.Network, "network", "", say("Network of RUN: default, none, host", "Red de RUN: default, none, host"))
	f.StringSliceVar(&o.Hosts, "add-host", nil, say("Further line of /etc/hosts, name:address", "Otra línea de /etc/hosts, nombre:dirección"))
	f.StringVar(&o.shmSize, "shm-size", "", say("Size of /dev/shm, 64m", "Tamaño de /dev/shm, 64m"))
	f.StringArrayVar(&o.Ulimits, "ulimit", nil, say("Limit of processes, name=soft[:hard]", "Límite de los procesos, nombre=blando[:duro]"))
	f.StringVar(&o.CgroupParent, "cgroup-parent", "", say("Parent cgroup of steps", "Cgroup padre de los pasos"))
	f.StringArrayVar(&o.secrets, "secret", nil, say("Secret for RUN, id=name[,src=file|env=VARIABLE]", "Secreto para RUN, id=nombre[,src=archivo|env=VARIABLE]"))
	f.StringArrayVar(&o.SSH, "ssh", nil, say("SSH agent or keys for RUN, default|id[=socket|key]", "Agente SSH o claves para RUN, default|id[=socket|clave]"))
	f.StringArrayVarP(&o.Outputs, "output", "o", nil, say("Where the result goes: a folder, - (tar), or type=image|oci|docker|tar|local,dest=…", "Adónde va el resultado: una carpeta, - (tar) o type=image|oci|docker|tar|local,dest=…"))
	f.StringArrayVar(&o.CacheFrom, "cache-from", nil, say("Cache to read, type=registry|local,…", "Caché que se lee, type=registry|local,…"))
	f.StringArrayVar(&o.CacheTo, "cache-to", nil, say("Cache to write, type=inline|registry|local,…", "Caché que se escribe, type=inline|registry|local,…"))
	f.StringSliceVar(&o.Allow, "allow", nil, say("Allow network.host or security.insecure", "Permitir network.host o security.insecure"))
	f.StringArrayVar(&o.Attests, "attest", nil, say("Attestation, type=provenance|sbom,…", "Atestación, type=provenance|sbom,…"))
	f.StringVar(&o.Provenance, "provenance", "", say("Provenance attestation: false, min or max", "Atestación de procedencia: false, min o max"))
	f.StringVar(&o.SBOM, "sbom", "", say("SBOM attestation: true or false", "Atestación SBOM: true o false"))
	f.BoolVar(&o.Push, "push", false, say("Push the image to its registry", "Enviar la imagen a su registro"))
	f.BoolVar(&o.load, "load", false, say("Store the image in the engine (the default)", "Guardar la imagen en el motor (por omisión)"))
	f.BoolVar(&o.check, "check", false, say("Look for mistakes in the Dockerfile and build nothing", "Buscar errores en el Dockerfile sin construir nada"))
	f.BoolVarP(&o.quiet, "quiet", "q", false, say("Print the image's id alone", "Escribir solo el identificador de la imagen"))
	f.StringVar(&o.progress, "progress", os.Getenv("BUILDKIT_PROGRESS"), say("How progress is shown: auto, plain, tty, rawjson, quiet, none", "Cómo se muestra el avance: auto, plain, tty, rawjson, quiet, none"))
	f.StringVar(&o.iidFile, "iidfile", "", say("File for the image's id", "Archivo para el identificador de la imagen"))
	f.StringVar(&o.metadataFile, "metadata-file", "", say("File for what the build tells of its result", "Archivo para lo que la construcción dice de su resultado"))
	f.BoolVar(&o.shell, "shell-on-failure", false, say("Open a shell in the step that fails, with its mounts", "Abre un intérprete en el paso que falla, con sus montajes"))
	f.BoolVar(&o.hasNoMeaning, "rm", true, say("Has no meaning: nothing is left behind", "No tiene efecto: no queda nada"))
	f.BoolVar(&o.hasNoMeaning, "force-rm", true, say("Has no meaning: nothing is left behind", "No tiene efecto: no queda nada"))
	_ = f.MarkHidden("rm")
	_ = f.MarkHidden("force-rm")
	complete(cmd)
	return cmd
}

// modes are the ways in which progress is shown.
var modes = []string{"auto", "plain", "tty", "rawjson", "quiet", "none"}

func run(ctx context.Context, docker command.Cli, o options) error {
	if err := o.describe(); err != nil {
		return err
	}
	mode := progressui.DisplayMode(o.progress)
	switch {
	case o.quiet || o.check || o.progress == "none":
		mode = progressui.QuietMode
	case o.shell && (mode == progressui.AutoMode || mode == progressui.DefaultMode):
		mode = progressui.PlainMode // the shell has the terminal
	}
	results, err := Batch{Targets: []Target{o.Target}, Check: o.check, Shell: o.shell, Out: docker.Err(), Mode: mode}.Run(ctx, docker)
	var status cli.StatusError
	switch {
	case errors.As(err, &status):
		return err
	case err != nil:
		Explain(docker.Err(), err)
		return fmt.Errorf(say("build failed: %w", "la construcción falló: %w"), err)
	case o.check:
		return nil
	}
	return o.report(docker, results[o.Name])
}

// describe makes the description of the image from words of the command line.
func (o *options) describe() (err error) {
	if o.progress != "" && !slices.Contains(modes, o.progress) {
		return fmt.Errorf(say("--progress %s: use one of %s", "--progress %s: use uno de %s"), o.progress, strings.Join(modes, ", "))
	}
	o.Args, o.Labels, o.Contexts = pairs(o.args, os.LookupEnv), pairs(o.labels, nil), map[string]string{}
	for _, c := range o.contexts {
		name, at, ok := strings.Cut(c, "=")
		if !ok {
			return fmt.Errorf("--build-context %s: want name=value", c)
		}
		o.Contexts[name] = at
	}
	if o.shmSize != "" {
		if o.ShmBytes, err = units.RAMInBytes(o.shmSize); err != nil {
			return fmt.Errorf("--shm-size: %w", err)
		}
	}
	if len(o.secrets) > 0 {
		if o.Secrets, err = buildctl.ParseSecret(o.secrets); err != nil {
			return fmt.Errorf("--secret: %w", err)
		}
	}
	if o.load && len(o.Outputs) > 0 {
		o.Outputs = append(o.Outputs, "type=image")
	}
	return nil
}

// pairs reads name=value words; find gives a value that is missing, or leaves the name out.
func pairs(list []string, find func(string) (string, bool)) map[string]string {
	m := map[string]string{}
	for _, text := range list {
		k, v, ok := strings.Cut(text, "=")
		if !ok && find != nil {
			if v, ok = find(k); !ok {
				continue
			}
		}
		m[k] = v
	}
	return m
}

// report prints and writes what the build tells of its result.
func (o options) report(docker command.Cli, resp map[string]string) error {
	id := resp[exptypes.ExporterImageConfigDigestKey]
	if id == "" {
		id = resp[exptypes.ExporterImageDigestKey]
	}
	if o.quiet && id != "" {
		fmt.Fprintln(docker.Out(), id)
	}
	if o.iidFile != "" {
		if err := os.WriteFile(o.iidFile, []byte(id), 0o666); err != nil {
			return err
		}
	}
	if o.metadataFile == "" {
		return nil
	}
	b, err := json.MarshalIndent(resp, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.metadataFile, append(b, '\n'), 0o666)
}
