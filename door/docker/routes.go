package docker

import (
	"net/http"
	"strings"

	"github.com/berth-project/berth/lib/fault"
)

// routes is the whole API as a table. Names of images hold slashes, so their
// routes end with the name and the verb.
func (d *Door) routes() []route {
	return append([]route{
		{"GET", "/_ping", d.ping, 0},
		{"GET", "/version", d.version, 0},
		{"GET", "/info", d.info, 0},
		{"GET", "/events", d.events, 0},
		{"GET", "/system/df", d.diskUsage, 0},
		{"POST", "/auth", d.auth, 0},

		{"GET", "/containers/json", d.listContainers, 0},
		{"POST", "/containers/create", d.createContainer, 0},
		{"POST", "/containers/prune", alone(d.pruneContainers), 25},
		{"GET", "/containers/{id}/json", d.inspectContainer, 0},
		{"GET", "/containers/{id}/top", d.top, 0},
		{"GET", "/containers/{id}/logs", d.logs, 0},
		{"GET", "/containers/{id}/changes", d.changes, 0},
		{"GET", "/containers/{id}/export", d.export, 0},
		{"GET", "/containers/{id}/stats", d.stats, 0},
		{"POST", "/containers/{id}/resize", alone(d.resize), 0},
		{"POST", "/containers/{id}/start", alone(d.start), 0},
		{"POST", "/containers/{id}/stop", alone(d.stop), 0},
		{"POST", "/containers/{id}/restart", alone(d.restart), 0},
		{"POST", "/containers/{id}/kill", alone(d.kill), 0},
		{"POST", "/containers/{id}/update", d.update, 0},
		{"POST", "/containers/{id}/rename", alone(d.rename), 0},
		{"POST", "/containers/{id}/pause", alone(d.pause), 0},
		{"POST", "/containers/{id}/unpause", alone(d.unpause), 0},
		{"POST", "/containers/{id}/attach", d.attach, 0},
		{"GET", "/containers/{id}/attach/ws", d.attachWS, 0},
		{"POST", "/containers/{id}/wait", alone(d.wait), 0},
		{"DELETE", "/containers/{id}", d.removeContainer, 0},
		{"GET", "/containers/{id}/archive", d.getArchive, 0}, // and HEAD
		{"PUT", "/containers/{id}/archive", d.putArchive, 0},
		{"POST", "/containers/{id}/exec", d.createExec, 0},
		{"POST", "/exec/{id}/start", d.startExec, 0},
		{"POST", "/exec/{id}/resize", alone(d.resizeExec), 0},
		{"GET", "/exec/{id}/json", d.inspectExec, 0},
		{"POST", "/commit", d.commit, 0},
		{"GET", "/containers/{id}/checkpoints", unsupported("checkpoints"), 25},
		{"POST", "/containers/{id}/checkpoints", unsupported("checkpoints"), 25},
		{"DELETE", "/containers/{id}/checkpoints/{name}", unsupported("checkpoints"), 25},

		{"GET", "/images/json", d.listImages, 0},
		{"GET", "/images/search", d.searchImages, 0},
		{"GET", "/images/get", d.saveImages, 0},
		{"POST", "/images/load", d.loadImages, 0},
		{"POST", "/images/create", d.createImage, 0},
		{"POST", "/images/prune", alone(d.pruneImages), 25},
		{"GET", "/images/{name...}", d.imageGet, 0},
		{"POST", "/images/{name...}", alone(d.imagePost), 0},
		{"DELETE", "/images/{name...}", d.removeImage, 0},
		{"GET", "/distribution/{name...}", d.distribution, 30},

		{"GET", "/networks", d.listNetworks, 0},
		{"POST", "/networks/create", d.createNetwork, 0},
		{"POST", "/networks/prune", alone(d.pruneNetworks), 25},
		{"GET", "/networks/{id}", d.inspectNetwork, 0},
		{"DELETE", "/networks/{id}", d.removeNetwork, 0},
		{"POST", "/networks/{id}/connect", d.connect, 0},
		{"POST", "/networks/{id}/disconnect", d.disconnect, 0},

		{"GET", "/volumes", d.listVolumes, 0},
		{"POST", "/volumes/create", d.createVolume, 0},
		{"POST", "/volumes/prune", alone(d.pruneVolumes), 25},
		{"GET", "/volumes/{name}", d.inspectVolume, 0},
		{"PUT", "/volumes/{name}", noSwarm, 42}, // of cluster volumes alone
		{"DELETE", "/volumes/{name}", d.removeVolume, 0},

		{"POST", "/build", d.build, 0},
		{"POST", "/build/prune", alone(d.pruneBuild), 31},
		{"POST", "/build/cancel", alone(d.cancelBuild), 31},
		{"POST", "/session", d.session, 31},
		{"POST", "/grpc", d.grpc, 31},
	}, append(pluginRoutes(), d.swarmRoutes()...)...)
}

