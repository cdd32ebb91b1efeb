package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/streams"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/frontend/subrequests/lint"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/progress/progressui"
	mobyclient "github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// Batch is images that are built at the same time. A target comes after those
// that it is made from.
type Batch struct {
	Targets []Target
	Check   bool                   // look for mistakes in Dockerfiles and build nothing
	Shell   bool                   // open a shell in the step that fails
	Out     io.Writer              // where progress goes
	Mode    progressui.DisplayMode // how it is shown
	Limit   int                    // how many targets are at work at a time; 0 is no limit
}

// Run builds the images and gives what is told of each, by its name and the
// keys of BuildKit's exptypes. The first failure ends the others. Mistakes that
// Check finds are written to docker's output, and are a StatusError.
func (b Batch) Run(ctx context.Context, docker command.Cli) (map[string]map[string]string, error) {
	jobs, err := b.jobs()
	if err != nil {
		return nil, err
	}
	c, err := client.New(ctx, "", client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return docker.Client().DialHijack(ctx, "/grpc", "h2c", nil)
	}), client.WithSessionDialer(func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
		return docker.Client().DialHijack(ctx, "/session", proto, meta)
	}))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := docker.Client().Ping(ctx, mobyclient.PingOptions{}); err != nil {
		return nil, err // it says how to start the daemon
	}
	display, err := progressui.NewDisplay(terminal(b.Out), b.Mode)
	if err != nil {
		return nil, err
	}
	told := make(chan *client.SolveStatus)
	shown := make(chan error, 1)
	whole := context.WithoutCancel(ctx) // what was told before an end is shown
	go func() {
		_, err := display.UpdateFrom(whole, told)
		shown <- err
	}()
	slots, owners := make(slots, b.Limit), &owners{name: map[digest.Digest]string{}, speaker: map[digest.Digest]string{}}
	group, ctx := errgroup.WithContext(ctx)
	for _, j := range jobs {
		group.Go(func() error {
			err := j.run(ctx, docker, c, b, slots, owners, told)
			if err != nil && j.Name != "" {
				return &Failure{Target: j.Name, Err: err}
			}
			return err
		})
	}
	err = group.Wait()
	close(told)
	err = errors.Join(err, <-shown)
	results := map[string]map[string]string{}
	found := false
	for _, j := range jobs {
		results[j.Name] = j.told
		if b.Check && err == nil {
			var here bool
			here, err = j.printCheck(docker.Out(), len(jobs) > 1)
			found = found || here
		}
	}
	if found && err == nil {
		return results, cli.StatusError{StatusCode: 1}
	}
	return results, err
}

// Failure says which target of a batch failed.
type Failure struct {
	Target string
	Err    error
}

func (f *Failure) Error() string { return fmt.Sprintf("build %s: %v", f.Target, f.Err) }
func (f *Failure) Unwrap() error { return f.Err }

// Explain shows where in a Dockerfile a build failed: file, line and caret.
func Explain(w io.Writer, err error) {
	for _, s := range errdefs.Sources(err) {
		_ = s.Print(w)
	}
}

// terminal is what a terminal's size and cursor can be asked of, where there is one.
func terminal(w io.Writer) io.Writer {
	if s, ok := w.(*streams.Out); ok {
		if f, ok := s.File(); ok {
			return f
		}
	}
	return w
}

// slots bound how many targets are at work; of no capacity they bound nothing.
type slots chan struct{}

func (s slots) take(ctx context.Context) error {
	if cap(s) == 0 {
		return nil
	}
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s slots) give() {
	if cap(s) > 0 {
		<-s
	}
}

// job is one target at work. Those that others are made from go through
//
//	solved ──▶ evaluated ──▶ finished
//
// A child can be worded when its parents are solved, is evaluated after them,
// and holds them until it is finished: their sessions serve its steps too.
type job struct {
	Target
	parents  map[string]*job // by the name of the context
	children []*job

	solved, evaluated, finished chan struct{}
	result                      *gateway.Result // once solved

	told map[string]string // once built
	lint lint.LintResults  // of a check
}

