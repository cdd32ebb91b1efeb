package app

import "time"

// The structs of this file are what the native API speaks (docs/design/app.md);
// their JSON is read by clients of other releases: fields are added, not changed.

// Recreate says when a container that is there gives way to a new one.
type Recreate string

// When containers are recreated.
const (
	RecreateDiverged Recreate = ""      // when what is wanted differs from what is there
	RecreateForce    Recreate = "force" // always
	RecreateNever    Recreate = "never" // not even then
)

// Policy is how far a plan may go. Its zero value is a plain "up".
type Policy struct {
	Services      []string       `json:"services,omitempty"`        // these and what they depend on; none means all
	NoDeps        bool           `json:"no_deps,omitempty"`         // leave alone what Services depend on
	Recreate      Recreate       `json:"recreate,omitempty"`        // of Services
	RecreateDeps  Recreate       `json:"recreate_deps,omitempty"`   // of what they depend on
	RenewVolumes  bool           `json:"renew_volumes,omitempty"`   // new anonymous volumes for recreated containers
	ReplaceVolume bool           `json:"replace_volumes,omitempty"` // a volume of changed configuration is made anew: its data is lost
	RemoveOrphans bool           `json:"remove_orphans,omitempty"`
	Scale         map[string]int `json:"scale,omitempty"`    // containers by service, over what the file says
	NoStart       bool           `json:"no_start,omitempty"` // create, do not start
	Timeout       *int           `json:"timeout,omitempty"`  // seconds a stop may take; nil: the service's own
	Pull          string         `json:"pull,omitempty"`     // "always", "missing", "never", "build"; "" leaves it to each service
	Build         bool           `json:"build,omitempty"`    // build services that can be built, even if their image is here
	NoBuild       bool           `json:"no_build,omitempty"`
	Wait          bool           `json:"wait,omitempty"`          // end when all is running or healthy
	WaitTimeout   int            `json:"wait_timeout,omitempty"`  // seconds; 0: no limit
	Compatibility bool           `json:"compatibility,omitempty"` // names with _ between their parts
	Parallel      int            `json:"parallel,omitempty"`      // steps at a time; 0 is the daemon's choice
	NoRoll        bool           `json:"no_roll,omitempty"`       // replace at once, whatever update_config says
	Rollback      bool           `json:"rollback,omitempty"`      // it is a way back: replace as rollback_config says
}

// ApplyRequest is the body of POST /berth/v1/apps/{app}/apply and …/plan.
type ApplyRequest struct {
	Document Document                `json:"document"`
	Policy   Policy                  `json:"policy"`
	Auth     map[string]RegistryAuth `json:"auth,omitempty"`    // by registry's host, for pulls
	Comment  string                  `json:"comment,omitempty"` // kept with the revision
}

// RegistryAuth is what a person gave to reach one registry.
type RegistryAuth struct {
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identity_token,omitempty"`
	RegistryToken string `json:"registry_token,omitempty"`
}

// RunRequest is the body of POST /berth/v1/apps/{app}/run: it makes one
// container of a service beside its others and starts what the service depends
// on. The caller attaches to and starts the container (Result.Container) by the
// Docker API. What --env, --user and the like change is changed in Document.
type RunRequest struct {
	Document    Document                `json:"document"`
	Auth        map[string]RegistryAuth `json:"auth,omitempty"`
	Service     string                  `json:"service"`
	Name        string                  `json:"name,omitempty"`        // "" makes one: app-service-run-0123456789ab
	AutoRemove  bool                    `json:"auto_remove,omitempty"` // --rm
	Interactive bool                    `json:"interactive,omitempty"` // attach stdin
	TTY         bool                    `json:"tty,omitempty"`
	Ports       bool                    `json:"ports,omitempty"`   // --service-ports
	Aliases     bool                    `json:"aliases,omitempty"` // --use-aliases
	Labels      map[string]string       `json:"labels,omitempty"`
	Policy      Policy                  `json:"policy"` // NoDeps, Pull, Build, RemoveOrphans
}

// DownRequest is the body of POST /berth/v1/apps/{app}/down. Document may be
// absent: then what carries the application's labels is removed.
type DownRequest struct {
	Document      *Document `json:"document,omitempty"`
	Services      []string  `json:"services,omitempty"` // only their containers; none means all, with networks
	Volumes       bool      `json:"volumes,omitempty"`  // named and anonymous ones
	Images        string    `json:"images,omitempty"`   // "", "all" or "local" (those without a name of their own)
	RemoveOrphans bool      `json:"remove_orphans,omitempty"`
	Timeout       *int      `json:"timeout,omitempty"`  // seconds
	Forget        bool      `json:"forget,omitempty"`   // the history too
	Parallel      int       `json:"parallel,omitempty"` // steps at a time; 0 is the daemon's choice
}

