package docker

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/storage"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/core/image"
	"github.com/berth-project/berth/lib/fault"
)

func (d *Door) listImages(w http.ResponseWriter, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	if v := r.Form.Get("filter"); v != "" && r.version < 41 {
		f["reference"] = append(f["reference"], v)
	}
	list, err := d.o.Images.List(r.Context(), image.ListOptions{All: r.flag("all"), SharedSize: r.flag("shared-size"), Manifests: r.flag("manifests"), Filters: f})
	if err != nil {
		return err
	}
	out := []any{}
	for _, i := range list {
		out = append(out, imageSummary(i, r.version, false))
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// imageSummary is a row of the list; usage is one of the disk's use.
func imageSummary(i image.Image, version int, usage bool) map[string]any {
	m := map[string]any{
		"Id": i.ID, "ParentId": i.Parent, "RepoTags": orEmpty(i.RepoTags), "RepoDigests": orEmpty(i.RepoDigests), "Created": max(i.Created.Unix(), 0), "Size": i.Size,
		"SharedSize": i.SharedSize, "Labels": i.Config.Labels, "Containers": i.Containers,
	}
	if version < 51 && !usage {
		m["Containers"] = -1
	}
	if version < 44 {
		m["VirtualSize"] = i.Size
		if len(i.RepoTags) == 0 {
			m["RepoTags"], m["RepoDigests"] = []string{"<none>:<none>"}, []string{"<none>@<none>"}
		}
	}
	if version >= 48 && i.Target.Digest != "" {
		m["Descriptor"] = descriptor(i.Target)
	}
	if version >= 47 && i.Manifests != nil {
		m["Manifests"] = manifests(i.Manifests)
	}
	return m
}

func descriptor(t image.Descriptor) map[string]any {
	m := map[string]any{"mediaType": t.MediaType, "digest": t.Digest, "size": t.Size}
	if len(t.Annotations) > 0 {
		m["annotations"] = t.Annotations
	}
	if t.Platform != nil {
		m["platform"] = platformBody(*t.Platform)
	}
	return m
}

func platformBody(p image.Platform) ocispec.Platform {
	return ocispec.Platform{Architecture: p.Architecture, OS: p.OS, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures, Variant: p.Variant}
}

// manifests tells of every manifest of an index.
func manifests(list []image.ManifestSummary) []any {
	out := []any{}
	for _, s := range list {
		m := map[string]any{
			"ID": s.Descriptor.Digest, "Descriptor": descriptor(s.Descriptor), "Available": s.Available, "Kind": s.Kind,
			"Size": map[string]int64{"Content": s.ContentSize, "Total": s.ContentSize + s.UnpackedSize},
		}
		switch s.Kind {
		case "image":
			p := image.Platform{}
			if s.Descriptor.Platform != nil {
				p = *s.Descriptor.Platform
			}
			m["ImageData"] = map[string]any{"Platform": platformBody(p), "Size": map[string]int64{"Unpacked": s.UnpackedSize}, "Containers": orEmpty(s.Containers)}
		case "attestation":
			m["AttestationData"] = map[string]string{"For": s.Descriptor.Annotations["vnd.docker.reference.digest"]}
		}
		out = append(out, m)
	}
	return out
}

// platforms reads a query's platforms: objects of the OCI image specification,
// or what people write (linux/arm64).
func (r *request) platforms(name string) ([]string, error) {
	var list []string
	for _, text := range r.Form[name] {
		if text == "" {
			continue
		}
		if !strings.HasPrefix(text, "{") {
			list = append(list, text)
			continue
		}
		var p ocispec.Platform
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			return nil, fault.Invalidf("failed to parse platform: %w", err)
		}
		if p.OS == "" || p.Architecture == "" {
			return nil, fault.Invalidf("both OS and Architecture must be provided")
		}
		words := []string{p.OS, p.Architecture}
		if p.Variant != "" {
			words = append(words, p.Variant)
		}
		list = append(list, strings.Join(words, "/"))
	}
	return list, nil
}

// platform reads the only one, "" where none is given.
func (r *request) platform() (string, error) {
	list, err := r.platforms("platform")
	switch {
	case err != nil || len(list) == 0:
		return "", err
	case len(list) > 1:
		return "", fault.Invalidf("multiple platform parameters not supported")
	}
	return list[0], nil
}

func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

var imageVerbs = []string{"json", "attestations", "history", "get", "push", "tag"}

func (d *Door) imageGet(w http.ResponseWriter, r *request) error {
	name, verb := cutVerb(r.PathValue("name"), imageVerbs...)
	platform, err := r.platform()
	if err != nil && verb != "get" {
		return err
	}
	switch verb {
	case "json":
		if platform != "" && r.flag("manifests") {
			return fault.Invalidf("conflicting options: manifests and platform options cannot both be set")
		}
		i, err := d.o.Images.Get(r.Context(), name, platform, r.flag("manifests"))
		if err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, imageBody(i, r.version))
		return nil
	case "history":
		items, err := d.o.Images.History(r.Context(), name, platform)
		if err != nil {
			return err
		}
		out := []any{}
		for _, h := range items {
			out = append(out, map[string]any{"Id": h.ID, "Created": h.Created.Unix(), "CreatedBy": h.CreatedBy, "Tags": h.Tags, "Size": h.Size, "Comment": h.Comment})
		}
		writeJSON(w, http.StatusOK, out)
		return nil
	case "attestations":
		if r.version < 55 {
			break
		}
		list, err := d.o.Images.Attestations(r.Context(), name, platform, r.Form["type"], r.flag("statement"))
		if err != nil {
			return err
		}
		out := []any{}
		for _, a := range list {
			m := map[string]any{"Descriptor": descriptor(a.Descriptor), "PredicateType": a.PredicateType}
			if a.Statement != nil {
				m["Statement"] = json.RawMessage(a.Statement)
			}
			out = append(out, m)
		}
		writeJSON(w, http.StatusOK, out)
		return nil
	case "get":
		return d.save(w, r, []string{name})
	}
	return &fault.Error{Class: fault.ErrNotFound, Msg: "page not found"}
}