func (b Batch) jobs() ([]*job, error) {
	var list []*job
	named := map[string]*job{}
	for _, t := range b.Targets {
		j := &job{Target: t, parents: map[string]*job{}, solved: make(chan struct{}), evaluated: make(chan struct{}), finished: make(chan struct{})}
		for key, at := range t.Contexts {
			name, ok := strings.CutPrefix(at, FromTarget)
			if !ok {
				continue
			}
			parent := named[name]
			if parent == nil {
				return nil, fmt.Errorf("context %s: there is no target %s before it", key, name)
			}
			j.parents[key] = parent
			parent.children = append(parent.children, j)
		}
		named[t.Name] = j
		list = append(list, j)
	}
	return list, nil
}

func (j *job) run(ctx context.Context, docker command.Cli, c *client.Client, b Batch, slots slots, owners *owners, told chan<- *client.SolveStatus) error {
	so, cleanup, err := j.solve(ctx, docker, c)
	defer cleanup()
	if err != nil {
		return err
	}
	var build func(ch chan *client.SolveStatus) (*client.SolveResponse, error)
	if len(j.parents)+len(j.children) == 0 && !b.Check && !b.Shell {
		if err := slots.take(ctx); err != nil {
			return err
		}
		defer slots.give()
		build = func(ch chan *client.SolveStatus) (*client.SolveResponse, error) { return c.Solve(ctx, nil, so, ch) }
	} else {
		req := gateway.SolveRequest{Frontend: so.Frontend, FrontendOpt: maps.Clone(so.FrontendAttrs)}
		if err := j.inherit(ctx, &req); err != nil {
			return err
		}
		if b.Check {
			so.Exports = nil
		}
		build = func(ch chan *client.SolveStatus) (*client.SolveResponse, error) {
			return c.Build(ctx, so, "berth", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
				if b.Check {
					return gateway.NewResult(), j.check(ctx, g, req)
				}
				err := j.evaluate(ctx, g, req, slots)
				if err != nil && b.Shell {
					if opened := shell(ctx, docker, g, err); opened != nil {
						fmt.Fprintln(docker.Err(), opened)
					}
				}
				return j.result, err
			}, ch)
		}
	}
	ch := make(chan *client.SolveStatus)
	forwarded := make(chan struct{})
	go func() {
		defer close(forwarded)
		for s := range ch {
			if len(b.Targets) > 1 {
				owners.prefix(s, j.Name)
				owners.once(s, j.Name)
			}
			told <- s
		}
	}()
	resp, err := build(ch)
	<-forwarded
	if err == nil {
		j.told = resp.ExporterResponse
	}
	return err
}

// owners are the targets that told of a step first: several may share it.
type owners struct {
	mu      sync.Mutex
	name    map[digest.Digest]string // in whose name it is shown
	speaker map[digest.Digest]string // whose builder's copy of its output is shown
}

// once leaves out the output of a step that another target tells of: each gets
// the whole of it.
func (o *owners) once(s *client.SolveStatus, name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	told := func(step digest.Digest) bool {
		if o.speaker[step] == "" {
			o.speaker[step] = name
		}
		return o.speaker[step] != name
	}
	s.Logs = slices.DeleteFunc(s.Logs, func(l *client.VertexLog) bool { return told(l.Vertex) })
	s.Warnings = slices.DeleteFunc(s.Warnings, func(w *client.VertexWarning) bool { return told(w.Vertex) })
}

// prefix puts a target's name before its steps.
func (o *owners) prefix(s *client.SolveStatus, name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, v := range s.Vertexes {
		owner, ok := o.name[v.Digest]
		if !ok {
			owner = name
			o.name[v.Digest] = name
		}
		put := func(text string) string {
			if rest, ok := strings.CutPrefix(text, "["); ok {
				return "[" + owner + " " + rest
			}
			return "[" + owner + "] " + text
		}
		v.Name = put(v.Name)
		if v.ProgressGroup != nil {
			v.ProgressGroup.Name = put(v.ProgressGroup.Name)
		}
	}
}

