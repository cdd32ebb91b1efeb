package docker

import (
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/core/build"
)

func TestAStepThatAnotherBuildHasDoneIsToldAsCached(t *testing.T) {
	var out strings.Builder
	c := newClassic(func(s string) { out.WriteString(s) })
	now := time.Now()
	c.tell(build.Progress{Plan: []build.Instruction{{Text: "FROM busybox", Step: "1/2"}, {Text: "ENV A=b"}, {Text: "RUN true", Step: "2/2"}}})
	c.tell(build.Progress{Steps: []build.Step{{ID: "sha256:0123456789abcdef", Name: "[2/2] RUN true", Started: &now, Completed: &now}}})
	c.finish(true)
	want := "Step 1/3 : FROM busybox\n ---> Using cache\nStep 2/3 : ENV A=b\nStep 3/3 : RUN true\n ---> 0123456789ab\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}