// pluginRoutes answer as an engine that has no plugin, and takes none.
func pluginRoutes() []route {
	none := func(_ http.ResponseWriter, r *request) error {
		return fault.NotFoundf("plugin %q not found", r.PathValue("name"))
	}
	refuse := unsupported("managed plugins")
	return []route{
		{"GET", "/plugins", func(w http.ResponseWriter, r *request) error {
			f, err := r.filters()
			if err == nil {
				err = f.Check("enabled", "capability")
			}
			if err != nil {
				return err
			}
			writeJSON(w, http.StatusOK, []any{})
			return nil
		}, 25},
		{"GET", "/plugins/privileges", refuse, 25}, {"POST", "/plugins/pull", refuse, 25}, {"POST", "/plugins/create", refuse, 25},
		{"GET", "/plugins/{name}/json", none, 25}, {"DELETE", "/plugins/{name}", none, 25}, {"POST", "/plugins/{name}/enable", none, 25},
		{"POST", "/plugins/{name}/disable", none, 25}, {"POST", "/plugins/{name}/upgrade", none, 26}, {"POST", "/plugins/{name}/push", none, 25}, {"POST", "/plugins/{name}/set", none, 25},
	}
}

// swarmRoutes answer as an engine outside a swarm does.
func (d *Door) swarmRoutes() []route {
	var list []route
	for _, noun := range []string{"nodes", "services", "tasks", "secrets", "configs"} {
		list = append(list, route{"GET", "/" + noun, noSwarm, 0}, route{"GET", "/" + noun + "/{id}", noSwarm, 0}, route{"DELETE", "/" + noun + "/{id}", noSwarm, 0},
			route{"POST", "/" + noun + "/create", noSwarm, 0}, route{"POST", "/" + noun + "/{id}/update", noSwarm, 0})
	}
	for _, noun := range []string{"services", "tasks"} {
		list = append(list, route{"GET", "/" + noun + "/{id}/logs", noSwarm, 29})
	}
	for _, action := range []string{"update", "unlock", "leave"} {
		list = append(list, route{"POST", "/swarm/" + action, noSwarm, 0})
	}
	return append(list, route{"GET", "/swarm", noSwarm, 0}, route{"GET", "/swarm/unlockkey", noSwarm, 0},
		route{"POST", "/swarm/init", unsupported("swarm mode"), 0}, route{"POST", "/swarm/join", unsupported("swarm mode"), 0})
}

func noSwarm(http.ResponseWriter, *request) error {
	return fault.Unavailablef("This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.")
}

func unsupported(what string) handler {
	return func(http.ResponseWriter, *request) error {
		return fault.Unsupportedf("%s: not supported by Berth", what)
	}
}

// cutVerb splits "library/redis/json" into a name and one of the verbs.
func cutVerb(path string, verbs ...string) (name, verb string) {
	for _, v := range verbs {
		if n, ok := strings.CutSuffix(path, "/"+v); ok && n != "" {
			return n, v
		}
	}
	return path, ""
}
