package compose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	dockercli "github.com/docker/cli/cli"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/remote"
	"github.com/berth-project/berth/core/app"
)

type upOptions struct {
	makeOptions
	detach, noStart          bool
	abortOnExit, abortOnFail bool
	exitCodeFrom             string
	noColor, noPrefix        bool
	attachDeps               bool
	attach, noAttach         []string
	timestamps               bool
	wait                     bool
	waitTimeout              int
	watch, menu              bool
}

func (t *tool) upCommand() *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up [OPTIONS] [SERVICE...]",
		Short: say("Create and start containers", "Crea y arranca los contenedores"),
		Long: say(`Create and start containers.

The daemon plans and does the work: it goes on when this command is killed, and
the application stays as it was wanted until it is changed or taken down.`,
			`Crea y arranca los contenedores.

El demonio planifica y hace el trabajo: sigue aunque esta orden muera, y la
aplicación queda como se quiso hasta que se cambie o se retire.`),
		Example: `  berth compose up
  berth compose up -d --wait
  berth compose up --scale worker=3 --remove-orphans
  berth compose up --exit-code-from tests`,
		PreRunE:           func(*cobra.Command, []string) error { return o.check() },
		ValidArgsFunction: t.completeServices,
	}
	cmd.RunE = t.run(func(ctx context.Context, args []string) error { return t.up(ctx, cmd, &o, args) })
	f := cmd.Flags()
	f.BoolVarP(&o.detach, "detach", "d", false, "Detached mode: Run containers in the background")
	f.BoolVar(&o.build, "build", false, "Build images before starting containers")
	f.BoolVar(&o.noBuild, "no-build", false, "Don't build an image, even if it's policy")
	f.StringVar(&o.pull, "pull", "policy", `Pull image before running ("always"|"missing"|"never")`)
	f.BoolVar(&o.removeOrphans, "remove-orphans", truth(envOf("COMPOSE_REMOVE_ORPHANS")), "Remove containers for services not defined in the Compose file")
	f.StringArrayVar(&o.scale, "scale", nil, "Scale SERVICE to NUM instances. Overrides the `scale` setting in the Compose file if present.")
	f.BoolVar(&o.noColor, "no-color", false, "Produce monochrome output")
	f.BoolVar(&o.noPrefix, "no-log-prefix", false, "Don't print prefix in logs")
	f.BoolVar(&o.forceRecreate, "force-recreate", false, "Recreate containers even if their configuration and image haven't changed")
	f.BoolVar(&o.noRecreate, "no-recreate", false, "If containers already exist, don't recreate them. Incompatible with --force-recreate.")
	f.BoolVar(&o.noStart, "no-start", false, "Don't start the services after creating them")
	f.BoolVar(&o.abortOnExit, "abort-on-container-exit", false, "Stops all containers if any container was stopped. Incompatible with -d")
	f.BoolVar(&o.abortOnFail, "abort-on-container-failure", false, "Stops all containers if any container exited with failure. Incompatible with -d")
	f.StringVar(&o.exitCodeFrom, "exit-code-from", "", "Return the exit code of the selected service container. Implies --abort-on-container-exit")
	f.IntVarP(&o.timeout, "timeout", "t", 0, "Use this timeout in seconds for container shutdown when attached or when containers are already running")
	f.BoolVar(&o.timestamps, "timestamps", false, "Show timestamps")
	f.BoolVar(&o.noDeps, "no-deps", false, "Don't start linked services")
	f.BoolVar(&o.recreateAll, "always-recreate-deps", false, "Recreate dependent containers. Incompatible with --no-recreate.")
	f.BoolVarP(&o.renewVolumes, "renew-anon-volumes", "V", false, "Recreate anonymous volumes instead of retrieving data from the previous containers")
	f.BoolVar(&t.quietPull, "quiet-pull", false, "Pull without printing progress information")
	f.BoolVar(&o.quietBuild, "quiet-build", false, "Suppress the build output")
	f.StringArrayVar(&o.attach, "attach", nil, "Restrict attaching to the specified services. Incompatible with --attach-dependencies.")
	f.StringArrayVar(&o.noAttach, "no-attach", nil, "Do not attach (stream logs) to the specified services")
	f.BoolVar(&o.attachDeps, "attach-dependencies", false, "Automatically attach to log output of dependent services")
	f.BoolVar(&o.wait, "wait", false, "Wait for services to be running|healthy. Implies detached mode.")
	f.IntVar(&o.waitTimeout, "wait-timeout", 0, "Maximum duration in seconds to wait for the project to be running|healthy")
	f.BoolVarP(&o.watch, "watch", "w", false, "Watch source code and rebuild/refresh containers when files are updated.")
	f.BoolVar(&o.menu, "menu", false, "Enable interactive shortcuts when running attached. Incompatible with --detach. Can also be enable/disable by setting COMPOSE_MENU environment var.")
	f.BoolVarP(&o.yes, "yes", "y", false, `Assume "yes" as answer to all prompts and run non-interactively`)
	f.SetNormalizeFunc(renames(map[string]string{"y": "yes"}))
	return cmd
}

