package compose

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	dockercontainer "github.com/docker/cli/cli/command/container"
	"github.com/fsnotify/fsnotify"
	"github.com/moby/moby/client"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/cli/remote"
	"github.com/berth-project/berth/core/app"
)

// Changes are gathered until so long nothing more changed: an editor writes a
// file in several steps, a checkout many files.
const quietTime = 300 * time.Millisecond

// Files that editors and tools write beside those that are meant.
var neverWatched = []string{"**/.git", "**/.idea", "**/*.swp", "**/*.swx", "**/*~", "**/.#*", "**/#*#", "**/4913", "**/*___jb_tmp___", "**/*___jb_old___"}

func (t *tool) watchCommand() *cobra.Command {
	var quietly, prune, noUp bool
	cmd := &cobra.Command{
		Use:   "watch [SERVICE...]",
		Short: say("Watch build context for service and rebuild/refresh containers when files are updated", "Vigila los ficheros y actualiza los contenedores cuando cambian"),
		Example: `  berth compose watch
  berth compose watch --no-up web`,
		RunE: t.run(func(ctx context.Context, args []string) error {
			if err := t.noDryRun("watch"); err != nil {
				return err
			}
			if quietly {
				t.screen = quiet{}
			}
			d, a, err := t.document(ctx, args)
			if err != nil {
				return err
			}
			w, err := t.newWatcher(a, d, args, newPrinter(t.docker.Out(), t.color, true, false))
			if err != nil {
				return err
			}
			w.prune = prune
			if !noUp {
				p := app.Policy{Services: args, Build: w.builds(), Compatibility: t.isCompatible(a.Project)}
				if err := t.buildFirst(ctx, &makeOptions{quietBuild: quietly}, a, args, &p); err != nil {
					return err
				}
				if err := t.apply(ctx, "up", d, a, p); err != nil {
					return err
				}
			}
			return w.run(ctx)
		}),
		ValidArgsFunction: t.completeServices,
	}
	f := cmd.Flags()
	f.BoolVar(&quietly, "quiet", false, "hide build output")
	f.BoolVar(&prune, "prune", true, "Prune dangling images on rebuild")
	f.BoolVar(&noUp, "no-up", false, "Do not build & start services before watching")
	return cmd
}

// watcher applies develop.watch of a project's services.
type watcher struct {
	t        *tool
	project  *types.Project
	document app.Document
	rules    []*rule
	p        *printer
	prune    bool

	mu sync.Mutex // held while a command runs: one's output after the other's
}

// rule is one entry of develop.watch.
type rule struct {
	types.Trigger
	service string
	skip    *patternmatcher.PatternMatcher // below Path
	only    *patternmatcher.PatternMatcher // nil: all
}

func (t *tool) newWatcher(a *app.App, d app.Document, services []string, p *printer) (*watcher, error) {
	w := &watcher{t: t, project: a.Project, document: d, p: p}
	for _, name := range slices.Sorted(maps.Keys(a.Project.Services)) {
		s := a.Project.Services[name]
		if s.Develop == nil || len(services) > 0 && !slices.Contains(services, name) {
			continue
		}
		for i, trigger := range s.Develop.Watch {
			r, err := newRule(a.Project, s, trigger)
			if err != nil {
				return nil, fmt.Errorf("services.%s.develop.watch[%d]: %w", name, i, err)
			}
			w.rules = append(w.rules, r)
		}
	}
	if len(w.rules) == 0 {
		return nil, errors.New("none of the selected services is configured for watch, consider setting a 'develop' section")
	}
	return w, nil
}

