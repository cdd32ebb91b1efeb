package app

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/berth-project/berth/lib/fault"
)

func TestADocumentWithAnEmptyPoolIsRefused(t *testing.T) {
	for project, refused := range map[string]bool{
		`{"name": "x", "networks": {"n": {"ipam": {"config": [null]}}}}`:                      true,
		`{"name": "x", "networks": {"n": {"ipam": {"config": [{"subnet": "10.1.0.0/24"}]}}}}`: false,
	} {
		_, err := Document{Name: "x", Project: json.RawMessage(project)}.App()
		if errors.Is(err, fault.ErrInvalid) != refused {
			t.Errorf("%s: %v", project, err)
		}
	}
}

func TestSecretsThatContainersGetAreInTheDocument(t *testing.T) {
	use := func(key string) []types.ServiceSecretConfig { return []types.ServiceSecretConfig{{Source: key}} }
	p := &types.Project{Name: "x", Environment: types.Mapping{"V": "value"}, Secrets: types.Secrets{}}
	for _, key := range []string{"build", "service", "hook"} {
		p.Secrets[key] = types.SecretConfig{Environment: "V"}
	}
	p.Services = types.Services{"s": {
		Name: "s", ContainerSpec: types.ContainerSpec{Secrets: use("service")},
		WorkloadSpec: types.WorkloadSpec{Build: &types.BuildConfig{Context: ".", Secrets: use("build")}},
		PreStart:     []types.PreStartHook{{ContainerSpec: types.ContainerSpec{Secrets: use("hook")}}},
	}}
	d, err := NewDocument(&App{Project: p})
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Contents) != 2 || d.Contents["secret/service"] != "value" || d.Contents["secret/hook"] != "value" {
		t.Errorf("%v", d.Contents)
	}
}
