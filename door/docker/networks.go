package docker

import (
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	api "github.com/moby/moby/api/types/network"
	apivolume "github.com/moby/moby/api/types/volume"

	"github.com/berth-project/berth/core/network"
	"github.com/berth-project/berth/core/volume"
	"github.com/berth-project/berth/lib/fault"
)

// humanSize is docker's: four digits and a decimal unit.
func humanSize(n int64) string {
	size := float64(n)
	units := []string{"B", "kB", "MB", "GB", "TB", "PB"}
	i := 0
	for size >= 1000 && i < len(units)-1 {
		size /= 1000
		i++
	}
	return fmt.Sprintf("%.4g%s", size, units[i])
}

func (d *Door) createNetwork(w http.ResponseWriter, r *request) error {
	var b struct {
		api.CreateRequest
		CheckDuplicate any // until 1.43; always so
	}
	if err := decode(r, &b); err != nil {
		return err
	}
	o := network.CreateOptions{
		Name: b.Name, Driver: b.Driver, Scope: b.Scope, EnableIPv4: b.EnableIPv4, EnableIPv6: b.EnableIPv6, Internal: b.Internal, Attachable: b.Attachable,
		Ingress: b.Ingress, ConfigOnly: b.ConfigOnly, Options: b.Options, Labels: b.Labels,
	}
	if b.ConfigFrom != nil {
		o.ConfigFrom = b.ConfigFrom.Network
	}
	if i := b.IPAM; i != nil {
		o.IPAM = network.IPAM{Driver: i.Driver, Options: i.Options}
		for _, c := range i.Config {
			o.IPAM.Pools = append(o.IPAM.Pools, network.Pool{Subnet: c.Subnet, Range: c.IPRange, Gateway: c.Gateway, Aux: c.AuxAddress})
		}
	}
	id, warning, err := d.o.Networks.Create(r.Context(), o)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, map[string]string{"Id": id, "Warning": warning})
	return nil
}

// networkBody is one network; members says whether it was asked for by name.
func networkBody(n network.Attached, members bool, version int) map[string]any {
	pools := []api.IPAMConfig{}
	for _, p := range n.IPAM.Pools {
		pools = append(pools, api.IPAMConfig{Subnet: p.Subnet, IPRange: p.Range, Gateway: p.Gateway, AuxAddress: p.Aux})
	}
	driver := n.IPAM.Driver
	if driver == "" {
		driver = "default"
	}
	m := map[string]any{
		"Name": n.Name, "Id": n.ID, "Created": n.Created.Format(time.RFC3339Nano), "Scope": n.Scope, "Driver": n.Driver, "EnableIPv4": n.EnableIPv4, "EnableIPv6": n.EnableIPv6,
		"IPAM": map[string]any{"Driver": driver, "Options": n.IPAM.Options, "Config": pools}, "Internal": n.Internal, "Attachable": n.Attachable, "Ingress": n.Ingress,
		"ConfigFrom": map[string]string{"Network": n.ConfigFrom}, "ConfigOnly": n.ConfigOnly, "Options": orEmptyMap(n.Options), "Labels": orEmptyMap(n.Labels),
	}
	containers := map[string]any{}
	if members {
		for id, e := range n.Endpoints {
			containers[string(id)] = map[string]string{
				"Name": e.Name, "EndpointID": e.Endpoint.EndpointID, "MacAddress": e.Endpoint.MacAddress,
				"IPv4Address": prefixText(e.Endpoint.IPv4), "IPv6Address": prefixText(e.Endpoint.IPv6),
			}
		}
	}
	m["Containers"] = containers
	if members && version >= 52 {
		subnets := api.SubnetStatuses{}
		for _, u := range n.Use {
			subnets[u.Subnet] = api.SubnetStatus{IPsInUse: u.Taken, DynamicIPsAvailable: u.Free}
		}
		m["Status"] = api.Status{IPAM: api.IPAMStatus{Subnets: subnets}}
	}
	return m
}

