package buildkit

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/frontend/attestations"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/berth-project/berth/lib/redact"
)

// Addresses of contexts and of ADD may hold a name and a password. BuildKit
// masks them in what it stores for people, but not in names of steps, in errors
// and in the history's attributes: here they are masked on the way out.

// discreet masks in the answer of one call, and in its error.
func discreet(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	resp, err := next(ctx, req)
	if r, ok := resp.(*controlapi.DiskUsageResponse); ok {
		r = r.CloneVT()
		for _, u := range r.Record {
			u.Description = redact.URLs(u.Description)
		}
		resp = r
	}
	return resp, discreetError(err)
}

// discreetError masks in an error. Errors quote Dockerfiles, which hold whatever
// bytes there are: gRPC panics at a text that is no UTF-8.
func discreetError(err error) error {
	st := status.Convert(err)
	text := redact.URLs(strings.ToValidUTF8(st.Message(), "\uFFFD"))
	if err == nil || text == st.Message() {
		return err
	}
	p := st.Proto()
	p.Message = text
	return status.ErrorProto(p)
}

// discreetStream masks in the messages of a stream.
func discreetStream(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return discreetError(next(srv, discreetSender{s}))
}

type discreetSender struct{ grpc.ServerStream }

func (s discreetSender) SendMsg(m any) error {
	switch r := m.(type) {
	case *controlapi.StatusResponse:
		r = r.CloneVT() // others may be told the same
		for _, v := range r.Vertexes {
			v.Name, v.Error = redact.URLs(v.Name), redact.URLs(v.Error)
		}
		for _, v := range r.Statuses {
			v.ID, v.Name = redact.URLs(v.ID), redact.URLs(v.Name)
		}
		m = r
	case *controlapi.BuildHistoryEvent:
		r, ok := proto.Clone(r).(*controlapi.BuildHistoryEvent)
		if !ok || r.Record == nil {
			break
		}
		for k, v := range r.Record.FrontendAttrs {
			r.Record.FrontendAttrs[k] = redact.URLs(v)
		}
		if e := r.Record.Error; e != nil {
			e.Message = redact.URLs(e.Message)
		}
		m = r
	}
	return s.ServerStream.SendMsg(m)
}

// unpublished refuses a source whose address holds a password where the
// provenance of the image would tell it to everybody: in full it holds the
// addresses as they are.
func unpublished(opts map[string]string, def *pb.Definition) error {
	wanted, err := attestations.Parse(opts)
	if err != nil || wanted[attestations.KeyTypeProvenance]["mode"] != "max" {
		return nil // a wrong one is refused elsewhere
	}
	for _, dt := range def.Def {
		var op pb.Op
		if err := op.UnmarshalVT(dt); err != nil {
			return err
		}
		src := op.GetSource()
		if src == nil {
			continue
		}
		for _, address := range []string{src.Identifier, src.Attrs[pb.AttrFullRemoteURL]} {
			if u, err := url.Parse(address); err == nil && u.User != nil && !strings.HasPrefix(u.Scheme, "ssh") && redact.URLs(address) != address {
				return fmt.Errorf("%s: provenance of mode=max would publish this address with its credentials: give them as a secret (GIT_AUTH_TOKEN, or HTTP_AUTH_TOKEN_<host>), or use --provenance=mode=min", redact.URLs(address))
			}
		}
	}
	return nil
}

// discreetHistory masks in the history of the images that were built: it
// travels with them.
func discreetHistory(metadata map[string][]byte) error {
	for key, text := range metadata {
		if key != exptypes.ExporterImageConfigKey && !strings.HasPrefix(key, exptypes.ExporterImageConfigKey+"/") {
			continue
		}
		var config map[string]json.RawMessage // a frontend may write what no type here knows
		var history []map[string]any
		if err := json.Unmarshal(text, &config); err != nil {
			return fmt.Errorf("configuration of the image: %w", err)
		}
		if config["history"] == nil {
			continue
		}
		if err := json.Unmarshal(config["history"], &history); err != nil {
			return fmt.Errorf("history of the image: %w", err)
		}
		masked := false
		for _, h := range history {
			if by, ok := h["created_by"].(string); ok && redact.URLs(by) != by {
				h["created_by"], masked = redact.URLs(by), true
			}
		}
		if !masked {
			continue
		}
		var err error
		if config["history"], err = json.Marshal(history); err != nil {
			return err
		}
		if metadata[key], err = json.Marshal(config); err != nil {
			return err
		}
	}
	return nil
}