func (o *upOptions) check() error {
	if err := o.makeOptions.check(); err != nil {
		return err
	}
	if o.exitCodeFrom != "" && !o.abortOnFail {
		o.abortOnExit = true
	}
	attached := o.attachDeps || o.abortOnExit || o.abortOnFail || len(o.attach) > 0 || o.watch
	for _, rule := range []struct {
		bad  bool
		text string
	}{
		{o.waitTimeout < 0, "--wait-timeout must be a non-negative integer"},
		{o.abortOnExit && o.abortOnFail, "--abort-on-container-failure cannot be combined with --abort-on-container-exit"},
		{o.wait && attached, "--wait cannot be combined with --abort-on-container-exit, --abort-on-container-failure, --attach, --attach-dependencies or --watch"},
		{o.detach && attached, "--detach cannot be combined with --abort-on-container-exit, --abort-on-container-failure, --attach, --attach-dependencies or --watch"},
		{len(o.attach) > 0 && o.attachDeps, "cannot combine --attach and --attach-dependencies"},
		{o.noBuild && o.watch, "--no-build and --watch are incompatible"},
		{o.menu, "--menu is not supported: press Ctrl+C to stop, and use `compose watch` and `compose logs` beside"},
		{truth(envOf("COMPOSE_IGNORE_ORPHANS")) && o.removeOrphans, "cannot combine COMPOSE_IGNORE_ORPHANS and --remove-orphans"},
	} {
		if rule.bad {
			return errors.New(rule.text)
		}
	}
	o.detach = o.detach || o.wait
	return nil
}

func (t *tool) up(ctx context.Context, cmd *cobra.Command, o *upOptions, services []string) error {
	d, a, err := t.document(ctx, services)
	if err != nil {
		return err
	}
	if len(a.Project.Services) == 0 && !t.all {
		return errors.New("no service selected: " + say("every service of the file belongs to a profile; see --profile", "todos los servicios del fichero son de algún perfil; vea --profile"))
	}
	if o.exitCodeFrom != "" {
		if err := known(a, []string{o.exitCodeFrom}); err != nil {
			return err
		}
	}
	p, err := o.policy(t, cmd, a, services)
	if err != nil {
		return err
	}
	p.NoStart, p.Wait, p.WaitTimeout = o.noStart, o.wait, o.waitTimeout
	if err := t.buildFirst(ctx, &o.makeOptions, a, services, &p); err != nil {
		return err
	}
	if o.detach || o.noStart || t.dryRun {
		return t.apply(ctx, "up", d, a, p)
	}
	to, err := o.attachTo(a, services)
	if err != nil {
		return err
	}
	u := &session{t: t, o: o, document: d, services: services, attach: to, timeout: p.Timeout, there: map[string]tracked{}, p: newPrinter(t.docker.Out(), t.color && !o.noColor, !o.noPrefix, o.timestamps)}
	if o.watch {
		if u.watcher, err = t.newWatcher(a, d, services, u.p); err != nil {
			return err
		}
	}
	return u.run(ctx, app.ApplyRequest{Document: d, Policy: p, Auth: t.auths(a)})
}

// attachTo gives the services whose output is shown.
func (o *upOptions) attachTo(a *app.App, services []string) ([]string, error) {
	var to []string
	switch {
	case len(o.attach) > 0:
		for _, s := range o.attach {
			if _, ok := a.Project.Services[s]; !ok {
				return nil, fmt.Errorf("cannot attach to services not included in up: %s", s)
			}
		}
		to = slices.Clone(o.attach)
	default:
		names := services
		if len(services) == 0 || o.attachDeps {
			names = a.Project.ServiceNames()
		}
		for _, name := range names {
			if s, ok := a.Project.Services[name]; ok && (s.Attach == nil || *s.Attach) {
				to = append(to, name)
			}
		}
	}
	return slices.DeleteFunc(to, func(s string) bool { return slices.Contains(o.noAttach, s) }), nil
}

