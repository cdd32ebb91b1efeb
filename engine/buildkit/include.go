package buildkit

import (
	"context"
	"fmt"
	"path"

	"github.com/moby/buildkit/client/llb"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/result"

	"github.com/berth-project/berth/format/include"
)

// maxIncluded bounds one included file, in bytes.
const maxIncluded = 1 << 20

// buildDockerfile is BuildKit's Dockerfile frontend, with INCLUDE: the frontend
// sees the Dockerfile with what it includes.
func buildDockerfile(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
	res, err := dockerfile.Build(ctx, &including{Client: c})
	if err != nil {
		return nil, err
	}
	if err := discreetHistory(res.Metadata); err != nil {
		return nil, err
	}
	return plainly(res)
}

// plainly gives a result BuildKit's own references, those of attestations too:
// it takes no others back.
func plainly(res *gateway.Result) (*gateway.Result, error) {
	return result.ConvertResult(res, func(r gateway.Reference) (gateway.Reference, error) {
		if e, ok := r.(*expanded); ok {
			return e.Reference, nil
		}
		return r, nil
	})
}

// including looks at what the frontend reads.
type including struct{ gateway.Client }

func (c *including) Solve(ctx context.Context, req gateway.SolveRequest) (*gateway.Result, error) {
	if req.Definition != nil {
		if err := unpublished(c.BuildOpts().Opts, req.Definition); err != nil {
			return nil, err
		}
	}
	res, err := c.Client.Solve(ctx, req)
	if err != nil || req.Definition == nil {
		return res, err
	}
	if res.Ref != nil {
		res.Ref = &expanded{Reference: res.Ref, c: c.Client}
	}
	for k, v := range res.Refs {
		if v != nil {
			res.Refs[k] = &expanded{Reference: v, c: c.Client}
		}
	}
	return res, nil
}

// expanded is a tree whose Dockerfile holds what it includes.
type expanded struct {
	gateway.Reference
	c gateway.Client
}

func (r *expanded) ReadFile(ctx context.Context, req gateway.ReadRequest) ([]byte, error) {
	text, err := r.Reference.ReadFile(ctx, req)
	opts := r.c.BuildOpts().Opts
	name := opts["filename"]
	if name == "" {
		name = "Dockerfile"
	}
	if err != nil || path.Clean(req.Filename) != path.Clean(name) {
		return text, err
	}
	return include.Expand(req.Filename, text, func(file string) ([]byte, error) { return r.read(ctx, opts, file) })
}

// read gives another file beside the Dockerfile: of the same tree, or of the
// client's folder, of which only the Dockerfile has come.
func (r *expanded) read(ctx context.Context, opts map[string]string, file string) ([]byte, error) {
	text, err := small(ctx, r.Reference, file)
	if err == nil {
		return text, nil
	}
	local := opts["dockerfilekey"]
	if local == "" {
		local = "dockerfile"
	}
	session := r.c.BuildOpts().SessionID
	if s := opts["local-sessionid:"+local]; s != "" {
		session = s
	}
	st := llb.Local(local, llb.SessionID(session), llb.FollowPaths([]string{file}), llb.SharedKeyHint(local+"-"+file), llb.WithCustomName("[internal] include "+file))
	def, marshalErr := st.Marshal(ctx)
	if marshalErr != nil {
		return nil, marshalErr
	}
	res, solveErr := r.c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
	if solveErr != nil {
		return nil, err // the folder is not a client's
	}
	ref, err := res.SingleRef()
	if err != nil || ref == nil {
		return nil, err
	}
	return small(ctx, ref, file)
}

// small reads a file of at most maxIncluded bytes; a longer one is an error.
func small(ctx context.Context, ref gateway.Reference, file string) ([]byte, error) {
	text, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: file, Range: &gateway.FileRange{Length: maxIncluded + 1}})
	if err == nil && len(text) > maxIncluded {
		return nil, fmt.Errorf("longer than %d bytes", maxIncluded)
	}
	return text, err
}
