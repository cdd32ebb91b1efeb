package container

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestVariablesAreSetAndRemovedInTheirPlace(t *testing.T) {
	for _, c := range []struct{ of, over, want []string }{
		{nil, nil, []string{}},
		{[]string{"A=1", "B=2"}, []string{"B=3", "C=4"}, []string{"A=1", "B=3", "C=4"}},
		{[]string{"A=1", "B=2"}, []string{"A", "D"}, []string{"B=2"}},
		{[]string{"A=1"}, []string{"A", "A=2", "A=3", "B=1", "B"}, []string{"A=3"}},
	} {
		if diff := cmp.Diff(c.want, MergeEnv(c.of, c.over)); diff != "" {
			t.Errorf("%q over %q:\n%s", c.over, c.of, diff)
		}
	}
}

// A hundred thousand variables once took minutes.
func TestManyVariablesCostNoMoreEach(t *testing.T) {
	var many []string
	for i := range 100_000 {
		many = append(many, fmt.Sprintf("V%d=x", i))
	}
	if got := MergeEnv(many, many); !slices.Equal(got, many) {
		t.Errorf("%d variables have become %d", len(many), len(got))
	}
}
