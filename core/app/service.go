package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/crash"
	"github.com/berth-project/berth/lib/fault"
)

const (
	roundLimit    = 6   // plans of one operation: images come, then what needs them
	revisionLimit = 100 // revisions kept of one application
)

// Options of a Service. All but Logger are needed.
type Options struct {
	Containers Containers
	Networks   Networks
	Volumes    Volumes
	Images     Images
	Events     Events
	Store      Store
	Logger     *slog.Logger
}

// Service owns all applications of an engine: one operation of each at a time.
type Service struct {
	o    Options
	log  *slog.Logger
	ctx  context.Context // ends with Shutdown
	stop context.CancelFunc
	work sync.WaitGroup

	mu         sync.Mutex
	records    map[string]Record
	lanes      map[string]chan struct{} // holds one token: whose operation it is
	operations []*operation             // oldest first
	clock      *clock
}

// New starts a service; Restore finds what an earlier one left.
func New(ctx context.Context, o Options) (*Service, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Service{o: o, log: o.Logger, records: map[string]Record{}, lanes: map[string]chan struct{}{}}
	s.ctx, s.stop = context.WithCancel(context.Background())
	list, err := o.Store.Apps(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range list {
		s.records[r.Name] = r
	}
	if s.clock, err = newClock(ctx, s); err != nil {
		return nil, err
	}
	s.work.Add(1)
	go s.heed()
	return s, nil
}

// Shutdown ends the operations under way after their present steps; the
// journal lets the next daemon go on.
func (s *Service) Shutdown() {
	s.stop()
	s.clock.close()
	s.work.Wait()
}

func (s *Service) record(name string) (Record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.records[name]
	return r, ok
}

// change writes a record, after f has had it.
func (s *Service) change(ctx context.Context, name string, f func(r *Record)) (Record, error) {
	s.mu.Lock()
	r := s.records[name]
	s.mu.Unlock()
	r.Name = name
	f(&r)
	if err := s.o.Store.PutApp(context.WithoutCancel(ctx), r); err != nil {
		return r, err
	}
	s.mu.Lock()
	s.records[name] = r
	s.mu.Unlock()
	return r, nil
}

// lane holds the token of an application's operations.
func (s *Service) lane(app string) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lanes[app] == nil {
		s.lanes[app] = make(chan struct{}, 1)
	}
	return s.lanes[app]
}

// begin starts an operation; it waits for its turn among those of its application.
func (s *Service) begin(app, verb string, f func(ctx context.Context, op *operation) Result) (*operation, error) {
	ctx, cancel := context.WithCancel(s.ctx)
	op := newOperation(app, verb, cancel)
	s.mu.Lock()
	if s.ctx.Err() != nil {
		s.mu.Unlock()
		cancel()
		return nil, fault.Unavailablef("the daemon is stopping")
	}
	s.operations = append(s.operations, op)
	if len(s.operations) > operationLimit {
		for i, old := range s.operations {
			if !old.running() {
				s.operations = slices.Delete(s.operations, i, i+1)
				break
			}
		}
	}
	s.work.Add(1)
	s.mu.Unlock()
	lane := s.lane(app)
	go func() {
		defer s.work.Done()
		defer cancel()
		select {
		case lane <- struct{}{}:
		case <-ctx.Done():
			op.tell(Progress{Result: &Result{Error: "canceled before it began", Canceled: true}})
			return
		}
		defer func() { <-lane }()
		r := f(ctx, op)
		if ctx.Err() != nil && r.Error != "" {
			r.Canceled = true
		}
		r.Changed = op.change
		op.tell(Progress{Result: &r})
		s.log.Info("application changed", "app", app, "verb", verb, "operation", op.ID, "took", time.Since(op.Started).Round(time.Millisecond).String(), "error", r.Error)
	}()
	return op, nil
}

// Follow hands out the lines of an operation after the given number.
func (s *Service) Follow(ctx context.Context, id string, after int, emit func(Progress) error) error {
	op, err := s.operation(id)
	if err != nil {
		return err
	}
	return op.follow(ctx, after, emit)
}