func newRule(p *types.Project, s types.ServiceConfig, trigger types.Trigger) (*rule, error) {
	r := &rule{Trigger: trigger, service: s.Name}
	r.Path = p.RelativePath(trigger.Path)
	switch trigger.Action {
	case types.WatchActionRebuild:
		if s.Build == nil {
			return nil, errors.New("rebuild needs a service with build")
		}
	case types.WatchActionSync, types.WatchActionSyncRestart, types.WatchActionSyncExec:
		if trigger.Target == "" {
			return nil, fmt.Errorf("%s needs a target", trigger.Action)
		}
	case types.WatchActionRestart:
	default:
		return nil, fmt.Errorf("unknown action %q: use sync, rebuild, restart, sync+restart or sync+exec", trigger.Action)
	}
	if _, err := os.Stat(r.Path); err != nil {
		return nil, err
	}
	skip := append(slices.Clone(neverWatched), trigger.Ignore...)
	if s.Build != nil && s.Build.Context != "" {
		more, err := dockerIgnore(p.RelativePath(s.Build.Context), r.Path)
		if err != nil {
			return nil, err
		}
		skip = append(skip, more...)
	}
	var err error
	if r.skip, err = patternmatcher.New(skip); err != nil {
		return nil, err
	}
	if len(trigger.Include) > 0 {
		r.only, err = patternmatcher.New(trigger.Include)
	}
	return r, err
}

// dockerIgnore gives the patterns of a build context's .dockerignore, as they
// are below a watched path; none where that lies elsewhere.
func dockerIgnore(buildContext, watched string) ([]string, error) {
	f, err := os.Open(filepath.Join(buildContext, ".dockerignore"))
	if err != nil {
		return nil, nil // there is none, or no build context of this machine
	}
	defer f.Close()
	below, err := filepath.Rel(buildContext, watched)
	if err != nil || below == ".." || strings.HasPrefix(below, "../") {
		return nil, nil
	}
	patterns, err := ignorefile.ReadAll(f)
	if err != nil || below == "." {
		return patterns, err
	}
	var list []string
	for _, p := range patterns {
		p, negative := strings.CutPrefix(p, "!")
		switch rest, ok := strings.CutPrefix(p, below+"/"); {
		case ok:
			p = rest
		case strings.HasPrefix(p, "**/"):
		default:
			continue // of another folder
		}
		if negative {
			p = "!" + p
		}
		list = append(list, p)
	}
	return list, nil
}

func (w *watcher) builds() bool {
	return slices.ContainsFunc(w.rules, func(r *rule) bool { return r.Action == types.WatchActionRebuild })
}

// takes tells whether a change concerns the rule, and where it is below its path.
func (r *rule) takes(file string) (below string, ok bool) {
	below, err := filepath.Rel(r.Path, file)
	if err != nil || below == ".." || strings.HasPrefix(below, "../") {
		return "", false
	}
	if below == "." {
		return below, true
	}
	if skip, err := r.skip.MatchesOrParentMatches(below); err != nil || skip {
		return "", false
	}
	if r.only != nil {
		if only, err := r.only.MatchesOrParentMatches(below); err != nil || !only {
			return "", false
		}
	}
	return below, true
}

// run watches until ctx ends.
func (w *watcher) run(ctx context.Context) error {
	n, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer n.Close()
	for _, r := range w.rules {
		if err := w.add(n, r.Path); err != nil {
			return err
		}
	}
	for _, r := range w.rules {
		if r.InitialSync && r.Action != types.WatchActionRebuild && r.Action != types.WatchActionRestart {
			if err := w.sync(ctx, r, filesBelow(r)); err != nil {
				return err
			}
		}
	}
	w.p.line("watch", say("Watch enabled", "Vigilancia activa"))
	changed := map[string]bool{}
	quiet := time.NewTimer(time.Hour)
	quiet.Stop()
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-n.Errors:
			return fmt.Errorf("watch: %w (%s)", err, say("many files? see fs.inotify.max_user_watches", "¿muchos ficheros? vea fs.inotify.max_user_watches"))
		case e := <-n.Events:
			if e.Op == fsnotify.Chmod && !w.isFile(e.Name) {
				continue
			}
			if info, err := os.Lstat(e.Name); err == nil && info.IsDir() && e.Has(fsnotify.Create) {
				if err := w.add(n, e.Name); err != nil {
					return err
				}
				for _, f := range walk(e.Name) { // written before the watch was there
					changed[f] = true
				}
			}
			changed[e.Name] = true
			quiet.Reset(quietTime)
		case <-quiet.C:
			w.handle(ctx, changed)
			changed = map[string]bool{}
		}
	}
}