func prefixText(p netip.Prefix) string {
	if p.IsValid() {
		return p.String()
	}
	return ""
}

func orEmptyMap(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func (d *Door) listNetworks(w http.ResponseWriter, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	list, err := d.o.Networks.List(r.Context(), f)
	if err != nil {
		return err
	}
	out := []any{}
	for _, n := range list {
		out = append(out, networkBody(n, r.version < 28, r.version))
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func (d *Door) inspectNetwork(w http.ResponseWriter, r *request) error {
	if v := r.Form.Get("verbose"); v != "" {
		if _, err := strconv.ParseBool(v); err != nil {
			return fault.Invalidf("invalid value for verbose: %s", v)
		}
	}
	n, err := d.o.Networks.Get(r.Context(), r.PathValue("id"), r.Form.Get("scope"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, networkBody(n, true, r.version))
	return nil
}

func (d *Door) removeNetwork(w http.ResponseWriter, r *request) error {
	return act(w, d.o.Networks.Remove(r.Context(), r.PathValue("id")))
}

func (d *Door) pruneNetworks(w http.ResponseWriter, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	gone, err := d.o.Networks.Prune(r.Context(), f)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]any{"NetworksDeleted": gone})
	return nil
}

func (d *Door) connect(w http.ResponseWriter, r *request) error {
	var b api.ConnectRequest
	if err := decode(r, &b); err != nil {
		return err
	}
	if b.Container == "" {
		return fault.Invalidf("no container is named")
	}
	if err := d.o.Containers.Connect(r.Context(), b.Container, toEndpoint(r.PathValue("id"), b.EndpointConfig)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (d *Door) disconnect(w http.ResponseWriter, r *request) error {
	var b api.DisconnectRequest
	if err := decode(r, &b); err != nil {
		return err
	}
	if err := d.o.Containers.Disconnect(r.Context(), b.Container, r.PathValue("id"), b.Force); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func volumeBody(v volume.Volume, usage bool) map[string]any {
	m := map[string]any{
		"Name": v.Name, "Driver": v.Driver, "Mountpoint": v.Mountpoint, "CreatedAt": v.Created.Format(time.RFC3339), "Scope": "local",
		"Labels": v.Labels, "Options": v.Options,
	}
	if usage {
		m["UsageData"] = map[string]int64{"RefCount": int64(v.RefCount), "Size": v.Size}
	}
	return m
}

func (d *Door) listVolumes(w http.ResponseWriter, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	list, err := d.o.Volumes.List(r.Context(), f)
	if err != nil {
		return err
	}
	out := []any{}
	for _, v := range list {
		out = append(out, volumeBody(v, false))
	}
	writeJSON(w, http.StatusOK, map[string]any{"Volumes": out, "Warnings": nil})
	return nil
}

func (d *Door) createVolume(w http.ResponseWriter, r *request) error {
	var b apivolume.CreateRequest
	if err := decode(r, &b); err != nil {
		return err
	}
	if b.ClusterVolumeSpec != nil {
		return fault.Unsupportedf("cluster volumes are not supported by Berth")
	}
	v, err := d.o.Volumes.Create(r.Context(), volume.CreateOptions{Name: b.Name, Driver: b.Driver, Options: b.DriverOpts, Labels: b.Labels})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, volumeBody(v, false))
	return nil
}

func (d *Door) inspectVolume(w http.ResponseWriter, r *request) error {
	v, err := d.o.Volumes.Get(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, volumeBody(v, false))
	return nil
}

func (d *Door) removeVolume(w http.ResponseWriter, r *request) error {
	return act(w, d.o.Volumes.Remove(r.Context(), r.PathValue("name"), r.flag("force")))
}

func (d *Door) pruneVolumes(w http.ResponseWriter, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	if r.version < 42 {
		f["all"] = []string{"true"}
	}
	gone, freed, err := d.o.Volumes.Prune(r.Context(), f)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]any{"VolumesDeleted": gone, "SpaceReclaimed": freed})
	return nil
}