func (s *Service) operation(id string) (*operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.operations {
		if o.ID == id {
			return o, nil
		}
	}
	return nil, fault.NotFoundf("no such operation: %s", id)
}

// Operations lists those under way and lately ended, oldest first.
func (s *Service) Operations() []Operation {
	s.mu.Lock()
	list := slices.Clone(s.operations)
	s.mu.Unlock()
	out := make([]Operation, 0, len(list))
	for _, o := range list {
		out = append(out, o.state())
	}
	return out
}

// Cancel lets no further step of an operation begin.
func (s *Service) Cancel(id string) error {
	op, err := s.operation(id)
	if err == nil {
		op.cancel()
	}
	return err
}

// Plan tells what Apply would do now.
func (s *Service) Plan(ctx context.Context, r ApplyRequest) (Plan, error) {
	a, err := r.Document.App()
	if err != nil {
		return Plan{}, err
	}
	return s.plan(ctx, a, r.Policy, nil, nil)
}

func (s *Service) plan(ctx context.Context, a *App, p Policy, fresh, settled map[string]bool) (Plan, error) {
	o, err := s.observe(ctx, a.Project.Name, a, separator(p.Compatibility))
	if err != nil {
		return Plan{}, err
	}
	r, _ := s.record(a.Project.Name)
	return MakePlan(Input{App: a, Observed: o, Policy: p, Fresh: fresh, Settled: settled, Apart: r.Apart, Now: time.Now()})
}

// Apply makes an application what the document says. It gives the operation's id.
func (s *Service) Apply(_ context.Context, r ApplyRequest) (string, error) {
	a, err := r.Document.App()
	if err != nil {
		return "", err
	}
	if err := s.checkAll(a, r.Policy); err != nil {
		return "", err
	}
	op, err := s.begin(r.Document.Name, "apply", func(ctx context.Context, op *operation) Result {
		return s.apply(ctx, op, a, r, Revision{Verb: "apply", Comment: r.Comment})
	})
	if err != nil {
		return "", err
	}
	return op.ID, nil
}

// checkAll refuses what cannot work before anything is done.
func (s *Service) checkAll(a *App, p Policy) error {
	m := &maker{app: a, sep: separator(p.Compatibility), names: func(string) []string { return nil }, first: func(string) (string, bool) { return "0", true }}
	var errs []error
	for _, name := range a.Project.ServiceNames() {
		if len(p.Services) > 0 && !slices.Contains(p.Services, name) {
			continue
		}
		v := a.Project.Services[name]
		if v.Image == "" && v.Build == nil && v.Provider == nil {
			errs = append(errs, fault.Invalidf("services.%s: it has neither image nor build", name))
			continue
		}
		if _, err := m.spec(wish{service: v, number: 1, aliases: true}); err != nil {
			errs = append(errs, err)
		}
		for _, f := range m.references(v) {
			if f.refused != nil {
				errs = append(errs, f.refused)
			}
		}
		if _, _, err := v.GetPullPolicy(); err != nil {
			errs = append(errs, fault.Invalidf("services.%s.%w", name, err))
		}
	}
	for name, j := range a.Project.Jobs {
		if err := checkJob(a, j); err != nil {
			errs = append(errs, fault.Invalidf("jobs.%s: %w", name, err))
		}
	}
	if len(errs) == 1 {
		return errs[0]
	}
	if len(errs) > 1 {
		return fault.Invalidf("%w", errors.Join(errs...))
	}
	return nil
}