func imageBody(i image.Image, version int) map[string]any {
	config := imageConfig(i.RawConfig, version)
	m := map[string]any{
		"Id": i.ID, "RepoTags": orEmpty(i.RepoTags), "RepoDigests": orEmpty(i.RepoDigests), "Comment": i.Comment, "Created": stamp(i.Created), "Author": i.Author,
		"Config": config, "Architecture": i.Arch, "Os": i.OS, "Size": i.Size, "GraphDriver": storage.DriverData{Name: "overlay2", Data: i.Layer},
		"RootFS": map[string]any{"Type": "layers", "Layers": orEmpty(i.Layers)}, "Metadata": map[string]any{"LastTagTime": stamp(i.LastTagged)},
	}
	if i.Variant != "" {
		m["Variant"] = i.Variant
	}
	if version < 52 {
		m["Parent"], m["DockerVersion"] = i.Parent, ""
	}
	// docker-compose 1 takes the newest version and looks for volumes there.
	m["ContainerConfig"] = config
	if version < 45 {
		m["Container"] = ""
	}
	if i.Created.IsZero() && version >= 44 {
		delete(m, "Created")
	}
	if version >= 48 && i.Manifests != nil {
		m["Manifests"] = manifests(i.Manifests)
	}
	if version < 44 {
		m["VirtualSize"] = i.Size
	}
	if version >= 48 && i.Target.Digest != "" {
		m["Descriptor"] = descriptor(i.Target)
	}
	return m
}