func (w *watcher) isFile(name string) bool {
	info, err := os.Lstat(name)
	return err == nil && info.Mode().IsRegular()
}

// add watches a folder with all below it, without what every rule ignores.
func (w *watcher) add(n *fsnotify.Watcher, root string) error {
	return filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if !d.IsDir() {
			if name == root { // a single file: its folder is watched, for editors replace it
				return n.Add(filepath.Dir(name))
			}
			return nil
		}
		taken := slices.ContainsFunc(w.rules, func(r *rule) bool {
			below, err := filepath.Rel(r.Path, name)
			if err != nil || strings.HasPrefix(below, "..") {
				return false
			}
			skip, err := r.skip.MatchesOrParentMatches(below)
			return below == "." || err != nil || !skip || r.skip.Exclusions()
		})
		if !taken {
			return filepath.SkipDir
		}
		return n.Add(name)
	})
}

// walk gives all files below a folder.
func walk(root string) []string {
	var list []string
	_ = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			list = append(list, name)
		}
		return nil
	})
	return list
}

// filesBelow gives what an initial sync brings.
func filesBelow(r *rule) []string {
	return slices.DeleteFunc(walk(r.Path), func(f string) bool { _, ok := r.takes(f); return !ok })
}

// handle does what the rules say about a set of changes: a service that is
// rebuilt needs no sync besides. Failures are told; watching goes on.
func (w *watcher) handle(ctx context.Context, changed map[string]bool) {
	byRule := map[*rule][]string{}
	var rebuild []string
	for _, f := range slices.Sorted(maps.Keys(changed)) {
		for _, r := range w.rules {
			if _, ok := r.takes(f); !ok {
				continue
			}
			byRule[r] = append(byRule[r], f)
			if r.Action == types.WatchActionRebuild && !slices.Contains(rebuild, r.service) {
				rebuild = append(rebuild, r.service)
			}
		}
	}
	if len(rebuild) > 0 {
		w.told(rebuild[0], w.rebuild(ctx, rebuild))
	}
	var restart []string
	for _, r := range w.rules {
		files := byRule[r]
		if len(files) == 0 || slices.Contains(rebuild, r.service) {
			continue
		}
		if r.Action != types.WatchActionRestart {
			if err := w.sync(ctx, r, files); err != nil {
				w.told(r.service, err)
				continue
			}
		}
		switch r.Action {
		case types.WatchActionRestart, types.WatchActionSyncRestart:
			if !slices.Contains(restart, r.service) {
				restart = append(restart, r.service)
			}
		case types.WatchActionSyncExec:
			w.told(r.service, w.exec(ctx, r))
		}
	}
	if len(restart) > 0 {
		w.told(restart[0], w.restart(ctx, restart))
	}
}

func (w *watcher) told(service string, err error) {
	if err != nil {
		w.p.line("watch", fmt.Sprintf("%s: %v", service, err))
	}
}

func (w *watcher) rebuild(ctx context.Context, services []string) error {
	w.p.line("watch", fmt.Sprintf("Rebuilding service(s) %q after changes were detected...", services))
	r := app.ApplyRequest{Document: w.document, Policy: app.Policy{Services: services, NoDeps: true, Build: true, Compatibility: w.t.isCompatible(w.project)}}
	if err := w.t.buildFirst(ctx, &makeOptions{buildOut: &lines{emit: func(s string) { w.p.line("watch", s) }}}, &app.App{Project: w.project}, services, &r.Policy); err != nil {
		return err
	}
	if _, err := w.t.do(ctx, "build", func(ctx context.Context, watch remote.Watch) (app.Result, error) {
		return w.t.remote().Apply(ctx, r, watch)
	}); err != nil {
		return err
	}
	w.p.line("watch", fmt.Sprintf("service(s) %q successfully built", services))
	if !w.prune {
		return nil
	}
	_, err := w.t.docker.Client().ImagePrune(ctx, client.ImagePruneOptions{
		Filters: make(client.Filters).Add("dangling", "true").Add("label", labelProject+"="+w.project.Name),
	})
	return err
}