// apply runs within an operation; the lane is held.
func (s *Service) apply(ctx context.Context, op *operation, a *App, r ApplyRequest, rev Revision) Result {
	doc, result := r.Document, Result{}
	fail := func(err error) Result {
		if err != nil {
			result.Error = err.Error()
		}
		return result
	}
	before, _ := s.record(doc.Name)
	if len(r.Policy.Scale) > 0 {
		for name, n := range r.Policy.Scale {
			if v, ok := a.Project.Services[name]; ok {
				v.SetScale(n)
				a.Project.Services[name] = v
			}
		}
		scaled, err := encodeProject(a.Project)
		if err != nil {
			return fail(err)
		}
		doc.Project = scaled
	}
	plan, err := s.plan(ctx, a, r.Policy, nil, nil)
	if err != nil {
		return fail(err)
	}
	record, err := s.wish(ctx, op, doc, r.Policy, rev, !plan.Empty())
	if err != nil {
		return fail(err)
	}
	// The first line comes when the wish is on disk: what was heard of is done.
	op.tell(Progress{Plan: &plan})
	result.Revision = record.Current
	walk := s.walker(op, a, r.Policy)
	walk.auth = r.Auth
	defer walk.show()
	err = s.converge(ctx, walk, plan)
	if back := before.before(); len(walk.undone) > 0 && back > 0 && ctx.Err() == nil {
		result.RolledBack = slices.Sorted(maps.Keys(walk.undone))
		number, failed := s.undo(ctx, op, a, r, record.Current, back, result.RolledBack, err)
		err = errors.Join(err, failed)
		result.Revision = number
	}
	if err == nil && r.Policy.Wait {
		err = s.waitAll(ctx, walk)
	}
	result.Failed = slices.Sorted(maps.Keys(walk.failed))
	if record.Journal != nil || !plan.Empty() {
		outcome := "applied"
		if err != nil {
			outcome = "failed: " + err.Error()
		}
		if s.ctx.Err() == nil { // else the next daemon goes on
			err = errors.Join(err, s.settled(ctx, doc.Name, record.Current, outcome))
		}
	}
	s.clock.set(doc.Name, a)
	return fail(err)
}

// converge walks plans until there is nothing to do.
func (s *Service) converge(ctx context.Context, walk *run, plan Plan) error {
	for round := 0; ; round++ {
		if plan.Empty() {
			return s.joined(ctx, walk)
		}
		walk.plan = plan
		o := map[string]Image{}
		if err := s.observeImages(ctx, walk.app, walk.sep, o); err != nil {
			return err
		}
		walk.images = o
		if err := s.part(ctx, plan); err != nil {
			return err
		}
		err := walk.walk(ctx)
		if err := errors.Join(err, s.joined(ctx, walk)); err != nil {
			return err
		}
		// Only what has come may need another plan.
		if !slices.ContainsFunc(plan.Steps, func(s Step) bool { return s.Action == Pull || s.Action == Build }) {
			return nil
		}
		if round == roundLimit {
			return fault.Internalf("%s does not settle: still to do after %d plans: %s", plan.App, roundLimit, plan.Steps[0].ID)
		}
		settled := map[string]bool{}
		for _, id := range walk.made {
			settled[id] = true
		}
		if plan, err = s.plan(ctx, walk.app, walk.policy, walk.fresh, settled); err != nil {
			return err
		}
		if !plan.Empty() {
			walk.op.tell(Progress{Plan: &plan})
		}
	}
}

// walker begins the walk of an application's plans.
func (s *Service) walker(op *operation, a *App, p Policy) *run {
	return &run{s: s, op: op, app: a, policy: p, sep: separator(p.Compatibility), images: map[string]Image{},
		made: map[string]string{}, fresh: map[string]bool{}, failed: map[string]error{}, rolls: map[string]map[int]bool{}, undone: map[string]struct{}{}, hidden: map[string]bool{}}
}

// part notes, before anything is done, which containers a plan takes off their
// networks for a while: nothing else would tell who has to come back.
func (s *Service) part(ctx context.Context, plan Plan) error {
	r, _ := s.record(plan.App)
	apart := slices.Clone(r.Apart)
	for _, st := range plan.Steps {
		if one := (Apart{Container: st.Container, Network: st.Key}); st.Action == Connect && !slices.Contains(apart, one) {
			apart = append(apart, one)
		}
	}
	if len(apart) == len(r.Apart) {
		return nil
	}
	_, err := s.change(ctx, plan.App, func(r *Record) { r.Apart = apart })
	return err
}

