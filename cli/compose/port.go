package compose

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

func (t *tool) portCommand() *cobra.Command {
	var (
		protocol string
		index    int
	)
	cmd := &cobra.Command{
		Use:               "port [OPTIONS] SERVICE [PRIVATE_PORT]",
		Short:             say("List port mappings or print the public port for a specific mapping for the service", "Lista los puertos de un servicio, o dice el público de uno privado"),
		Example:           "  berth compose port web\n  berth compose port web 80\n  berth compose port --protocol udp dns 53",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: t.completeServices,
	}
	cmd.RunE = t.run(func(ctx context.Context, args []string) error {
		wantedPort, wantedProtocol := 0, strings.ToLower(protocol)
		if len(args) > 1 {
			n, err := strconv.ParseUint(args[1], 10, 16)
			if err != nil {
				return fmt.Errorf("%q is no port: %w", args[1], err)
			}
			wantedPort = int(n)
		} else if !cmd.Flags().Changed("protocol") {
			wantedProtocol = ""
		}
		project, err := t.projectName(ctx)
		if err != nil {
			return err
		}
		c, err := t.one(ctx, project, args[0], index, false, false)
		if err != nil {
			return err
		}
		var there []string
		for _, p := range publishers(c) {
			there = append(there, fmt.Sprintf("%d/%s", p.TargetPort, p.Protocol))
			if wantedProtocol != "" && p.Protocol != wantedProtocol || wantedPort != 0 && p.TargetPort != wantedPort {
				continue
			}
			public := net.JoinHostPort(p.URL, strconv.Itoa(p.PublishedPort))
			if wantedPort != 0 {
				fmt.Fprintln(t.docker.Out(), public)
				return nil
			}
			fmt.Fprintf(t.docker.Out(), "%d/%s -> %s\n", p.TargetPort, p.Protocol, public)
		}
		if wantedPort != 0 {
			return fmt.Errorf("no port %d/%s for container %s: %s", wantedPort, wantedProtocol, nameOf(c), strings.Join(there, ", "))
		}
		return nil
	})
	cmd.Flags().StringVar(&protocol, "protocol", "tcp", "tcp or udp")
	cmd.Flags().IntVar(&index, "index", 0, "Index of the container if service has multiple replicas")
	return cmd
}
