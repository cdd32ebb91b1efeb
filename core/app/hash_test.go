package app

import (
	"testing"

	"github.com/compose-spec/compose-go/v2/types"
)

// That the hashes are docker compose's own is tested with the real program, in
// test/corpus.
func TestHowManyAndAfterWhomMakesNoOtherContainer(t *testing.T) {
	replicas := 3
	s := types.ServiceConfig{Name: "web", ContainerSpec: types.ContainerSpec{Image: "nginx"}}
	plain, err := ServiceHash(s)
	if err != nil {
		t.Fatal(err)
	}
	s.Build, s.Scale, s.Profiles, s.PullPolicy = &types.BuildConfig{Context: "."}, &replicas, []string{"x"}, "always"
	s.DependsOn = types.DependsOnConfig{"db": {}}
	if same, err := ServiceHash(s); err != nil || same != plain {
		t.Errorf("building, scaling and order change the hash: %s, %v", same, err)
	}
	s.Image = "other"
	if other, err := ServiceHash(s); err != nil || other == plain {
		t.Errorf("another image has the same hash: %v", err)
	}
}
