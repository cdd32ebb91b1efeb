package compose

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"

	"github.com/berth-project/berth/cli/remote"
	"github.com/berth-project/berth/core/app"
)

// How long a canceled operation may take to end its steps.
const cancelLimit = 30 * time.Second

// do runs one operation of the daemon and shows its progress. When ctx ends
// (Ctrl-C) the operation is canceled: no further step begins.
func (t *tool) do(ctx context.Context, verb string, call func(context.Context, remote.Watch) (app.Result, error)) (app.Result, error) {
	t.screen.begin(verb)
	result, err := t.operate(ctx, call, t.show)
	t.screen.end(err == nil)
	return result, err
}

// operate is do for those who show progress in their own way.
func (t *tool) operate(ctx context.Context, call func(context.Context, remote.Watch) (app.Result, error), show func(app.Progress)) (app.Result, error) {
	type ending struct {
		result app.Result
		err    error
	}
	reading, leave := context.WithCancel(context.WithoutCancel(ctx))
	defer leave()
	operation, ended := make(chan string, 1), make(chan ending, 1)
	go func() {
		named := false
		result, err := call(reading, func(p app.Progress) error {
			if !named && p.Operation != "" {
				named = true
				operation <- p.Operation
			}
			show(p)
			return nil
		})
		ended <- ending{result, err}
	}()
	select {
	case e := <-ended:
		return e.result, e.err
	case <-ctx.Done():
	}
	timer := time.NewTimer(cancelLimit)
	defer timer.Stop()
	select {
	case id := <-operation:
		if err := t.remote().Cancel(reading, id); err != nil {
			return app.Result{}, fmt.Errorf("cancel: %w", err)
		}
	case e := <-ended:
		return e.result, cmp.Or(e.err, ctx.Err())
	case <-timer.C:
		return app.Result{}, ctx.Err()
	}
	select {
	case <-ended:
	case <-timer.C:
	}
	return app.Result{}, ctx.Err()
}

// show puts one line of progress on the screen.
func (t *tool) show(p app.Progress) {
	if p.Plan != nil {
		for _, w := range p.Plan.Warnings {
			t.warn("%s", w)
		}
		if len(p.Plan.Orphans) > 0 && !truth(envOf("COMPOSE_IGNORE_ORPHANS")) {
			t.warn(say("Found orphan containers (%s) for this project. If you removed or renamed this service in your compose file, you can run this command with the --remove-orphans flag to clean it up.",
				"Hay contenedores huérfanos (%s) de este proyecto. Si quitó un servicio del fichero o cambió su nombre, use --remove-orphans para retirarlos."),
				strings.Join(p.Plan.Orphans, ", "))
		}
		for _, name := range p.Plan.Kept {
			t.screen.on(event{id: "Container " + name, state: done, text: "Running"})
		}
		return
	}
	if t.quietPull && p.Action == app.Pull && p.Part != "" {
		return
	}
	if e, ok := eventOf(p); ok {
		t.screen.on(e)
	}
}

var kinds = map[app.Kind]string{
	app.KindContainer: "Container ", app.KindNetwork: "Network ", app.KindVolume: "Volume ", app.KindImage: "Image ",
	app.KindService: "Service ", app.KindJob: "Job ",
}

// Words of docker compose for an action under way and done.
var verbs = map[app.Action][2]string{
	app.Create: {"Creating", "Created"}, app.Start: {"Starting", "Started"}, app.Stop: {"Stopping", "Stopped"}, app.Restart: {"Restarting", "Restarted"},
	app.Remove: {"Removing", "Removed"}, app.Rename: {"Renaming", "Renamed"}, app.Wait: {"Waiting", "Ready"}, app.Connect: {"Connecting", "Connected"},
	app.Disconnect: {"Disconnecting", "Disconnected"}, app.Pull: {"Pulling", "Pulled"}, app.Build: {"Building", "Built"}, app.Hook: {"Running hook", "Hook done"},
	app.Pause: {"Pausing", "Paused"}, app.Unpause: {"Unpausing", "Unpaused"}, app.Kill: {"Killing", "Killed"},
}

// eventOf translates a line of the daemon; not ok where it speaks of no step.
func eventOf(p app.Progress) (event, bool) {
	if p.Step == "" && p.Name == "" {
		if p.Text == "" || p.Result != nil {
			return event{}, false
		}
		return event{id: "Compose", text: p.Text, state: stateOf(p.Status)}, true
	}
	e := event{id: kinds[p.Kind] + p.Name, state: stateOf(p.Status), text: p.Text, current: p.Current, total: p.Total}
	if p.Part != "" {
		e.parent, e.id = e.id, p.Part
	}
	word := verbs[p.Action][0]
	switch p.Status {
	case app.Done:
		word = verbs[p.Action][1]
	case app.Waiting:
		word = "Waiting"
	case app.Failed:
		e.text, e.details = "Error", p.Text
	case app.Skipped:
		e.text, e.details = "Skipped", p.Text
	}
	e.text = cmp.Or(e.text, word)
	return e, true
}

func stateOf(s app.Status) state {
	switch s {
	case app.Done:
		return done
	case app.Failed:
		return failed
	case app.Warning, app.Skipped:
		return warned
	}
	return working
}

// auths gives what the person's configuration knows about the registries of an
// application's images.
func (t *tool) auths(a *app.App) map[string]app.RegistryAuth {
	config := t.docker.ConfigFile()
	if len(config.AuthConfigs) == 0 && config.CredentialsStore == "" && len(config.CredentialHelpers) == 0 {
		return nil
	}
	found := map[string]app.RegistryAuth{}
	for _, image := range imagesOf(a) {
		ref, err := reference.ParseNormalizedNamed(image)
		if err != nil {
			continue // the daemon says what is wrong with it
		}
		host := reference.Domain(ref)
		if _, ok := found[host]; ok {
			continue
		}
		auth, err := config.GetAuthConfig(authKey(host))
		if err != nil || auth.Username == "" && auth.IdentityToken == "" && auth.RegistryToken == "" {
			continue
		}
		found[host] = app.RegistryAuth{Username: auth.Username, Password: auth.Password, IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken}
	}
	return found
}

// authKey is under which name the docker client keeps the credentials of a registry.
func authKey(host string) string {
	if host == "docker.io" {
		return "https://index.docker.io/v1/"
	}
	return host
}

func imagesOf(a *app.App) []string {
	var list []string
	for _, s := range a.Project.Services {
		if s.Image != "" && !slices.Contains(list, s.Image) {
			list = append(list, s.Image)
		}
	}
	slices.Sort(list)
	return list
}

// showPlan shows the steps of a plan as if they had been done.
func (t *tool) showPlan(verb string, p app.Plan) {
	t.screen.begin(verb)
	t.show(app.Progress{Plan: &p})
	for _, s := range p.Steps {
		for _, status := range []app.Status{app.Working, app.Done} {
			if e, ok := eventOf(app.Progress{Step: s.ID, Action: s.Action, Kind: s.Kind, Name: cmp.Or(s.Final, s.Name), Status: status}); ok {
				t.screen.on(e)
			}
		}
	}
	t.screen.end(true)
}