// joined forgets those that are back, or gone for good.
func (s *Service) joined(ctx context.Context, walk *run) error {
	p := walk.app.Project
	r, _ := s.record(p.Name)
	left := slices.DeleteFunc(slices.Clone(r.Apart), func(a Apart) bool {
		c, err := s.o.Containers.Get(ctx, a.Container)
		return errors.Is(err, fault.ErrNotFound) || slices.ContainsFunc(c.Spec.Endpoints, func(e container.EndpointSpec) bool { return e.Network == p.Networks[a.Network].Name })
	})
	if len(left) == len(r.Apart) {
		return nil
	}
	_, err := s.change(ctx, r.Name, func(r *Record) { r.Apart = left })
	return err
}

// wish records what is wanted now, with a journal where work is to be done.
func (s *Service) wish(ctx context.Context, op *operation, doc Document, p Policy, rev Revision, work bool) (Record, error) {
	r, _ := s.record(doc.Name)
	hash := doc.Hash()
	fresh := true
	var last Revision
	if r.Current > 0 {
		var err error
		if last, err = s.o.Store.Revision(ctx, doc.Name, r.Current); err != nil && !errors.Is(err, fault.ErrNotFound) {
			return r, err
		}
		fresh = last.Hash != hash
	}
	services := r.Services
	switch {
	case len(p.Services) == 0:
		services = nil
	case r.Current == 0:
		services = slices.Clone(p.Services)
	case services != nil:
		services = append(slices.Clone(services), p.Services...)
	}
	slices.Sort(services)
	services = slices.Compact(services)
	if !fresh && !work && !r.Stopped && slices.Equal(services, r.Services) && r.Compatibility == p.Compatibility {
		return r, nil // nothing changes, so nothing is written
	}
	number := r.Current
	if fresh {
		all, err := s.o.Store.RevisionNumbers(ctx, doc.Name)
		if err != nil {
			return r, err
		}
		number = 1
		if len(all) > 0 {
			number = all[len(all)-1] + 1
		}
		rev.Number, rev.Time, rev.Hash, rev.Document, rev.Outcome = number, time.Now(), hash, &doc, "applying"
		rev.Changes = changes(last.Document, &doc)
		if err := s.o.Store.PutRevision(ctx, doc.Name, rev); err != nil {
			return r, err
		}
		for _, old := range all[:max(0, len(all)+1-revisionLimit)] {
			if err := s.o.Store.DeleteRevision(ctx, doc.Name, old); err != nil {
				s.log.Warn("revision not removed", "app", doc.Name, "revision", old, "error", err)
			}
		}
	}
	crash.Point("app.wish")
	back := r.before()
	return s.change(ctx, doc.Name, func(r *Record) {
		r.Current, r.Services, r.Compatibility, r.Stopped = number, services, p.Compatibility, p.NoStart
		if work {
			// Finished by another daemon, nothing is recreated a second time.
			again := p
			if again.Recreate == RecreateForce {
				again.Recreate = RecreateDiverged
			}
			again.ReplaceVolume = false
			r.Journal = &Journal{Operation: op.ID, Verb: op.Verb, Started: op.Started, Revision: number, Before: back, Policy: again}
		}
	})
}

// settled notes the end of an operation.
func (s *Service) settled(ctx context.Context, name string, number int, outcome string) error {
	ctx = context.WithoutCancel(ctx)
	if err := s.ended(ctx, name, number, outcome); err != nil {
		return err
	}
	if r, _ := s.record(name); r.Journal == nil {
		return nil
	}
	_, err := s.change(ctx, name, func(r *Record) { r.Journal = nil })
	return err
}

// ended notes with a revision what became of it.
func (s *Service) ended(ctx context.Context, name string, number int, outcome string) error {
	rev, err := s.o.Store.Revision(ctx, name, number)
	if err == nil && rev.Outcome != outcome {
		rev.Outcome = outcome
		err = s.o.Store.PutRevision(ctx, name, rev)
	}
	return ignore(err, fault.ErrNotFound)
}

