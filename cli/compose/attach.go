package compose

import (
	"context"

	dockercontainer "github.com/docker/cli/cli/command/container"
	"github.com/spf13/cobra"
)

func (t *tool) attachCommand() *cobra.Command {
	var (
		o     dockercontainer.AttachOptions
		index int
	)
	cmd := &cobra.Command{
		Use:   "attach [OPTIONS] SERVICE",
		Short: say("Attach local standard input, output, and error streams to a service's running container", "Conecta la entrada y la salida a un contenedor en marcha de un servicio"),
		Args:  cobra.ExactArgs(1),
		RunE: t.run(func(ctx context.Context, args []string) error {
			if err := t.noDryRun("attach"); err != nil {
				return err
			}
			project, err := t.projectName(ctx)
			if err != nil {
				return err
			}
			c, err := t.one(ctx, project, args[0], index, false, false)
			if err != nil {
				return err
			}
			return exitStatus(dockercontainer.RunAttach(ctx, t.docker, c.ID, &o))
		}),
		ValidArgsFunction: t.completeServices,
	}
	f := cmd.Flags()
	f.IntVar(&index, "index", 0, "index of the container if service has multiple replicas.")
	f.StringVar(&o.DetachKeys, "detach-keys", "", "Override the key sequence for detaching from a container.")
	f.BoolVar(&o.NoStdin, "no-stdin", false, "Do not attach STDIN")
	f.BoolVar(&o.Proxy, "sig-proxy", true, "Proxy all received signals to the process")
	return cmd
}
