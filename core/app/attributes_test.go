package app

import (
	"slices"
	"testing"

	"github.com/compose-spec/compose-go/v2/schema"
	"github.com/google/go-cmp/cmp"
)

func TestEveryAttributeOfTheSpecificationHasAStanding(t *testing.T) {
	var want, got []string
	for _, p := range schema.AttributePaths() {
		want = append(want, string(p))
	}
	for _, a := range Attributes() {
		got = append(got, a.Path)
		switch {
		case a.Standing != Honoured && a.Standing != Refused:
			t.Errorf("%s: the standing is %q", a.Path, a.Standing)
		case (a.Standing == Honoured) != (a.Why == ""):
			t.Errorf("%s: %s needs a reason, and only what is not honoured has one: %q", a.Path, a.Standing, a.Why)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the specification (-) and attributes.txt (+):\n%s", diff)
	}
}

func TestAttributesAreFoundWhereTheFilesHaveThem(t *testing.T) {
	at := func(line int) Position { return Position{File: "c.yaml", Line: line} }
	a := &App{Sources: map[string]Position{
		"services": at(1), "services.my.web": at(2), "services.my.web.image": at(3), "services.my.web.provider": at(5),
		"services.my.web.provider.type": at(6), "services.my.web.deploy.restart_policy.window": at(9), "services.my.web.labels.provider": at(10),
		"services.my.web.ports[0].mode": at(11),
	}}
	if got := a.of(Refused); !slices.Equal(got, []string{"services.my.web.provider"}) {
		t.Errorf("refused: %q", got)
	}
	if got := a.of(Honoured); !slices.Equal(got, []string{"services"}) {
		t.Errorf("honoured: %q", got)
	}
}