// undo brings services back to what an earlier revision says of them: that is
// the wish from now on, whoever finishes it. failed is the revision that is
// given up, cause why. It gives the revision that is wanted.
func (s *Service) undo(ctx context.Context, op *operation, a *App, r ApplyRequest, failed, number int, services []string, cause error) (int, error) {
	old, err := s.revision(ctx, r.Document.Name, number)
	if err != nil {
		return failed, err
	}
	before, err := old.Document.App()
	if err != nil {
		return failed, err
	}
	doc := r.Document
	doc.Files, doc.Contents = both(old.Document.Files, r.Document.Files), both(old.Document.Contents, r.Document.Contents)
	if doc.Project, err = encodeProject(mix(a.Project, before.Project, services)); err != nil {
		return failed, err
	}
	mixed, err := doc.App() // as the next daemon would read it, with the contents of both
	if err != nil {
		return failed, err
	}
	policy := Policy{Services: services, NoDeps: true, Compatibility: r.Policy.Compatibility, Timeout: r.Policy.Timeout, Pull: "never", NoBuild: true, Rollback: true}
	if err := s.ended(ctx, doc.Name, failed, "failed: "+cause.Error()); err != nil {
		return failed, err
	}
	rec, err := s.wish(ctx, op, doc, policy, Revision{Verb: "rollback", From: number, Comment: "the update failed"}, true)
	if err != nil {
		return failed, err
	}
	op.tell(Progress{Status: Warning, Text: fmt.Sprintf("going back to revision %d of %v", number, services)})
	plan, err := s.plan(ctx, mixed, policy, nil, nil)
	if err == nil {
		op.tell(Progress{Plan: &plan})
		err = s.converge(ctx, s.walker(op, mixed, policy), plan)
	}
	outcome := "applied"
	if err != nil {
		err = fmt.Errorf("go back: %w", err)
		outcome = "failed: " + err.Error()
	}
	if s.ctx.Err() == nil { // else the next daemon goes on
		err = errors.Join(err, s.settled(ctx, doc.Name, rec.Current, outcome))
	}
	return rec.Current, err
}

// mix gives a project with some services as another has them, and what they use.
func mix(now, before *types.Project, services []string) *types.Project {
	p := *now
	p.Services = maps.Clone(now.Services)
	for _, name := range services {
		if v, ok := before.Services[name]; ok {
			p.Services[name] = v
		}
	}
	p.Networks, p.Volumes = both(before.Networks, now.Networks), both(before.Volumes, now.Volumes)
	p.Secrets, p.Configs = both(before.Secrets, now.Secrets), both(before.Configs, now.Configs)
	return &p
}

// both joins two maps; what the second says counts.
func both[M ~map[string]V, V any](a, b M) M {
	m := M{}
	maps.Copy(m, a)
	maps.Copy(m, b)
	return m
}

