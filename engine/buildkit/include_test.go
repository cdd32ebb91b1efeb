package buildkit

import (
	"bytes"
	"context"
	"strings"
	"testing"

	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/result"
)

// tree is a reference with one file.
type tree struct {
	gateway.Reference
	text []byte
}

func (t tree) ReadFile(_ context.Context, r gateway.ReadRequest) ([]byte, error) {
	return t.text[:min(len(t.text), r.Range.Length)], nil
}

func TestResultsHaveBuildKitsOwnReferences(t *testing.T) {
	wrapped := func() gateway.Reference { return &expanded{Reference: tree{}} }
	res := gateway.NewResult()
	res.SetRef(wrapped())
	res.AddRef("linux/amd64", wrapped())
	res.AddAttestation("linux/amd64", result.Attestation[gateway.Reference]{Path: "sbom.json", Ref: wrapped()})
	res, err := plainly(res)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	_ = res.EachRef(func(r gateway.Reference) error {
		if n++; r != nil {
			if _, ok := r.(tree); !ok {
				t.Errorf("a reference is %T", r)
			}
		}
		return nil
	})
	if n != 3 {
		t.Errorf("%d references of 3", n)
	}
}

func TestAnIncludedFileIsWholeOrAnError(t *testing.T) {
	ctx := context.Background()
	whole := bytes.Repeat([]byte("x"), maxIncluded)
	if got, err := small(ctx, tree{text: whole}, "a"); err != nil || len(got) != maxIncluded {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := small(ctx, tree{text: append(whole, 'x')}, "a"); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("a longer file: %v", err)
	}
}
