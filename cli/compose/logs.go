package compose

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

type logsOptions struct {
	follow, noColor, noPrefix, timestamps bool
	index                                 int
	tail, since, until                    string
}

func (t *tool) logsCommand() *cobra.Command {
	var o logsOptions
	cmd := &cobra.Command{
		Use:   "logs [OPTIONS] [SERVICE...]",
		Short: say("View output from containers", "Muestra la salida de los contenedores"),
		Example: `  berth compose logs -f
  berth compose logs --since 10m --tail 100 web`,
		PreRunE: func(_ *cobra.Command, args []string) error {
			if o.index > 0 && len(args) != 1 {
				return errors.New("--index requires one service to be selected")
			}
			return nil
		},
		RunE:              t.run(func(ctx context.Context, args []string) error { return t.logs(ctx, o, args) }),
		ValidArgsFunction: t.completeServices,
	}
	f := cmd.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "Follow log output")
	f.IntVar(&o.index, "index", 0, "index of the container if service has multiple replicas")
	f.StringVar(&o.since, "since", "", "Show logs since timestamp (e.g. 2013-01-02T13:23:37Z) or relative (e.g. 42m for 42 minutes)")
	f.StringVar(&o.until, "until", "", "Show logs before a timestamp (e.g. 2013-01-02T13:23:37Z) or relative (e.g. 42m for 42 minutes)")
	f.BoolVar(&o.noColor, "no-color", false, "Produce monochrome output")
	f.BoolVar(&o.noPrefix, "no-log-prefix", false, "Don't print prefix in logs")
	f.BoolVarP(&o.timestamps, "timestamps", "t", false, "Show timestamps")
	f.StringVarP(&o.tail, "tail", "n", "all", "Number of lines to show from the end of the logs for each container")
	return cmd
}

func (t *tool) logs(ctx context.Context, o logsOptions, services []string) error {
	a, project, err := t.projectOrName(ctx, services)
	if err != nil {
		return err
	}
	if a != nil && len(services) == 0 {
		for name, s := range a.Project.Services {
			if s.Attach == nil || *s.Attach {
				services = append(services, name)
			}
		}
		if len(services) == 0 {
			return nil
		}
	}
	p := newPrinter(t.docker.Out(), t.color && !o.noColor, !o.noPrefix, false)
	if o.follow {
		return t.follow(ctx, project, services, p, o)
	}
	found, err := t.containers(ctx, project, selection{services: services, stopped: true, index: o.index})
	if err != nil {
		return err
	}
	for _, c := range found {
		p.register(shortName(c))
	}
	return each(ctx, t.limit(), found, func(ctx context.Context, _ int, c summary) error {
		return t.copyLog(ctx, c.ID, shortName(c), p, o)
	})
}

// follow shows what is written from now on too, by containers that start later as well,
// until the last of them has ended for good.
func (t *tool) follow(ctx context.Context, project string, services []string, p *printer, o logsOptions) error {
	m := t.newMonitor(project, services)
	m.index = o.index
	streams := newStreams(func(ctx context.Context, c tracked, since string) error {
		each := o
		if since != "" { // a further run: what came before was shown
			each.since, each.tail = since, "all"
		}
		return t.copyLog(ctx, c.id, c.short, p, each)
	})
	m.started = func(c tracked, since string) { streams.open(ctx, c, since) }
	m.exited = func(c tracked, code int, restarting bool) {
		streams.drain(c.id)
		p.status(c.short, exitText(code, restarting))
	}
	m.listed = func(list []tracked) {
		for _, c := range list {
			p.register(c.short)
		}
		for _, c := range list {
			streams.open(ctx, c, "")
		}
	}
	err := m.watch(ctx)
	return errors.Join(err, streams.wait(ctx))
}

// copyLog writes one container's log to p. A driver that cannot be read is told of and is no failure.
func (t *tool) copyLog(ctx context.Context, id, name string, p *printer, o logsOptions) error {
	full, err := t.docker.Client().ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if errdefs.IsNotFound(err) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	r, err := t.docker.Client().ContainerLogs(ctx, id, client.ContainerLogsOptions{
		ShowStdout: true, ShowStderr: true, Follow: o.follow, Since: o.since, Until: o.until, Tail: o.tail, Timestamps: o.timestamps,
	})
	if err != nil {
		if errdefs.IsNotImplemented(err) {
			t.warn("%s: %v", name, err)
			return nil
		}
		return err
	}
	defer r.Close()
	// Two writers: a line of one stream is not cut by the other.
	stdout := &lines{emit: func(l string) { p.line(name, l) }}
	stderr := &lines{emit: stdout.emit}
	if full.Container.Config != nil && full.Container.Config.Tty {
		_, err = io.Copy(stdout, r)
	} else {
		_, err = stdcopy.StdCopy(stdout, stderr, r)
	}
	stdout.close()
	stderr.close()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// drainLimit is how long the last lines of an ended container may be on their way.
const drainLimit = 5 * time.Second