// session is an attached up: the operation, then the output of its containers
// until they have all ended.
//
//	applying ──applied──> attached ──all ended──> over
//	    │                    │
//	    └──Ctrl-C, an exit───┴──> stopping ──Ctrl-C──> killing ──> over
type session struct {
	t        *tool
	o        *upOptions
	document app.Document
	services []string // named on the command line
	attach   []string
	timeout  *int     // seconds a stop may take; nil: the services' own
	watcher  *watcher // nil without --watch
	p        *printer

	mu       sync.Mutex
	there    map[string]tracked // containers that were there before, by name
	shown    []string           // short names of those whose output is shown
	telling  bool               // "Attaching to" was said: progress makes way for output
	stopping bool
	code     int
	coded    bool // code is that of --exit-code-from
	aborted  chan struct{}
}

func (u *session) run(ctx context.Context, r app.ApplyRequest) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)
	// What is begun here is ended here: the first signal stops the
	// containers, and only then does the command leave.
	var watches sync.WaitGroup
	defer watches.Wait()
	life, leave := context.WithCancel(context.WithoutCancel(ctx))
	defer leave()
	u.aborted = make(chan struct{})
	m, logs := u.monitor(life)
	watching := make(chan error, 1)
	go func() { watching <- m.watch(life) }()
	select {
	case <-m.ready:
	case err := <-watching:
		return err
	}

	applying, stopApplying := context.WithCancel(life)
	defer stopApplying()
	u.t.screen.begin("up")
	applied := make(chan error, 1)
	go func() {
		_, err := u.t.operate(applying, func(ctx context.Context, w remote.Watch) (app.Result, error) { return u.t.remote().Apply(ctx, r, w) }, func(p app.Progress) {
			if p.Action == app.Start && p.Kind == app.KindContainer && p.Status == app.Done && p.Container != "" {
				m.expect(p.Container)
			}
			u.show(p)
		})
		applied <- err
	}()
	interrupted := ctx.Done()
	var applyErr error
	for over := false; !over; {
		select {
		case err := <-applied:
			applied = nil
			u.tell(err == nil)
			if err != nil && !u.isStopping() {
				leave()
				<-watching
				return errors.Join(err, logs.wait(ctx))
			}
			applyErr = err
			if u.watcher == nil || u.isStopping() {
				m.finish()
				continue
			}
			// What is watched is made anew now and then: only a signal, or the exit that ends all, is the end.
			watches.Go(func() { u.watcher.told("watch", u.watcher.run(life)) })
		case <-u.aborted:
			u.aborted = nil
			stopApplying()
			if applied == nil {
				m.finish()
			}
			go u.stop(life)
		case <-interrupted: // by the signal that is coming here too, or by docker, whose plugin this is
			interrupted = nil
			select {
			case <-signals:
			case <-time.After(sameSignal):
			}
			u.interrupt(life, stopApplying, m)
		case <-signals:
			interrupted = nil
			u.interrupt(life, stopApplying, m)
		case err := <-watching:
			if err != nil {
				return err
			}
			over = true
		}
	}
	if err := logs.wait(life); err != nil {
		return err
	}
	if applied != nil {
		applyErr = <-applied
	}
	if applyErr != nil && !u.isStopping() {
		return applyErr
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.code != 0:
		return dockercli.StatusError{StatusCode: u.code}
	case ctx.Err() != nil && !u.coded:
		return dockercli.StatusError{StatusCode: 130}
	}
	return nil
}

// monitor follows the containers of the services that output is wanted from,
// and of all when one exit is to end all.
func (u *session) monitor(ctx context.Context) (*monitor, *streams) {
	begun := time.Now().UTC().Format(time.RFC3339Nano)
	logs := newStreams(func(ctx context.Context, c tracked, since string) error {
		if since == "" {
			since = begun
		}
		return u.t.copyLog(ctx, c.id, c.short, u.p, logsOptions{follow: true, since: since})
	})
	m := u.t.newMonitor(u.document.Name, nil)
	m.forever = true
	isShown := func(c tracked) bool { return slices.Contains(u.attach, c.service) }
	m.listed = func(list []tracked) {
		u.mu.Lock()
		defer u.mu.Unlock()
		for _, c := range list {
			u.there[c.name] = c
		}
	}
	m.started = func(c tracked, since string) {
		if isShown(c) {
			u.tell(true)
			logs.open(ctx, c, since)
		}
	}
	m.exited = func(c tracked, code int, restarting bool) {
		logs.drain(c.id)
		if isShown(c) {
			u.p.status(c.short, exitText(code, restarting))
		}
		u.onExit(c, code, restarting)
	}
	return m, logs
}