// waitAll waits until all that was brought up runs, and is healthy where it has a check.
func (s *Service) waitAll(ctx context.Context, walk *run) error {
	if n := walk.policy.WaitTimeout; n > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(n)*time.Second)
		defer cancel()
	}
	p := &planner{in: Input{App: walk.app, Policy: walk.policy}, app: walk.app, project: walk.app.Project, selected: map[string]bool{}, explicit: map[string]bool{}}
	if err := p.choose(); err != nil {
		return err
	}
	errs := make(chan error, len(p.order))
	for _, name := range p.order {
		if p.scale(p.project.Services[name]) == 0 {
			errs <- nil
			continue
		}
		go func() {
			st := Step{ID: "wait for " + name, Action: Wait, Kind: KindService, Name: name, Service: name, Condition: ConditionRunning}
			err := walk.try(ctx, st)
			if errors.Is(err, context.DeadlineExceeded) {
				err = fault.Unavailablef("service %s is not running and healthy after %d s", name, walk.policy.WaitTimeout)
			}
			errs <- err
		}()
	}
	var all []error
	for range p.order {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// changes names the services that differ between two documents.
func changes(before, after *Document) (list []string) {
	hashes := func(d *Document) map[string]string {
		out := map[string]string{}
		if d == nil {
			return out
		}
		a, err := d.App()
		if err != nil {
			return out
		}
		for name, v := range a.Project.Services {
			h, err := ServiceHash(v)
			if err == nil {
				out[name] = fmt.Sprint(h, v.GetScale())
			}
		}
		return out
	}
	a, b := hashes(before), hashes(after)
	for name := range b {
		if a[name] != b[name] {
			list = append(list, name)
		}
	}
	for name := range a {
		if _, ok := b[name]; !ok {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

func (s *Service) revision(ctx context.Context, name string, number int) (Revision, error) {
	r, err := s.o.Store.Revision(ctx, name, number)
	if errors.Is(err, fault.ErrNotFound) {
		err = fault.NotFoundf("application %s has no revision %d (see `berth compose history`)", name, number)
	}
	return r, err
}

// History gives the revisions of an application, latest first.
func (s *Service) History(ctx context.Context, name string, documents bool) ([]Revision, error) {
	r, known := s.record(name)
	all, err := s.o.Store.Revisions(ctx, name)
	if err != nil {
		return nil, err
	}
	if !known && len(all) == 0 {
		return nil, fault.NotFoundf("no revision of %s is known: it was not applied by Berth", name)
	}
	slices.Reverse(all)
	for i := range all {
		all[i].Current = all[i].Number == r.Current
		if !documents {
			all[i].Document = nil
		}
	}
	return all, nil
}

// known gives what is wanted of an application: the document that came with a
// request, else that of the present revision; nil where there is neither.
func (s *Service) known(ctx context.Context, name string, given *Document) (*App, Record, error) {
	r, _ := s.record(name)
	if given != nil {
		if given.Name != name {
			return nil, r, fault.Invalidf("the document is of %q, not of %q", given.Name, name)
		}
		a, err := given.App()
		return a, r, err
	}
	if r.Current == 0 {
		return nil, r, nil
	}
	rev, err := s.revision(ctx, name, r.Current)
	if err != nil {
		return nil, r, err
	}
	a, err := rev.Document.App()
	return a, r, err
}

// walkPlan runs a plan of containers that are there.
func (s *Service) walkPlan(ctx context.Context, op *operation, a *App, sep string, parallel int, plan Plan) error {
	op.tell(Progress{Plan: &plan})
	walk := s.walker(op, a, Policy{Parallel: parallel})
	walk.sep, walk.plan = sep, plan
	return walk.walk(ctx)
}

func word(err error) Result {
	if err != nil {
		return Result{Error: err.Error()}
	}
	return Result{}
}

// Down takes an application away. It gives the operation's id.
func (s *Service) Down(ctx context.Context, name string, r DownRequest) (string, error) {
	a, _, err := s.known(ctx, name, r.Document)
	if err != nil {
		return "", err
	}
	op, err := s.begin(name, "down", func(ctx context.Context, op *operation) Result { return word(s.down(ctx, op, name, a, r)) })
	if err != nil {
		return "", err
	}
	return op.ID, nil
}

func (s *Service) down(ctx context.Context, op *operation, name string, a *App, r DownRequest) error {
	rec, known := s.record(name)
	o, err := s.observe(ctx, name, a, separator(rec.Compatibility))
	if err != nil {
		return err
	}
	plan, err := MakeDown(o, a, r)
	if err != nil {
		return err
	}
	if known {
		// From now on nothing is wanted any more, whatever happens here.
		journal := &Journal{Operation: op.ID, Verb: "down", Started: op.Started, Revision: rec.Current, Down: &DownRequest{Services: r.Services, Volumes: r.Volumes, Images: r.Images, RemoveOrphans: r.RemoveOrphans, Timeout: r.Timeout, Forget: r.Forget}}
		if _, err := s.change(ctx, name, func(rec *Record) {
			rec.Journal = journal
			if len(r.Services) == 0 {
				rec.Current, rec.Services = 0, nil
			} else {
				rec.leave(a, r.Services)
			}
		}); err != nil {
			return err
		}
	}
	if len(r.Services) == 0 {
		s.clock.set(name, nil)
	}
	if err := s.walkPlan(ctx, op, a, separator(rec.Compatibility), r.Parallel, plan); err != nil {
		// What failed is not tried again by a later daemon, when nobody
		// expects it; what a stop of this one interrupted is.
		if known && s.ctx.Err() == nil {
			_, cleared := s.change(context.WithoutCancel(ctx), name, func(rec *Record) { rec.Journal = nil })
			err = errors.Join(err, cleared)
		}
		return err
	}
	if !known {
		return nil
	}
	if !r.Forget || len(r.Services) > 0 {
		_, err := s.change(ctx, name, func(rec *Record) { rec.Journal = nil })
		return err
	}
	all, err := s.o.Store.RevisionNumbers(ctx, name)
	if err != nil {
		return err
	}
	for _, number := range all {
		if err := s.o.Store.DeleteRevision(ctx, name, number); err != nil {
			return err
		}
	}
	if err := s.o.Store.DeleteApp(ctx, name); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.records, name)
	s.mu.Unlock()
	return nil
}

// Act does one verb to containers that are there. It gives the operation's id.
func (s *Service) Act(ctx context.Context, name, verb string, r ActRequest) (string, error) {
	a, _, err := s.known(ctx, name, r.Document)
	if err != nil {
		return "", err
	}
	op, err := s.begin(name, verb, func(ctx context.Context, op *operation) Result {
		rec, _ := s.record(name) // others may have changed it while this one waited
		o, err := s.observe(ctx, name, nil, separator(rec.Compatibility))
		if err != nil {
			return word(err)
		}
		if len(o.Containers) == 0 && (verb == "start" || verb == "restart") {
			return word(fault.NotFoundf("%s has no container: bring it up first", name))
		}
		plan, err := MakeAct(o, a, verb, r)
		if err != nil {
			return word(err)
		}
		if err := s.noteAct(ctx, rec, a, o, plan, verb, r); err != nil {
			return word(err)
		}
		err = s.walkPlan(ctx, op, a, separator(rec.Compatibility), r.Parallel, plan)
		if err == nil && r.Wait && a != nil {
			err = s.waitAll(ctx, s.walker(op, a, Policy{Services: r.Services, NoDeps: r.NoDeps}))
		}
		return word(err)
	})
	if err != nil {
		return "", err
	}
	return op.ID, nil
}

// noteAct keeps what a verb says of the wish: after a stop of all nothing is
// started any more, and what was removed is not made again.
func (s *Service) noteAct(ctx context.Context, rec Record, a *App, o Observed, plan Plan, verb string, r ActRequest) error {
	if rec.Current == 0 {
		return nil
	}
	stopped := rec.Stopped
	var leaving []string
	switch verb {
	case "start", "restart":
		stopped = stopped && len(r.Services) > 0
	case "stop":
		stopped = stopped || len(r.Services) == 0
	case "kill":
		stopped = stopped || len(r.Services) == 0 && s.endsAll(ctx, plan, r.Signal)
	case "rm":
		leaving = emptied(o, plan)
	}
	if stopped == rec.Stopped && len(leaving) == 0 {
		return nil
	}
	after, err := s.change(ctx, rec.Name, func(r *Record) {
		if r.Stopped = stopped; len(leaving) > 0 {
			r.leave(a, leaving)
		}
	})
	if err == nil && after.Current == 0 {
		s.clock.set(rec.Name, nil)
	}
	return err
}

// endsAll tells whether a signal is meant to end every container of a plan: it
// kills, or it is the one by which the container is stopped. Others, as HUP,
// ask for something else, and restart policies go on.
func (s *Service) endsAll(ctx context.Context, plan Plan, text string) bool {
	if text == "" {
		text = "KILL"
	}
	sig, err := container.ParseSignal(text)
	if err != nil {
		return false // refused by each container
	}
	for _, st := range plan.Steps {
		if st.Action != Kill || sig == syscall.SIGKILL {
			continue
		}
		c, err := s.o.Containers.Get(ctx, st.Container)
		if err != nil {
			continue
		}
		if own, err := container.ParseSignal(c.Spec.StopSignal); err != nil || own != sig {
			return false
		}
	}
	return true
}

// emptied are the services of which a plan leaves no container.
func emptied(o Observed, plan Plan) (list []string) {
	left, gone := map[string]bool{}, map[string]bool{}
	for _, c := range o.Containers {
		if c.OneOff || c.Hook != "" {
			continue
		}
		if slices.ContainsFunc(plan.Steps, func(st Step) bool { return st.Action == Remove && st.Container == c.ID }) {
			gone[c.Service] = true
		} else {
			left[c.Service] = true
		}
	}
	for name := range gone {
		if !left[name] {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

// Scale sets numbers of containers. It gives the operation's id.
func (s *Service) Scale(ctx context.Context, name string, r ScaleRequest) (string, error) {
	a, rec, err := s.known(ctx, name, r.Document)
	if err != nil {
		return "", err
	}
	if a == nil {
		return "", fault.NotFoundf("nothing is known of %s: name its file", name)
	}
	for service := range r.Scale {
		if _, ok := a.Project.Services[service]; !ok {
			return "", fault.NotFoundf("no such service: %s", service)
		}
	}
	doc, err := s.document(ctx, name, rec, r.Document)
	if err != nil {
		return "", err
	}
	policy := Policy{Services: slices.Sorted(maps.Keys(r.Scale)), Scale: r.Scale, NoDeps: r.NoDeps, Timeout: r.Timeout, Compatibility: rec.Compatibility, NoBuild: true, Parallel: r.Parallel}
	op, err := s.begin(name, "scale", func(ctx context.Context, op *operation) Result {
		// Others may have changed the wish while this one waited.
		if r.Document == nil {
			if now, rec, err := s.known(ctx, name, nil); err == nil && now != nil {
				a = now
				if d, err := s.document(ctx, name, rec, nil); err == nil {
					doc = d
				}
			}
		}
		return s.apply(ctx, op, a, ApplyRequest{Document: doc, Policy: policy}, Revision{Verb: "scale"})
	})
	if err != nil {
		return "", err
	}
	return op.ID, nil
}

func (s *Service) document(ctx context.Context, name string, rec Record, given *Document) (Document, error) {
	if given != nil {
		return *given, nil
	}
	rev, err := s.revision(ctx, name, rec.Current)
	if err != nil {
		return Document{}, err
	}
	return *rev.Document, nil
}

// Rollback applies an earlier revision. It gives the operation's id.
func (s *Service) Rollback(ctx context.Context, name string, r RollbackRequest) (string, error) {
	rec, _ := s.record(name)
	number := r.Revision
	if number == 0 {
		all, err := s.o.Store.RevisionNumbers(ctx, name)
		if err != nil {
			return "", err
		}
		for _, n := range all {
			if n < rec.Current {
				number = n
			}
		}
		if number == 0 {
			return "", fault.NotFoundf("%s has no revision before the present one", name)
		}
	}
	rev, err := s.revision(ctx, name, number)
	if err != nil {
		return "", err
	}
	a, err := rev.Document.App()
	if err != nil {
		return "", err
	}
	r.Policy.Compatibility = r.Policy.Compatibility || rec.Compatibility
	r.Policy.Rollback = true
	op, err := s.begin(name, "rollback", func(ctx context.Context, op *operation) Result {
		return s.apply(ctx, op, a, ApplyRequest{Document: *rev.Document, Policy: r.Policy}, Revision{Verb: "rollback", From: number})
	})
	if err != nil {
		return "", err
	}
	return op.ID, nil
}

// Pull fetches images. It gives the operation's id.
func (s *Service) Pull(_ context.Context, r ApplyRequest) (string, error) {
	a, err := r.Document.App()
	if err != nil {
		return "", err
	}
	op, err := s.begin(r.Document.Name, "pull", func(ctx context.Context, op *operation) Result {
		p := r.Policy
		if p.Pull == "" {
			p.Pull = "always"
		}
		p.NoBuild = true
		o, err := s.observe(ctx, r.Document.Name, a, separator(p.Compatibility))
		if err != nil {
			return word(err)
		}
		o.Containers = nil
		plan, err := MakePlan(Input{App: a, Observed: o, Policy: p, Now: time.Now()})
		if err != nil {
			return word(err)
		}
		plan.Steps = slices.DeleteFunc(plan.Steps, func(s Step) bool { return s.Action != Pull })
		op.tell(Progress{Plan: &plan})
		walk := s.walker(op, a, p)
		walk.auth, walk.plan, walk.images = r.Auth, plan, o.Images
		return word(walk.walk(ctx))
	})
	if err != nil {
		return "", err
	}
	return op.ID, nil
}
