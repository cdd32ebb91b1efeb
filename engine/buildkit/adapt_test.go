package buildkit

import (
	"context"
	"errors"
	"testing"

	controlapi "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"

	"github.com/berth-project/berth/lib/fault"
)

// asks hands a request through adapt.
func asks(b *Builder, req any) error {
	_, err := b.adapt(context.Background(), req, nil, func(context.Context, any) (any, error) { return nil, nil })
	return err
}

func TestASliceIsUsedOnlyWhenAClientNamesIt(t *testing.T) {
	x := &executor{o: Options{CgroupParent: "system.slice:berth-build:"}, slices: map[string]bool{}}
	b := &Builder{steps: x}
	var u undo
	if got, err := x.parent("", &u); err != nil || got != x.o.CgroupParent {
		t.Error(got, err)
	}
	if got, err := x.parent("ssh.slice", &u); !errors.Is(err, fault.ErrPermission) {
		t.Error("nobody named it:", got, err)
	}
	for name, req := range map[string]any{
		"one.slice": &controlapi.SolveRequest{FrontendAttrs: map[string]string{"cgroup-parent": "one.slice"}},
		"two.slice": &gateway.SolveRequest{FrontendOpt: map[string]string{"cgroup-parent": "two.slice"}},
	} {
		if err := asks(b, req); err != nil {
			t.Fatal(err)
		}
		if got, err := x.parent(name, &u); err != nil || got != name {
			t.Error(name, got, err)
		}
	}
	if err := asks(b, &gateway.SolveRequest{FrontendOpt: map[string]string{"cgroup-parent": "../x"}}); err != nil {
		t.Fatal(err)
	}
	if got, err := x.parent("../x", &u); !errors.Is(err, fault.ErrInvalid) {
		t.Error(got, err)
	}
}

func TestAFolderOfStepsIsBelowTheEnginesOwn(t *testing.T) {
	x := &executor{o: Options{CgroupParent: "/berth"}, slices: map[string]bool{}}
	var u undo
	if got, err := x.parent("/mine", &u); err != nil || got != "/berth/mine" || len(u) != 1 {
		t.Error(got, err, len(u))
	}
}

func TestTheScannerIsTheEnginesOwnWhereNoneIsNamed(t *testing.T) {
	wanted := 0
	b := &Builder{steps: &executor{slices: map[string]bool{}}, o: Options{Scanner: func(context.Context) (string, error) { wanted++; return ScannerImage + ":1", nil }}}
	for _, c := range []struct{ key, have, want string }{
		{"attest:sbom", "", "generator=" + ScannerImage + ":1"},
		{"attest:sbom", "X=1", "X=1,generator=" + ScannerImage + ":1"},
		{"build-arg:BUILDKIT_ATTEST_SBOM", "", "generator=" + ScannerImage + ":1"},
		{"attest:sbom", "generator=mine", "generator=mine"},
		{"attest:sbom", `X=1,"generator=mine"`, `X=1,"generator=mine"`},
		{"attest:provenance", "mode=max", "mode=max"},
		{"build-arg:SBOM", "", ""},
	} {
		for _, req := range []any{&controlapi.SolveRequest{FrontendAttrs: map[string]string{c.key: c.have}}, &gateway.SolveRequest{FrontendOpt: map[string]string{c.key: c.have}}} {
			if err := asks(b, req); err != nil {
				t.Fatal(err)
			}
			var got string
			switch r := req.(type) {
			case *controlapi.SolveRequest:
				got = r.FrontendAttrs[c.key]
			case *gateway.SolveRequest:
				got = r.FrontendOpt[c.key]
			}
			if got != c.want {
				t.Errorf("%s %q became %q", c.key, c.have, got)
			}
		}
	}
	if wanted != 6 {
		t.Errorf("the image was wanted %d times", wanted)
	}
}
