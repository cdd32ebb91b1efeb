package compose

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func (t *tool) eventsCommand() *cobra.Command {
	var (
		asJSON       bool
		since, until string
	)
	cmd := &cobra.Command{
		Use:     "events [OPTIONS] [SERVICE...]",
		Short:   say("Receive real time events from containers", "Muestra en vivo lo que ocurre con los contenedores"),
		Example: "  berth compose events --json\n  berth compose events --since 1h --until 0s web",
		RunE: t.run(func(ctx context.Context, args []string) error {
			_, project, err := t.projectOrName(ctx, args)
			if err != nil {
				return err
			}
			return t.events(ctx, project, args, since, until, asJSON)
		}),
		ValidArgsFunction: t.completeServices,
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "Output events as a stream of json objects")
	f.StringVar(&since, "since", "", "Show all events created since timestamp")
	f.StringVar(&until, "until", "", "Stream events until this timestamp")
	return cmd
}

func (t *tool) events(ctx context.Context, project string, services []string, since, until string, asJSON bool) error {
	stream := t.docker.Client().Events(ctx, client.EventsListOptions{Filters: projectFilter(project), Since: since, Until: until})
	for {
		select {
		case err := <-stream.Err:
			if err == io.EOF {
				return nil
			}
			return err
		case e := <-stream.Messages:
			service := e.Actor.Attributes[labelService]
			if e.Type != "container" || e.Actor.Attributes[labelOneOff] == "True" || len(services) > 0 && !slices.Contains(services, service) {
				continue
			}
			attributes := map[string]string{}
			for k, v := range e.Actor.Attributes {
				if !strings.HasPrefix(k, "com.docker.compose.") {
					attributes[k] = v
				}
			}
			at := time.Unix(0, e.TimeNano)
			if asJSON {
				if err := writeJSON(t.docker.Out(), map[string]any{
					"time": at, "type": "container", "service": service, "id": e.Actor.ID, "action": e.Action, "attributes": attributes,
				}); err != nil {
					return err
				}
				continue
			}
			var list []string
			for _, k := range slices.Sorted(maps.Keys(attributes)) {
				list = append(list, k+"="+attributes[k])
			}
			fmt.Fprintf(t.docker.Out(), "%s container %s %s (%s)\n\n", at.Format("2006-01-02 15:04:05.000000"), e.Action, e.Actor.ID, strings.Join(list, ", "))
		}
	}
}
