package task

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/core/container"
)

func TestLabelOptionsFollowTheNamespaces(t *testing.T) {
	labelled := func(label string) container.Container {
		return container.Container{ID: "0123456789abcdef", ProcessLabel: label}
	}
	a := labelled("system_u:system_r:container_t:s0:c1,c2")
	b := labelled("system_u:system_r:container_t:s0:c3,c4")
	for name, c := range map[string]struct {
		spec   container.Spec
		joined []container.Container
		want   []string
		fails  bool
	}{
		"nothing asked for":             {},
		"what is asked for":             {spec: container.Spec{SecurityOpt: []string{"label=type:svirt_t", "label:level:s0:c9", "seccomp=unconfined"}}, want: []string{"type:svirt_t", "level:s0:c9"}},
		"disabled":                      {spec: container.Spec{SecurityOpt: []string{"label=disable"}}, want: []string{"disable"}},
		"privileged":                    {spec: container.Spec{Privileged: true}, want: []string{"disable"}},
		"privileged with a label":       {spec: container.Spec{Privileged: true, SecurityOpt: []string{"label=type:mine_t"}}, want: []string{"type:mine_t"}},
		"processes of the host":         {spec: container.Spec{PidMode: "host"}, want: []string{"disable"}},
		"ipc of the host":               {spec: container.Spec{IpcMode: "host"}, want: []string{"disable"}},
		"ipc of another container":      {joined: []container.Container{a}, want: []string{"user:system_u", "role:system_r", "type:container_t", "level:s0:c1,c2"}},
		"both of the same container":    {joined: []container.Container{a, a}, want: []string{"user:system_u", "role:system_r", "type:container_t", "level:s0:c1,c2"}},
		"of two containers":             {joined: []container.Container{a, b}, fails: true},
		"of a container without labels": {joined: []container.Container{labelled("")}, want: []string{"disable"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := labelOptions(c.spec, c.joined)
			if (err != nil) != c.fails {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWithoutSELinuxNothingIsLabelled(t *testing.T) {
	r := fixed(t, nil)
	held, err := r.Confine(container.Container{Spec: container.Spec{SecurityOpt: []string{"label=type:mine_t"}}}, nil)
	if err != nil || held != (container.Confinement{}) {
		t.Errorf("%+v, %v", held, err)
	}
	// A folder that is not there would be seen if it were touched.
	b := container.Bundle{Container: container.Container{MountLabel: "x"}, Mounts: []container.BundleMount{{Source: "/no/such", Relabel: container.RelabelPrivate}}}
	if err := r.relabel(b); err != nil {
		t.Error(err)
	}
}

func TestTheMountLabelReachesTheSpecification(t *testing.T) {
	const label = "system_u:object_r:container_file_t:s0:c1,c2"
	b := bundle(t, func(b *container.Bundle) { b.Container.MountLabel, b.Container.ProcessLabel = label, "p" })
	s, err := fixed(t, nil).spec(b)
	if err != nil {
		t.Fatal(err)
	}
	if s.Linux.MountLabel != label || s.Process.SelinuxLabel != "p" {
		t.Errorf("%q %q", s.Linux.MountLabel, s.Process.SelinuxLabel)
	}
}
