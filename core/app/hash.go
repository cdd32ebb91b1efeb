package app

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/opencontainers/go-digest"
)

// The hashes by which docker compose 5.6.0 knows whether a container, a
// network or a volume is as its project wants it (the labels
// com.docker.compose.config-hash, of all three). They are its own to the bit,
// so that its `up` after ours changes nothing, and ours after its.

// hashOrder is the order of a service's keys in the text that is hashed. It is
// frozen there: the order of fields in the types changes with their releases.
// A key that is missing here follows after these, sorted.
var hashOrder = []string{
	"profiles", "annotations", "attach", "build", "develop", "blkio_config", "cap_add", "cap_drop", "cgroup_parent", "cgroup",
	"cpu_count", "cpu_percent", "cpu_period", "cpu_quota", "cpu_rt_period", "cpu_rt_runtime", "cpus", "cpuset", "cpu_shares",
	"command", "configs", "container_name", "credential_spec", "depends_on", "deploy", "device_cgroup_rules", "devices",
	"dns", "dns_opt", "dns_search", "dockerfile", "domainname", "entrypoint", "provider", "environment", "env_file", "expose",
	"extends", "external_links", "extra_hosts", "group_add", "gpus", "hostname", "healthcheck", "image", "init", "ipc",
	"isolation", "labels", "label_file", "links", "logging", "log_driver", "log_opt", "mem_limit", "mem_reservation",
	"memswap_limit", "mem_swappiness", "mac_address", "models", "net", "network_mode", "networks", "oom_kill_disable",
	"oom_score_adj", "pid", "pids_limit", "platform", "ports", "privileged", "pull_policy", "read_only", "restart", "runtime",
	"scale", "secrets", "security_opt", "shm_size", "stdin_open", "stop_grace_period", "stop_signal", "storage_opt", "sysctls",
	"tmpfs", "tty", "ulimits", "use_api_socket", "user", "userns_mode", "uts", "volume_driver", "volumes", "volumes_from",
	"working_dir", "pre_start", "post_start", "pre_stop", "pull_refresh_after",
}

// ServiceHash is the config hash of a service: 64 hexadecimal digits. What
// says how to build, how many, after whom and under which profile is left out:
// a change of it makes no other container.
func ServiceHash(s types.ServiceConfig) (string, error) {
	s.Build, s.PullPolicy, s.Scale, s.DependsOn, s.Profiles = nil, "", nil, nil, nil
	if s.Deploy != nil {
		deploy := *s.Deploy
		deploy.Replicas = nil
		s.Deploy = &deploy
	}
	text, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(text, &keys); err != nil {
		return "", err
	}
	var b bytes.Buffer
	put := func(key string) {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		name, _ := json.Marshal(key) // a string always marshals
		b.Write(name)
		b.WriteByte(':')
		b.Write(keys[key])
		delete(keys, key)
	}
	for _, key := range hashOrder {
		if _, ok := keys[key]; ok {
			put(key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		put(key)
	}
	return digest.FromString("{" + b.String() + "}").Encoded(), nil
}

// NetworkHash is the config hash of a network.
func NetworkHash(n types.NetworkConfig) (string, error) { return hashOf(&n) }

// VolumeHash is the config hash of a volume.
func VolumeHash(v types.VolumeConfig) (string, error) {
	if v.Driver == "" {
		v.Driver = "local"
	}
	return hashOf(v)
}

func hashOf(v any) (string, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	return digest.FromBytes(text).Encoded(), nil
}
