package compose

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// Labels by which docker compose knows what is its own.
const (
	labelProject = "com.docker.compose.project"
	labelService = "com.docker.compose.service"
	labelNumber  = "com.docker.compose.container-number"
	labelOneOff  = "com.docker.compose.oneoff"
	labelHash    = "com.docker.compose.config-hash"
	labelFiles   = "com.docker.compose.project.config_files"
)

// selection says which containers of a project are looked for.
type selection struct {
	services []string // none means all
	stopped  bool     // also those that do not run
	oneOff   bool     // also those of `run`
	index    int      // only this number; 0: any
}

func projectFilter(project string) client.Filters {
	return make(client.Filters).Add("label", labelProject+"="+project)
}

// containers lists a project's containers, by name.
func (t *tool) containers(ctx context.Context, project string, s selection) ([]container.Summary, error) {
	f := projectFilter(strings.ToLower(project)).Add("label", labelHash)
	if len(s.services) == 1 {
		f.Add("label", labelService+"="+s.services[0])
	}
	if !s.oneOff {
		f.Add("label", labelOneOff+"=False")
	}
	if s.index > 0 {
		f.Add("label", labelNumber+"="+strconv.Itoa(s.index))
	}
	list, err := t.docker.Client().ContainerList(ctx, client.ContainerListOptions{All: s.stopped, Filters: f})
	if err != nil {
		return nil, err
	}
	found := list.Items
	if len(s.services) > 1 {
		found = slices.DeleteFunc(found, func(c container.Summary) bool { return !slices.Contains(s.services, c.Labels[labelService]) })
	}
	slices.SortFunc(found, func(a, b container.Summary) int { return cmp.Compare(nameOf(a), nameOf(b)) })
	return found, nil
}

// one gives a service's container with an index, or its first.
func (t *tool) one(ctx context.Context, project, service string, index int, stopped, oneOff bool) (container.Summary, error) {
	found, err := t.containers(ctx, project, selection{services: []string{service}, index: index, stopped: stopped, oneOff: oneOff})
	if err != nil {
		return container.Summary{}, err
	}
	if len(found) == 0 {
		if err := t.mustKnow(ctx, project, service); err != nil {
			return container.Summary{}, err
		}
		text := fmt.Sprintf(say("service %q is not running", "el servicio %q no está en marcha"), service)
		if index > 0 {
			text = fmt.Sprintf(say("service %q is not running container #%d", "el servicio %q no tiene en marcha el contenedor n.º %d"), service, index)
		}
		return container.Summary{}, fmt.Errorf("%s\n\n%s", text, say(
			"See what runs: berth compose ps -a\nStart it: berth compose up -d "+service,
			"Vea qué se ejecuta: berth compose ps -a\nInícielo: berth compose up -d "+service))
	}
	slices.SortStableFunc(found, func(a, b container.Summary) int {
		if x, y := isOneOff(a), isOneOff(b); x != y {
			if x {
				return 1
			}
			return -1
		}
		return cmp.Compare(number(a), number(b))
	})
	return found[0], nil
}

func isOneOff(c container.Summary) bool { return c.Labels[labelOneOff] == "True" }

func number(c container.Summary) int {
	n, _ := strconv.Atoi(c.Labels[labelNumber]) // no number is 0: first
	return n
}

// nameOf is a container's own name: links of others have a slash within.
func nameOf(c container.Summary) string {
	for _, n := range c.Names {
		n = strings.TrimPrefix(n, "/")
		if !strings.Contains(n, "/") {
			return n
		}
	}
	if len(c.ID) > 12 {
		return c.ID[:12]
	}
	return c.ID
}

// shortName is what stands before a line of log: the name without the project,
// unless a person chose it.
func shortName(c container.Summary) string { return shortNameOf(nameOf(c), c.Labels) }

func shortNameOf(name string, labels map[string]string) string {
	for _, sep := range []string{"-", "_"} {
		short := labels[labelService] + sep + labels[labelNumber]
		if name == labels[labelProject]+sep+short {
			return short
		}
	}
	return name
}

// each calls fn for every element, at most limit at a time, and gives the first error.
func each[T any](ctx context.Context, limit int, list []T, fn func(context.Context, int, T) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		wg    sync.WaitGroup
		once  sync.Once
		first error
		slots = make(chan struct{}, limit)
	)
	for i, v := range list {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := fn(ctx, i, v); err != nil {
				once.Do(func() {
					first = err
					cancel()
				})
			}
		})
	}
	wg.Wait()
	return first
}
