package compose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/cli/cli/command/formatter"
	cliflags "github.com/docker/cli/cli/flags"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client/pkg/stringid"
	"github.com/spf13/cobra"
)

type psOptions struct {
	format, filter                 string
	all, quiet, byService, orphans bool
	noTrunc                        bool
	status                         []string
}

func (t *tool) psCommand() *cobra.Command {
	var o psOptions
	cmd := &cobra.Command{
		Use:   "ps [OPTIONS] [SERVICE...]",
		Short: say("List containers", "Lista los contenedores"),
		Example: `  berth compose ps
  berth compose ps -a --format json
  berth compose ps --status exited`,
		PreRunE: func(*cobra.Command, []string) error {
			if o.filter == "" {
				return nil
			}
			key, value, ok := strings.Cut(o.filter, "=")
			switch {
			case !ok:
				return errors.New("arguments to --filter should be in form KEY=VAL")
			case key != "status":
				return fmt.Errorf("unknown filter %s: the one there is is status", key)
			}
			o.status = append(o.status, value)
			return nil
		},
		RunE:              t.run(func(ctx context.Context, args []string) error { return t.ps(ctx, o, args) }),
		ValidArgsFunction: t.completeServices,
	}
	f := cmd.Flags()
	f.StringVar(&o.format, "format", "", cliflags.FormatHelp)
	f.StringVar(&o.filter, "filter", "", "Filter services by a property (supported filters: status)")
	f.StringArrayVar(&o.status, "status", nil, "Filter services by status. Values: [paused | restarting | removing | running | dead | created | exited]")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Only display IDs")
	f.BoolVar(&o.byService, "services", false, "Display services")
	f.BoolVar(&o.orphans, "orphans", true, "Include orphaned services (not declared by project)")
	f.BoolVarP(&o.all, "all", "a", false, "Show all stopped containers (including those created by the run command)")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "Don't truncate output")
	return cmd
}

func (t *tool) ps(ctx context.Context, o psOptions, services []string) error {
	a, project, err := t.projectOrName(ctx, services)
	if err != nil {
		return err
	}
	if a != nil && len(services) == 0 && !o.orphans {
		services = a.Project.ServiceNames()
	}
	all := o.all || len(o.status) > 0
	found, err := t.containers(ctx, project, selection{services: services, stopped: all, oneOff: all})
	if err != nil {
		return err
	}
	if len(o.status) > 0 {
		found = slices.DeleteFunc(found, func(c container.Summary) bool { return !slices.Contains(o.status, string(c.State)) })
	}
	out := t.docker.Out()
	switch {
	case o.quiet:
		for _, c := range found {
			fmt.Fprintln(out, c.ID)
		}
		return nil
	case o.byService:
		var names []string
		for _, c := range found {
			if s := c.Labels[labelService]; !slices.Contains(names, s) {
				names = append(names, s)
			}
		}
		fmt.Fprintln(out, strings.Join(names, "\n"))
		return nil
	}
	return writeContainers(formatter.Context{
		Output: out, Format: psFormat(cmp.Or(o.format, t.docker.ConfigFile().PsFormat)), Trunc: !o.noTrunc,
	}, found)
}

func psFormat(source string) formatter.Format {
	switch source {
	case "", formatter.TableFormatKey:
		return "table {{.Name}}\t{{.Image}}\t{{.Command}}\t{{.Service}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}"
	case formatter.RawFormatKey:
		return "container_id: {{.ID}}\nimage: {{.Image}}\ncommand: {{.Command}}\ncreated_at: {{.CreatedAt}}\nstate: {{- pad .State 1 0}}\n" +
			"status: {{- pad .Status 1 0}}\nnames: {{.Names}}\nlabels: {{- pad .Labels 1 0}}\nports: {{- pad .Ports 1 0}}\n"
	}
	return formatter.Format(source)
}

func writeContainers(ctx formatter.Context, list []container.Summary) error {
	head := containerRow{}
	head.Header = formatter.SubHeaderContext{
		"ID": "CONTAINER ID", "Name": "NAME", "Project": "PROJECT", "Service": "SERVICE", "Image": "IMAGE", "Command": "COMMAND",
		"CreatedAt": "CREATED AT", "RunningFor": "CREATED", "Ports": "PORTS", "State": "STATE", "Status": "STATUS", "Size": "SIZE", "Labels": "LABELS",
		"ExitCode": "EXIT CODE", "Health": "HEALTH", "Names": "NAMES", "Networks": "NETWORKS", "Mounts": "MOUNTS", "LocalVolumes": "LOCAL VOLUMES",
		"Engine": "ENGINE",
	}
	return ctx.Write(&head, func(format func(formatter.SubContext) error) error {
		for _, c := range list {
			if err := format(&containerRow{c: c, trunc: ctx.Trunc}); err != nil {
				return err
			}
		}
		return nil
	})
}