// show puts progress on the screen until output takes its place; failures are
// told in any case.
func (u *session) show(p app.Progress) {
	u.mu.Lock()
	if p.Plan != nil {
		u.plan(*p.Plan)
	}
	telling := u.telling
	u.mu.Unlock()
	if !telling {
		u.t.show(p)
		return
	}
	if e, ok := eventOf(p); ok && (e.state == failed || e.state == warned) {
		fmt.Fprintln(u.t.docker.Err(), strings.TrimSpace(e.id+" "+e.text+" "+e.details))
	}
}

// tell ends the progress and says whose output follows, once.
func (u *session) tell(ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.telling {
		return
	}
	u.telling = true
	u.t.screen.end(ok)
	if ok && u.t.mode != "quiet" {
		fmt.Fprintln(u.t.docker.Out(), say("Attaching to ", "Conectando a ")+strings.Join(u.shown, ", "))
	}
}

// plan learns which containers there will be; mu is held.
func (u *session) plan(p app.Plan) {
	add := func(name, service string, number int) {
		short := shortNameOf(name, map[string]string{labelProject: u.document.Name, labelService: service, labelNumber: strconv.Itoa(number)})
		if slices.Contains(u.attach, service) && !slices.Contains(u.shown, short) {
			u.shown = append(u.shown, short)
		}
	}
	for _, name := range p.Kept {
		if c, ok := u.there[name]; ok && slices.Contains(u.attach, c.service) && !slices.Contains(u.shown, c.short) {
			u.shown = append(u.shown, c.short)
		}
	}
	for _, s := range p.Steps {
		if s.Kind == app.KindContainer && (s.Action == app.Create || s.Action == app.Start) {
			add(cmp.Or(s.Final, s.Name), s.Service, s.Number)
		}
	}
	slices.Sort(u.shown)
	u.p.register(u.shown...)
}

func (u *session) isStopping() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.stopping
}

// onExit ends all with one, where that is wanted.
func (u *session) onExit(c tracked, code int, restarting bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if c.service == u.o.exitCodeFrom && !u.coded && !restarting {
		u.code, u.coded = code, true
	}
	abort := u.o.abortOnExit || u.o.abortOnFail && code != 0
	if !abort || u.stopping || restarting {
		return
	}
	u.stopping = true
	if u.o.exitCodeFrom == "" {
		u.code, u.coded = code, true
	}
	u.t.screen.on(event{id: "Compose", text: "Stopping", details: "Aborting on container exit..."})
	close(u.aborted)
}

// interrupt is what a signal does: the first stops the containers, the second kills them.
func (u *session) interrupt(ctx context.Context, stopApplying func(), m *monitor) {
	u.tell(false)
	stopApplying()
	m.finish()
	u.mu.Lock()
	first := !u.stopping
	u.stopping = true
	u.mu.Unlock()
	if first {
		fmt.Fprintln(u.t.docker.Err(), say("Gracefully Stopping... press Ctrl+C again to force", "Deteniendo... pulse Ctrl+C otra vez para forzar"))
		go u.stop(ctx)
		return
	}
	go u.kill(ctx)
}

// kill does not stand in the queue of operations behind the stop that takes too long.
func (u *session) kill(ctx context.Context) {
	found, err := u.t.containers(ctx, u.document.Name, selection{services: u.services})
	if err == nil {
		err = each(ctx, u.t.limit(), found, func(ctx context.Context, _ int, c summary) error {
			_, err := u.t.docker.Client().ContainerKill(ctx, c.ID, client.ContainerKillOptions{Signal: "SIGKILL"})
			if errdefs.IsConflict(err) || errdefs.IsNotFound(err) { // it has ended meanwhile
				return nil
			}
			return err
		})
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(u.t.docker.Err(), "kill:", err)
	}
}

// stop stops what the session started.
func (u *session) stop(ctx context.Context) {
	r := app.ActRequest{Document: &u.document, Services: u.services, Timeout: u.timeout}
	_, err := u.t.operate(ctx, func(ctx context.Context, w remote.Watch) (app.Result, error) {
		return u.t.remote().Act(ctx, u.document.Name, "stop", r, w)
	}, func(p app.Progress) {
		if e, ok := eventOf(p); ok && (e.state != working || u.t.mode == "plain") {
			u.t.screen.on(e)
		}
	})
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(u.t.docker.Err(), "stop:", err)
	}
}

// sameSignal is how long one Ctrl-C takes to arrive by both its ways.
const sameSignal = 300 * time.Millisecond

// exitCode ends the command with a code and no words.
func exitCode(n int) error { return dockercli.StatusError{StatusCode: n} }