// imageConfig gives an image's configuration as it is written; older versions
// always showed all fields, those of a container too.
func imageConfig(raw []byte, version int) json.RawMessage {
	if len(raw) == 0 {
		raw = []byte("{}")
	}
	if version >= 52 {
		return raw
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(raw, &fields) != nil || fields == nil {
		return raw
	}
	fill := func(value string, names ...string) {
		for _, n := range names {
			if _, ok := fields[n]; !ok {
				fields[n] = json.RawMessage(value)
			}
		}
	}
	fill("null", "Cmd", "Entrypoint", "Env", "Labels", "OnBuild", "Volumes")
	fill(`""`, "User", "WorkingDir")
	if version < 50 {
		fill(`""`, "Hostname", "Domainname", "Image")
		fill("false", "AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce")
	}
	whole, err := json.Marshal(fields)
	if err != nil {
		return raw
	}
	return whole
}

func (d *Door) imagePost(w http.ResponseWriter, r *request) error {
	name, verb := cutVerb(r.PathValue("name"), imageVerbs...)
	switch verb {
	case "tag":
		to := r.Form.Get("repo")
		if to == "" {
			return fault.Invalidf("repository name can't be empty")
		}
		if tag := r.Form.Get("tag"); tag != "" {
			to += ":" + tag
		}
		if err := d.o.Images.Tag(r.Context(), name, to); err != nil {
			return err
		}
		w.WriteHeader(http.StatusCreated)
		return nil
	case "push":
		auth, err := authOf(r)
		if err != nil {
			return err
		}
		platform, err := r.platform()
		if err != nil {
			return err
		}
		tag := r.Form.Get("tag")
		if tag != "" {
			name += ":" + tag
		}
		return d.progress(w, func(report func(image.Progress)) error {
			return d.o.Images.Push(r.Context(), name, image.PushOptions{Platform: platform, All: tag == "", Auth: auth}, report)
		})
	}
	return &fault.Error{Class: fault.ErrNotFound, Msg: "page not found"}
}

func authOf(r *request) (*image.Auth, error) {
	text := r.Header.Get("X-Registry-Auth")
	if text == "" {
		return nil, nil
	}
	b, err := base64.URLEncoding.DecodeString(text)
	if err != nil {
		if b, err = base64.RawURLEncoding.DecodeString(text); err != nil {
			return nil, fault.Invalidf("invalid X-Registry-Auth header: %w", err)
		}
	}
	var a registry.AuthConfig
	if len(b) > 0 {
		if err := json.Unmarshal(b, &a); err != nil {
			return nil, fault.Invalidf("invalid X-Registry-Auth header: %w", err)
		}
	}
	return &image.Auth{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken, ServerAddress: a.ServerAddress}, nil
}

// progress sends reports as lines of JSON. An error after the first line comes as a line too.
func (d *Door) progress(w http.ResponseWriter, work func(report func(image.Progress)) error) error {
	var mu sync.Mutex
	begun := false
	e := json.NewEncoder(w)
	send := func(v any) {
		mu.Lock()
		defer mu.Unlock()
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusOK)
		}
		_ = e.Encode(v)
		_ = http.NewResponseController(w).Flush()
	}
	err := work(func(p image.Progress) { send(progressBody(p)) })
	if err != nil && begun {
		_, text := dialect(err)
		send(map[string]any{"errorDetail": map[string]string{"message": text}, "error": text})
		return nil
	}
	return err
}

func progressBody(p image.Progress) map[string]any {
	m := map[string]any{}
	if p.Stream != "" {
		m["stream"] = p.Stream
	}
	if p.Status != "" {
		m["status"] = p.Status
	}
	if p.ID != "" {
		m["id"] = p.ID
		m["progressDetail"] = map[string]any{}
	}
	if p.Total > 0 || p.Current > 0 {
		m["progressDetail"] = map[string]any{"current": p.Current, "total": p.Total}
		m["progress"] = bar(p.Current, p.Total)
	}
	if p.Aux != nil {
		m["aux"] = p.Aux
	}
	return m
}

// bar is drawn by the daemon for old clients: fifty columns and two sizes.
func bar(current, total int64) string {
	if total <= 0 || current > total {
		return humanSize(current)
	}
	n := int(current * 50 / total)
	line := strings.Repeat("=", n)
	if n < 50 {
		line += ">" + strings.Repeat(" ", 49-n)
	}
	return "[" + line + "]  " + humanSize(current) + "/" + humanSize(total)
}