// evaluate runs the steps under our own eyes: its result, or the step that
// failed, can be looked at while the builder still has it.
func (j *job) evaluate(ctx context.Context, g gateway.Client, req gateway.SolveRequest, slots slots) (err error) {
	if j.result, err = g.Solve(ctx, req); err != nil {
		return err
	}
	close(j.solved)
	for _, c := range j.children { // what a child finds in its caches is good for its parents
		if err := await(ctx, c.solved); err != nil {
			return err
		}
	}
	for _, p := range j.parents {
		if err := await(ctx, p.evaluated); err != nil {
			return err
		}
	}
	if err := slots.take(ctx); err != nil {
		return err
	}
	group, inner := errgroup.WithContext(ctx)
	_ = j.result.EachRef(func(r gateway.Reference) error {
		group.Go(func() error { return r.Evaluate(inner) })
		return nil
	})
	err = group.Wait()
	slots.give()
	if err != nil {
		return err
	}
	close(j.evaluated)
	return j.finish(ctx)
}

// check asks for mistakes in the Dockerfile. No step is run.
func (j *job) check(ctx context.Context, g gateway.Client, req gateway.SolveRequest) error {
	question := req
	question.FrontendOpt = maps.Clone(req.FrontendOpt)
	question.FrontendOpt["requestid"] = lint.RequestLint
	res, err := g.Solve(ctx, question)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(res.Metadata["result.json"], &j.lint); err != nil {
		return fmt.Errorf("what the builder says of mistakes: %w", err)
	}
	if slices.Contains(j.lint.Sources, nil) { // a foreign frontend may say anything
		return errors.New("what the builder says of mistakes: there is no Dockerfile in it")
	}
	for _, w := range j.lint.Warnings {
		if w.Location == nil {
			return fmt.Errorf("what the builder says of mistakes: %s is nowhere", w.RuleName)
		}
	}
	if len(j.children) > 0 { // they ask what it would be
		if j.result, err = g.Solve(ctx, req); err != nil {
			return err
		}
	}
	close(j.solved)
	return j.finish(ctx)
}

func (j *job) finish(ctx context.Context) error {
	for _, c := range j.children {
		if err := await(ctx, c.finished); err != nil {
			return err
		}
	}
	close(j.finished)
	return nil
}

func await(ctx context.Context, ch <-chan struct{}) error {
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// printCheck writes what is wrong with a Dockerfile, and says whether something is.
func (j *job) printCheck(w io.Writer, titled bool) (hasMistakes bool, err error) {
	if titled {
		fmt.Fprintf(w, "# %s\n", j.Name)
	}
	if e := j.lint.Error; e != nil && (e.Location.SourceIndex < 0 || int(e.Location.SourceIndex) >= len(j.lint.Sources)) {
		return true, errors.New(e.Message)
	}
	err = j.lint.PrintTo(w, nil)
	j.lint.PrintErrorTo(w, nil)
	hasMistakes = len(j.lint.Warnings) > 0 || j.lint.Error != nil
	if !hasMistakes {
		fmt.Fprintln(w, "Check complete, no warnings found.")
	}
	return hasMistakes, err
}

// inherit puts the results of other targets in the place of contexts.
func (j *job) inherit(ctx context.Context, req *gateway.SolveRequest) error {
	req.FrontendInputs = map[string]*pb.Definition{}
	for key, parent := range j.parents {
		if err := await(ctx, parent.solved); err != nil {
			return err
		}
		put := func(suffix, metadataSuffix string, ref gateway.Reference) error {
			state := llb.Scratch()
			if ref != nil {
				var err error
				if state, err = ref.ToState(); err != nil {
					return err
				}
			}
			def, err := state.Marshal(ctx)
			if err != nil {
				return err
			}
			input := FromTarget + parent.Name + suffix
			req.FrontendInputs[input] = def.ToPB()
			req.FrontendOpt["context:"+key+suffix] = "input:" + input
			if config := parent.result.Metadata[exptypes.ExporterImageConfigKey+metadataSuffix]; config != nil {
				b, err := json.Marshal(map[string][]byte{exptypes.ExporterImageConfigKey: config})
				if err != nil {
					return err
				}
				req.FrontendOpt["input-metadata:"+input] = string(b)
			}
			return nil
		}
		for platform, ref := range parent.result.Refs {
			if err := put("::"+platform, "/"+platform, ref); err != nil {
				return err
			}
		}
		if len(parent.result.Refs) == 0 {
			if err := put("", "", parent.result.Ref); err != nil {
				return err
			}
		}
	}
	return nil
}
