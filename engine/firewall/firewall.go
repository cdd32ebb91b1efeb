// Package firewall writes this engine's packet rules in nftables tables of
// its own, with sets and maps, so that a change costs the same whatever is
// there. It must not know containers; core/network says what to let through.
package firewall

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	core "github.com/berth-project/berth/core/network"
)

// Limits of one transaction.
const (
	batch        = 400             // elements of one netlink message: its length is 16 bits
	bufferBytes  = 32 << 20        // of the socket: a transaction is sent whole
	replyTimeout = 2 * time.Minute // of the kernel: the first transaction loads its modules one by one
)

// Firewall implements core's network.Firewall. Its table "berth" or
// "berth-<key>" of the family inet says what passes between networks and what
// is translated; the one of the same name in the family bridge says what a
// container may claim to be. What ought to be there is known in memory: a
// table that somebody flushes is written again.
type Firewall struct {
	name string
	log  *slog.Logger

	mu      sync.Mutex
	c       *nftables.Conn
	raw     *netlink.Conn
	port    uint32 // netlink's, from which our own changes come
	model   map[string]map[string]*slot
	guarded bool // the kernel has nftables for bridges
	watch   *watch
}

// slot is an element that is wanted n times.
type slot struct {
	elements []nftables.SetElement
	n        int
}

// New makes a Firewall for the engine with this key.
func New(key string, log *slog.Logger) *Firewall {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	name := "berth"
	if key != "" {
		name += "-" + key
	}
	return &Firewall{name: name, log: log, model: map[string]map[string]*slot{}, guarded: true}
}

// dial gives the connection for changes. f.mu is held.
func (f *Firewall) dial() (*nftables.Conn, error) {
	if f.c == nil {
		c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(f.prepare))
		if err != nil {
			return nil, fmt.Errorf("open nftables: %w", err)
		}
		f.c = c
	}
	return f.c, f.raw.SetDeadline(time.Now().Add(replyTimeout))
}

func (f *Firewall) prepare(raw *netlink.Conn) error {
	f.raw = raw
	if err := errors.Join(raw.SetWriteBuffer(bufferBytes), raw.SetReadBuffer(bufferBytes)); err != nil {
		return err
	}
	s, err := raw.SyscallConn()
	if err != nil {
		return err
	}
	return s.Control(func(fd uintptr) {
		if a, err := unix.Getsockname(int(fd)); err == nil {
			f.port = a.(*unix.SockaddrNetlink).Pid
		}
		if f.watch != nil {
			if err := f.watch.ignore(f.port); err != nil {
				f.log.Warn("own changes of the firewall are taken for others'", "table", f.name, "error", err)
			}
		}
	})
}

// hangUp drops a connection whose state is not known. f.mu is held.
func (f *Firewall) hangUp() {
	if f.c != nil {
		_ = f.c.CloseLasting()
		f.c, f.raw = nil, nil
	}
}

// Add lets more through, in one transaction.
func (f *Firewall) Add(r core.Rules) error { return f.Switch(core.Rules{}, r) }

// Remove takes that back.
func (f *Firewall) Remove(r core.Rules) error { return f.Switch(r, core.Rules{}) }

// Switch takes gone back and lets fresh through in one transaction: a port that
// is in both is never without a rule.
func (f *Firewall) Switch(gone, fresh core.Rules) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	out, in := elements{}, elements{}
	for _, e := range f.entries(gone) {
		s := f.model[e.set][e.key]
		if s == nil {
			continue
		}
		if s.n--; s.n == 0 {
			delete(f.model[e.set], e.key)
			out[e.set] = append(out[e.set], s.elements...)
		}
	}
	for _, e := range f.entries(fresh) {
		if f.note(e) {
			in[e.set] = append(in[e.set], e.elements...)
		}
	}
	if err := f.change(out, in); err != nil {
		return err
	}
	if err := forgetFlows(slices.Concat(gone.Ports, fresh.Ports)); err != nil {
		f.log.Warn("connections of UDP ports not forgotten", "error", err)
	}
	if len(gone.Networks)+len(fresh.Networks) > 0 {
		f.tryCoexist()
	}
	return nil
}

// note counts an element that is wanted; it tells whether it was not before.
func (f *Firewall) note(e entry) bool {
	set := f.model[e.set]
	if set == nil {
		set = map[string]*slot{}
		f.model[e.set] = set
	}
	if s := set[e.key]; s != nil {
		s.n++
		return false
	}
	set[e.key] = &slot{elements: e.elements, n: 1}
	return true
}

// elements are those of one change, by set.
type elements map[string][]nftables.SetElement