// containerRow is what templates of --format see; its methods are their fields.
type containerRow struct {
	formatter.HeaderContext
	trunc bool
	c     container.Summary
}

func (r *containerRow) MarshalJSON() ([]byte, error) { return formatter.MarshalJSON(r) }

func (r *containerRow) ID() string {
	if r.trunc {
		return stringid.TruncateID(r.c.ID)
	}
	return r.c.ID
}

func (r *containerRow) Name() string    { return nameOf(r.c) }
func (r *containerRow) Project() string { return r.c.Labels[labelProject] }
func (r *containerRow) Service() string { return r.c.Labels[labelService] }
func (r *containerRow) Image() string   { return r.c.Image }
func (r *containerRow) State() string   { return string(r.c.State) }
func (r *containerRow) Status() string  { return r.c.Status }
func (r *containerRow) Engine() string  { return r.c.Labels["com.docker.compose.engine"] }

func (r *containerRow) Names() string {
	if r.trunc {
		return nameOf(r.c)
	}
	return strings.Join(formatter.StripNamePrefix(r.c.Names), ",")
}

func (r *containerRow) Command() string {
	command := r.c.Command
	if r.trunc {
		command = formatter.Ellipsis(command, 20)
	}
	return strconv.Quote(command)
}

func (r *containerRow) CreatedAt() string { return time.Unix(r.c.Created, 0).String() }

func (r *containerRow) RunningFor() string {
	return units.HumanDuration(time.Since(time.Unix(r.c.Created, 0))) + " ago"
}

var exited = regexp.MustCompile(`^(?:Exited|Dead) \((\d+)\)`)

// ExitCode comes out of the status text: one question for all containers is
// enough, however many there are.
func (r *containerRow) ExitCode() int {
	if m := exited.FindStringSubmatch(r.c.Status); m != nil {
		n, _ := strconv.Atoi(m[1]) // the pattern has digits alone
		return n
	}
	return 0
}

func (r *containerRow) Health() string {
	if r.c.State != container.StateRunning {
		return ""
	}
	if h := r.c.Health; h != nil && h.Status != container.NoHealthcheck {
		return string(h.Status)
	}
	for text, health := range map[string]string{"(healthy)": "healthy", "(unhealthy)": "unhealthy", "(health: starting)": "starting"} {
		if strings.HasSuffix(r.c.Status, text) {
			return health
		}
	}
	return ""
}

// publisher is one port, as --format json shows it.
type publisher struct {
	URL           string
	TargetPort    int
	PublishedPort int
	Protocol      string
}

func (p publisher) String() string {
	return fmt.Sprintf("%d/%s -> %s", p.TargetPort, p.Protocol, net.JoinHostPort(p.URL, strconv.Itoa(p.PublishedPort)))
}

func publishers(c container.Summary) []publisher {
	list := make([]publisher, 0, len(c.Ports))
	for _, p := range c.Ports {
		ip := ""
		if p.IP.IsValid() {
			ip = p.IP.String()
		}
		list = append(list, publisher{ip, int(p.PrivatePort), int(p.PublicPort), p.Type})
	}
	slices.SortStableFunc(list, func(a, b publisher) int { return cmp.Compare(a.TargetPort, b.TargetPort) })
	return list
}

func (r *containerRow) Publishers() []publisher { return publishers(r.c) }
func (r *containerRow) Ports() string           { return formatter.DisplayablePorts(r.c.Ports) }

func (r *containerRow) Labels() string {
	var list []string
	for k, v := range r.c.Labels {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

// Label is one label by its name: {{.Label "tier"}}.
func (r *containerRow) Label(name string) string { return r.c.Labels[name] }

func (r *containerRow) Mounts() string {
	var list []string
	for _, m := range r.c.Mounts {
		name := cmp.Or(m.Name, m.Source)
		if r.trunc {
			name = formatter.Ellipsis(name, 15)
		}
		list = append(list, name)
	}
	return strings.Join(list, ",")
}

func (r *containerRow) LocalVolumes() string {
	n := 0
	for _, m := range r.c.Mounts {
		if m.Driver == "local" {
			n++
		}
	}
	return strconv.Itoa(n)
}

func (r *containerRow) Networks() string {
	var list []string
	if r.c.NetworkSettings != nil {
		for name := range r.c.NetworkSettings.Networks {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

func (r *containerRow) Size() string {
	size := units.HumanSizeWithPrecision(float64(r.c.SizeRw), 3)
	if r.c.SizeRootFs > 0 {
		size += " (virtual " + units.HumanSizeWithPrecision(float64(r.c.SizeRootFs), 3) + ")"
	}
	return size
}