func (d *Door) createImage(w http.ResponseWriter, r *request) error {
	from, src := r.Form.Get("fromImage"), r.Form.Get("fromSrc")
	tag := r.Form.Get("tag")
	if from != "" {
		if err := r.discard(); err != nil {
			return err
		}
		auth, err := authOf(r)
		if err != nil {
			return err
		}
		ref := from
		switch {
		case strings.Contains(tag, ":"):
			ref += "@" + tag
		case tag != "":
			ref += ":" + tag
		}
		return d.progress(w, func(report func(image.Progress)) error {
			return d.o.Images.Pull(r.Context(), ref, image.PullOptions{Platform: r.Form.Get("platform"), All: tag == "" && !strings.Contains(from[strings.LastIndexByte(from, '/')+1:], ":"), Auth: auth}, report)
		})
	}
	if src == "" {
		return fault.Invalidf("fromImage or fromSrc must be given")
	}
	ref := r.Form.Get("repo")
	if ref != "" && tag != "" {
		ref += ":" + tag
	}
	o := image.ImportOptions{Reference: ref, Message: r.Form.Get("message"), Changes: r.Form["changes"], Platform: r.Form.Get("platform"), Source: src}
	return d.progress(w, func(report func(image.Progress)) error {
		id, err := "", error(nil)
		if src == "-" {
			id, err = d.o.Images.Import(r.Context(), r.Body, o)
		} else {
			id, err = d.o.Images.ImportURL(r.Context(), o, report)
		}
		if err == nil {
			report(image.Progress{Status: id})
		}
		return err
	})
}

func (d *Door) loadImages(w http.ResponseWriter, r *request) error {
	platforms, err := r.platforms("platform")
	if err != nil {
		return err
	}
	return d.progress(w, func(report func(image.Progress)) error {
		return d.o.Images.Load(r.Context(), r.Body, r.flag("quiet"), platforms, report)
	})
}

func (d *Door) saveImages(w http.ResponseWriter, r *request) error {
	return d.save(w, r, r.Form["names"])
}

func (d *Door) save(w http.ResponseWriter, r *request, names []string) error {
	platforms, err := r.platforms("platform")
	if err != nil {
		return err
	}
	return d.download(w, func(out io.Writer) error {
		return d.o.Images.Save(r.Context(), names, platforms, out)
	})
}

func (d *Door) removeImage(w http.ResponseWriter, r *request) error {
	platforms, err := r.platforms("platforms")
	if err != nil {
		return err
	}
	results, err := d.o.Images.Remove(r.Context(), r.PathValue("name"), r.flag("force"), !r.flag("noprune"), platforms)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, removed(results))
	return nil
}

func removed(results []image.RemoveResult) []map[string]string {
	out := []map[string]string{}
	for _, r := range results {
		if r.Untagged != "" {
			out = append(out, map[string]string{"Untagged": r.Untagged})
		} else {
			out = append(out, map[string]string{"Deleted": r.Deleted})
		}
	}
	return out
}

func (d *Door) pruneImages(w http.ResponseWriter, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	results, freed, err := d.o.Images.Prune(r.Context(), f)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]any{"ImagesDeleted": removed(results), "SpaceReclaimed": freed})
	return nil
}

func (d *Door) searchImages(w http.ResponseWriter, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	limit, err := r.number("limit", 25)
	if err != nil {
		return err
	}
	auth, err := authOf(r)
	if err != nil {
		return err
	}
	list, err := d.o.Images.Search(r.Context(), r.Form.Get("term"), limit, f, auth)
	if err != nil {
		return err
	}
	out := []any{}
	for _, s := range list {
		out = append(out, map[string]any{"name": s.Name, "description": s.Description, "star_count": s.Stars, "is_official": s.Official, "is_automated": s.Automated})
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func (d *Door) distribution(w http.ResponseWriter, r *request) error {
	name, verb := cutVerb(r.PathValue("name"), "json")
	if verb == "" {
		return &fault.Error{Class: fault.ErrNotFound, Msg: "page not found"}
	}
	auth, err := authOf(r)
	if err != nil {
		return err
	}
	i, err := d.o.Images.Distribution(r.Context(), name, auth)
	if err != nil {
		return err
	}
	platforms := []any{}
	for _, p := range i.Platforms {
		platforms = append(platforms, map[string]any{"architecture": p.Architecture, "os": p.OS, "variant": p.Variant})
	}
	writeJSON(w, http.StatusOK, map[string]any{"Descriptor": descriptor(i.Descriptor), "Platforms": platforms})
	return nil
}
