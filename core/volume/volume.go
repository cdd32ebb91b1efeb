// Package volume owns the noun volume: named storage that outlives
// containers. It must not know HTTP, SQL or the words of any client.
package volume

import "time"

// Volume is one volume as the store keeps it.
type Volume struct {
	Name       string
	Driver     string // "local"
	Created    time.Time
	Mountpoint string // path on the host
	Labels     map[string]string
	Options    map[string]string // type, o, device
	Anonymous  bool
	Size       int64 // bytes; -1 where not computed
	RefCount   int   // containers that use it; -1 where not computed
}

// CreateOptions of a volume. An empty name is chosen by the service and makes it anonymous.
type CreateOptions struct {
	Name, Driver    string
	Options, Labels map[string]string
}