// ActRequest is the body of POST /berth/v1/apps/{app}/{start,stop,restart,pause,unpause,kill,rm}.
type ActRequest struct {
	Document      *Document `json:"document,omitempty"` // gives the order of services; else labels do
	Services      []string  `json:"services,omitempty"` // none means all
	NoDeps        bool      `json:"no_deps,omitempty"`
	Timeout       *int      `json:"timeout,omitempty"`        // seconds
	Signal        string    `json:"signal,omitempty"`         // kill
	Volumes       bool      `json:"volumes,omitempty"`        // rm: anonymous ones
	Stop          bool      `json:"stop,omitempty"`           // rm: stop what runs first
	Wait          bool      `json:"wait,omitempty"`           // start
	RemoveOrphans bool      `json:"remove_orphans,omitempty"` // kill: also what is of no service of Document
	Parallel      int       `json:"parallel,omitempty"`       // steps at a time; 0 is the daemon's choice
}

// ScaleRequest is the body of POST /berth/v1/apps/{app}/scale. Without a
// Document the latest revision's is taken.
type ScaleRequest struct {
	Document *Document      `json:"document,omitempty"`
	Scale    map[string]int `json:"scale"`
	NoDeps   bool           `json:"no_deps,omitempty"`
	Timeout  *int           `json:"timeout,omitempty"`
	Parallel int            `json:"parallel,omitempty"` // steps at a time; 0 is the daemon's choice
}

// RollbackRequest is the body of POST /berth/v1/apps/{app}/rollback.
type RollbackRequest struct {
	Revision int    `json:"revision,omitempty"` // 0: the one before the present one
	Policy   Policy `json:"policy"`
}

// Step is one thing to do. Its ID is stable for the same plan.
type Step struct {
	ID        string   `json:"id"`     // "create container shop-web-1"
	Action    Action   `json:"action"` // create, start, …
	Kind      Kind     `json:"kind"`
	Name      string   `json:"name"`                // of the resource
	Service   string   `json:"service,omitempty"`   // or job
	Number    int      `json:"number,omitempty"`    // of the container within its service
	Container string   `json:"container,omitempty"` // id of the one that is there
	Why       string   `json:"why"`
	After     []string `json:"after,omitempty"` // ids of steps that come first

	// What some actions need besides.
	Key       string `json:"key,omitempty"`       // network, volume: its name in the file
	Condition string `json:"condition,omitempty"` // wait: "healthy", "completed", "running"
	Optional  bool   `json:"optional,omitempty"`  // its failure is told and goes no further
	Final     string `json:"final,omitempty"`     // create, rename: the name it has in the end
	Replaces  string `json:"replaces,omitempty"`  // create: id of the container whose anonymous volumes it takes over
	Volumes   bool   `json:"volumes,omitempty"`   // remove: anonymous volumes too
	Timeout   *int   `json:"timeout,omitempty"`   // stop: seconds
	Hook      int    `json:"hook,omitempty"`      // pre_start: which one
	Roll      string `json:"roll,omitempty"`      // belongs to this service's rolling replacement
}

// Kind of a resource.
type Kind string

// Kinds of resources.
const (
	KindContainer Kind = "container"
	KindNetwork   Kind = "network"
	KindVolume    Kind = "volume"
	KindImage     Kind = "image"
	KindService   Kind = "service"
	KindJob       Kind = "job"
)

// Action of a step.
type Action string

// Actions of steps.
const (
	Create     Action = "create"
	Start      Action = "start"
	Stop       Action = "stop"
	Restart    Action = "restart"
	Remove     Action = "remove"
	Rename     Action = "rename"
	Wait       Action = "wait"
	Connect    Action = "connect"
	Disconnect Action = "disconnect"
	Pull       Action = "pull"
	Build      Action = "build"
	Hook       Action = "run hook"
	Pause      Action = "pause"
	Unpause    Action = "unpause"
	Kill       Action = "kill"
	Switch     Action = "switch ports to"
)

// Plan is what would be done: steps in an order in which they may be run one
// by one; each needs only those in its After.
type Plan struct {
	App      string   `json:"app"`
	Steps    []Step   `json:"steps"`
	Kept     []string `json:"kept,omitempty"`    // names of containers that stay as they are
	Orphans  []string `json:"orphans,omitempty"` // names of containers of no service that stay
	Warnings []string `json:"warnings,omitempty"`
}