func (w *watcher) restart(ctx context.Context, services []string) error {
	w.p.line("watch", fmt.Sprintf("service(s) %q restarted", services))
	_, err := w.t.do(ctx, "restart", func(ctx context.Context, watch remote.Watch) (app.Result, error) {
		return w.t.remote().Act(ctx, w.project.Name, "restart", app.ActRequest{Document: &w.document, Services: services, NoDeps: true}, watch)
	})
	return err
}

// sync brings files into all running containers of a service; those that are
// gone here go there too.
func (w *watcher) sync(ctx context.Context, r *rule, files []string) error {
	var there, gone []string
	for _, f := range files {
		if _, err := os.Lstat(f); err == nil {
			there = append(there, f)
		} else {
			gone = append(gone, f)
		}
	}
	found, err := w.t.containers(ctx, w.project.Name, selection{services: []string{r.service}})
	if err != nil {
		return err
	}
	w.p.line("watch", fmt.Sprintf("Syncing service %q after %d changes were detected", r.service, len(files)))
	return each(ctx, w.t.limit(), found, func(ctx context.Context, _ int, c summary) error {
		if len(gone) > 0 {
			var targets []string
			for _, f := range gone {
				targets = append(targets, r.targetOf(f))
			}
			if err := w.runIn(ctx, c.ID, append([]string{"rm", "-rf", "--"}, targets...), types.ServiceHook{}); err != nil {
				return err
			}
		}
		if len(there) == 0 {
			return nil
		}
		reader, writer := io.Pipe()
		go func() { writer.CloseWithError(r.archive(writer, there)) }() // ends with the copy
		defer reader.Close()
		_, err := w.t.docker.Client().CopyToContainer(ctx, c.ID, client.CopyToContainerOptions{DestinationPath: "/", Content: reader})
		return err
	})
}

// targetOf is where a file lies in the container.
func (r *rule) targetOf(file string) string {
	below, err := filepath.Rel(r.Path, file)
	if err != nil || below == "." {
		return r.Target
	}
	return path.Join(r.Target, filepath.ToSlash(below))
}

func (r *rule) archive(out io.Writer, files []string) error {
	w := tar.NewWriter(out)
	for _, f := range files {
		if err := r.archiveOne(w, f); err != nil {
			return err
		}
	}
	return w.Close()
}

func (r *rule) archiveOne(w *tar.Writer, file string) error {
	info, err := os.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // gone meanwhile: the next change tells
	}
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(file); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name = strings.TrimPrefix(r.targetOf(file), "/")
	h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
	if !info.Mode().IsRegular() {
		return w.WriteHeader(h)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	// The size as it is now: a file may grow while it is read.
	if info, err = f.Stat(); err != nil {
		return err
	}
	h.Size = info.Size()
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.CopyN(w, f, h.Size)
	return err
}

// exec runs the rule's command in every container of its service.
func (w *watcher) exec(ctx context.Context, r *rule) error {
	found, err := w.t.containers(ctx, w.project.Name, selection{services: []string{r.service}})
	if err != nil {
		return err
	}
	return each(ctx, w.t.limit(), found, func(ctx context.Context, _ int, c summary) error { return w.runIn(ctx, c.ID, r.Exec.Command, r.Exec) })
}

func (w *watcher) runIn(ctx context.Context, container string, command []string, how types.ServiceHook) error {
	o := dockercontainer.NewExecOptions()
	o.Command, o.User, o.Privileged, o.Workdir = command, how.User, how.Privileged, how.WorkingDir
	for _, e := range how.Environment.Resolve(w.project.Environment.Resolve).ToMapping().Values() {
		if err := o.Env.Set(e); err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return dockercontainer.RunExec(ctx, w.t.docker, container, o)
}