// change deletes and adds elements in one transaction. What the kernel refuses
// shows that the table is not what it was: then all is written anew. f.mu is held.
func (f *Firewall) change(gone, fresh elements) error {
	if len(gone)+len(fresh) == 0 {
		return nil
	}
	c, err := f.dial()
	if err != nil {
		return err
	}
	sets := f.sets()
	for _, part := range []struct {
		elements
		send func(*nftables.Set, []nftables.SetElement) error
	}{{gone, c.SetDeleteElements}, {fresh, c.SetAddElements}} {
		for name, list := range part.elements {
			if err := inBatches(list, func(some []nftables.SetElement) error { return part.send(sets[name], some) }); err != nil {
				f.hangUp() // with what waits to be sent
				return err
			}
		}
	}
	if err := c.Flush(); err != nil {
		f.hangUp()
		f.log.Warn("firewall table differs from what was written", "table", f.name, "error", err)
		return f.write()
	}
	return nil
}

func inBatches(list []nftables.SetElement, send func([]nftables.SetElement) error) error {
	for len(list) > 0 {
		n := min(batch, len(list))
		if err := send(list[:n]); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

// Reset replaces all that is there and begins to watch over it.
func (f *Firewall) Reset(r core.Rules) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.model = map[string]map[string]*slot{}
	for _, e := range f.entries(r) {
		f.note(e)
	}
	err := f.write()
	if err != nil && f.guarded && f.unguarded() {
		f.log.Warn("this kernel has no nftables for bridges: containers are not kept from claiming addresses of others", "error", err)
		f.guarded = false
		for _, set := range []string{setPorts, setMACs, setGiven + "4", setGiven + "6", setOwners + "4", setOwners + "6"} {
			delete(f.model, set)
		}
		err = f.write()
	}
	if err != nil {
		return err
	}
	f.tryCoexist()
	if f.watch == nil {
		if f.watch, err = f.startWatch(); err != nil {
			f.log.Warn("the firewall is not watched", "error", err)
		}
	}
	return nil
}

// unguarded tells whether the kernel refuses a table of the family bridge. f.mu is held.
func (f *Firewall) unguarded() bool {
	c, err := f.dial()
	if err != nil {
		return false
	}
	t := &nftables.Table{Family: nftables.TableFamilyBridge, Name: f.name}
	c.AddTable(t)
	c.DelTable(t)
	if c.Flush() != nil {
		f.hangUp()
		return true
	}
	return false
}

// write writes both tables from what is known, in one transaction. f.mu is held.
func (f *Firewall) write() error {
	c, err := f.dial()
	if err != nil {
		return err
	}
	sets := f.sets()
	families := []nftables.TableFamily{nftables.TableFamilyINet}
	if f.guarded {
		families = append(families, nftables.TableFamilyBridge)
	}
	for _, family := range families {
		t := &nftables.Table{Family: family, Name: f.name}
		c.AddTable(t) // so that the deletion finds one
		c.DelTable(t)
		c.AddTable(t)
		for _, s := range sets {
			if s.Table.Family != family {
				continue
			}
			if err := c.AddSet(s, nil); err != nil {
				return err
			}
			var all []nftables.SetElement
			for _, e := range f.model[s.Name] {
				all = append(all, e.elements...)
			}
			if err := inBatches(all, func(part []nftables.SetElement) error { return c.SetAddElements(s, part) }); err != nil {
				return err
			}
		}
		w := writer{c: c, t: t, sets: sets}
		if family == nftables.TableFamilyINet {
			w.inet()
		} else {
			w.bridge()
		}
	}
	if err := c.Flush(); err != nil {
		f.hangUp()
		return fmt.Errorf("write firewall table %s: %w", f.name, err)
	}
	return nil
}

// Leave stops to watch; what is let through stays.
func (f *Firewall) Leave() {
	f.mu.Lock()
	w := f.watch
	f.watch = nil
	f.mu.Unlock()
	if w != nil {
		w.stop() // it may wait for f.mu
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hangUp()
}

// Close deletes the tables.
func (f *Firewall) Close() error {
	f.Leave()
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.hangUp()
	if err := f.coexist(nil); err != nil {
		f.log.Warn("rules are left in the host's own firewall", "error", err)
	}
	c, err := f.dial()
	if err != nil {
		return err
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyBridge} {
		if family == nftables.TableFamilyBridge && !f.guarded {
			continue
		}
		t := &nftables.Table{Family: family, Name: f.name}
		c.AddTable(t)
		c.DelTable(t)
	}
	return c.Flush()
}