// Status of a step that is reported.
type Status string

// How a step stands.
const (
	Waiting Status = "waiting" // it waits for a condition, not only for its turn
	Working Status = "working"
	Done    Status = "done"
	Failed  Status = "failed"
	Skipped Status = "skipped" // what it needs has failed
	Warning Status = "warning"
)

// Progress is one line of an operation's stream (application/x-ndjson). The
// first has Plan, the last Result; those between tell of steps.
type Progress struct {
	Seq       int       `json:"seq"`       // from 1, without gaps
	Operation string    `json:"operation"` // its id
	Time      time.Time `json:"time"`

	Step      string `json:"step,omitempty"` // its id; "" speaks of the whole
	Action    Action `json:"action,omitempty"`
	Kind      Kind   `json:"kind,omitempty"`
	Name      string `json:"name,omitempty"`
	Service   string `json:"service,omitempty"`
	Container string `json:"container,omitempty"` // id, once there is one
	Status    Status `json:"status,omitempty"`
	Text      string `json:"text,omitempty"`    // for people: "Started", "db is unhealthy"
	Part      string `json:"part,omitempty"`    // pull: the layer
	Current   int64  `json:"current,omitempty"` // bytes
	Total     int64  `json:"total,omitempty"`

	Plan   *Plan   `json:"plan,omitempty"`
	Result *Result `json:"result,omitempty"`
}

// Result is how an operation ended.
type Result struct {
	Error      string   `json:"error,omitempty"`  // "" is success
	Failed     []string `json:"failed,omitempty"` // ids of steps that failed themselves
	Canceled   bool     `json:"canceled,omitempty"`
	Revision   int      `json:"revision,omitempty"`    // that is wanted now
	Changed    bool     `json:"changed,omitempty"`     // something was done
	RolledBack []string `json:"rolled_back,omitempty"` // services that went back
	Container  string   `json:"container,omitempty"`   // run: its id
}

// Operation is work under way or lately ended.
type Operation struct {
	ID      string    `json:"id"`
	App     string    `json:"app"`
	Verb    string    `json:"verb"` // "apply", "down", …
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
	Result  *Result   `json:"result,omitempty"` // nil while it runs
}

// Revision is one wish that was applied.
type Revision struct {
	Number   int       `json:"number"` // from 1
	Time     time.Time `json:"time"`
	Hash     string    `json:"hash"` // of Document; equal wishes have equal hashes
	Verb     string    `json:"verb"` // "apply", "scale", "rollback"
	Comment  string    `json:"comment,omitempty"`
	From     int       `json:"from,omitempty"` // rollback: the revision it repeats
	Current  bool      `json:"current,omitempty"`
	Outcome  string    `json:"outcome"`            // "applied", "failed: …", "applying"
	Changes  []string  `json:"changes,omitempty"`  // services that differ from the revision before
	Document *Document `json:"document,omitempty"` // with ?document=1 only
}

// Summary is a row of GET /berth/v1/apps.
type Summary struct {
	Name        string         `json:"name"`
	Status      map[string]int `json:"status"` // containers by state
	ConfigFiles []string       `json:"config_files,omitempty"`
	WorkingDir  string         `json:"working_dir,omitempty"`
	Managed     bool           `json:"managed"` // applied by Berth: kept so
	Revision    int            `json:"revision,omitempty"`
	Operation   string         `json:"operation,omitempty"` // the one under way
}

// Details is the answer of GET /berth/v1/apps/{app}.
type Details struct {
	Summary
	Document *Document  `json:"document,omitempty"` // what is wanted, where it is known
	Observed *Observed  `json:"observed"`
	Jobs     []JobState `json:"jobs,omitempty"`
	Drift    *Plan      `json:"drift,omitempty"` // what would be done to come from Observed to Document
}

// JobState is a job and when it runs.
type JobState struct {
	Name     string    `json:"name"`
	Schedule string    `json:"schedule,omitempty"`
	Next     time.Time `json:"next,omitzero"`
	Last     time.Time `json:"last,omitzero"`
	Outcome  string    `json:"outcome,omitempty"` // of the last run: "running", "exit 0", …
	Queued   int       `json:"queued,omitempty"`  // runs that wait for its end
}

// Happening is one line of GET /berth/v1/apps/{app}/events: what happened to
// what the application consists of.
type Happening struct {
	Time       time.Time         `json:"time"`
	Kind       Kind              `json:"kind"`
	Action     string            `json:"action"`
	ID         string            `json:"id"`
	Service    string            `json:"service,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
}
