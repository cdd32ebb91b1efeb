package bridge

import (
	"errors"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/core/network"
)

// doomedGroup holds the interfaces that wait for their deletion. The kernel
// takes tens of milliseconds for one, and no longer for a whole group.
const doomedGroup = 0x62727468

// Drop cuts an interface off at once and deletes it soon after.
func (l *Links) Drop(n network.Link) error {
	if n.Kind != network.Veth {
		return l.Detach(n)
	}
	link, err := l.host.LinkByName(n.HostName)
	if isMissing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	// A disabled port of a bridge passes nothing: the address may be given again.
	err = errors.Join(l.disable(link), l.host.LinkSetGroup(link, doomedGroup))
	if errors.Is(err, unix.ENODEV) {
		return nil // went with its namespace
	}
	if err != nil {
		return l.Detach(n)
	}
	select {
	case l.doomed <- struct{}{}:
	default:
	}
	return nil
}

// disable sets a bridge's port to the state "disabled".
func (l *Links) disable(link netlink.Link) error {
	if link.Attrs().MasterIndex == 0 {
		return nil
	}
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(link.Attrs().Index)
	req.AddData(msg)
	port := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	port.AddRtAttr(nl.IFLA_BRPORT_STATE, []byte{0})
	req.AddData(port)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// reap deletes doomed interfaces, all at once, until Shutdown; then the last.
func (l *Links) reap() {
	defer l.done.Done()
	for {
		select {
		case <-l.doomed:
			l.deleteGroup()
		case <-l.stop:
			l.deleteGroup()
			return
		}
	}
}

func (l *Links) deleteGroup() {
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(doomedGroup)))
	_, _ = req.Execute(unix.NETLINK_ROUTE, 0) // without any it is an error; what stays is found by the next sweep
}
