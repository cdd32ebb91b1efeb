// Package plugin lets containerd's clients run tasks in the keeper: it takes
// the place of containerd's own task plugin for the runtime names "" and
// io.containerd.berth.v1, and leaves every other runtime to containerd's
// shims. It owns bundles, events and terminals of such tasks; it must not
// know Docker's containers, which reach the keeper without containerd.
package plugin

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	apitypes "github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	containerd "github.com/containerd/plugin"

	"github.com/berth-project/berth/engine/keeper"
)

// Name of the runtime whose tasks live in the keeper.
const Name = "io.containerd.berth.v1"

// Options of Wrap.
type Options struct {
	Keeper *keeper.Client // of a realm of its own
	Logger *slog.Logger
}

// Wrap gives the plugin that stands before stock, containerd's task plugin.
func Wrap(o Options, stock containerd.Registration) containerd.Registration {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	inner := stock.InitFn
	if !slices.Contains(stock.Requires, plugins.EventPlugin) {
		stock.Requires = append(slices.Clone(stock.Requires), plugins.EventPlugin)
	}
	stock.InitFn = func(ic *containerd.InitContext) (any, error) {
		made, err := inner(ic)
		if err != nil {
			return nil, err
		}
		shims, ok := made.(runtime.PlatformRuntime)
		if !ok {
			return nil, fmt.Errorf("containerd's task plugin is a %T", made)
		}
		exchange, err := ic.GetSingle(plugins.EventPlugin)
		if err != nil {
			return nil, err
		}
		publisher, ok := exchange.(events.Publisher)
		if !ok {
			return nil, fmt.Errorf("containerd's event plugin is a %T", exchange)
		}
		// A folder of its own: containerd clears its own of what has no shim.
		return newRuntime(ic.Context, o, shims, publisher, ic.Properties[plugins.PropertyStateDir]+".keeper")
	}
	return stock
}

// PluginInfo answers containerd's introspection of a runtime.
func (r *Runtime) PluginInfo(ctx context.Context, request any) (any, error) {
	if q, ok := request.(*apitypes.RuntimeRequest); ok && ours(q.RuntimePath) {
		v, err := r.keeper.Version(ctx)
		if err != nil {
			return nil, err
		}
		return &apitypes.RuntimeInfo{Name: Name, Version: &apitypes.RuntimeVersion{Version: v.Build, Revision: "libcontainer " + v.Runc}}, nil
	}
	if p, ok := r.shims.(interface {
		PluginInfo(context.Context, any) (any, error)
	}); ok {
		return p.PluginInfo(ctx, request)
	}
	return nil, fmt.Errorf("runtime information: %w", errdefs.ErrNotImplemented)
}

func ours(name string) bool { return name == "" || name == Name }
