package firewall

import (
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// The host's own firewall may drop what is forwarded: iptables' policy, ufw,
// firewalld, docker beside us. A packet must pass every table, so ours cannot
// overrule another's: its chains get two rules for each of our bridges, which
// leave the decision to our table. They are written as iptables would write
// them, or it could not list its chains any more. Whoever wants a policy of
// their own for containers puts it in a chain of the hook forward before
// priority 0.

// remark is the comment of our rules in chains of others.
func (f *Firewall) remark(direction, bridge string) string {
	return f.name + " " + direction + " " + bridge
}

// coexist brings our rules in others' chains to what they must be. f.mu is held.
func (f *Firewall) coexist(bridges []string) error {
	c, err := f.dial()
	if err != nil {
		return err
	}
	chains, err := c.ListChains()
	if err != nil {
		f.hangUp()
		return err
	}
	for _, ch := range chains {
		if !foreignForward(ch) {
			continue
		}
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			f.hangUp()
			return err
		}
		f.settle(c, ch, rules, bridges)
	}
	if err := c.Flush(); err != nil {
		f.hangUp()
		return err
	}
	return nil
}

// foreignForward tells whether a chain of somebody else sees forwarded packets.
func foreignForward(ch *nftables.Chain) bool {
	if ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward || ch.Type != nftables.ChainTypeFilter {
		return false
	}
	family := ch.Table.Family
	known := family == nftables.TableFamilyIPv4 || family == nftables.TableFamilyIPv6 || family == nftables.TableFamilyINet
	return known && ch.Table.Name != "berth" && !strings.HasPrefix(ch.Table.Name, "berth-")
}

// settle adds the rules that a chain lacks and deletes those that it need not have.
func (f *Firewall) settle(c *nftables.Conn, ch *nftables.Chain, rules []*nftables.Rule, bridges []string) {
	wanted := map[string]bool{}
	if blocks(ch, rules) {
		for _, b := range bridges {
			wanted[f.remark("from", b)], wanted[f.remark("to", b)] = true, true
		}
	}
	for _, r := range rules {
		text, ok := userdata.GetString(r.UserData, userdata.TypeComment)
		if !ok || !strings.HasPrefix(text, f.name+" from ") && !strings.HasPrefix(text, f.name+" to ") {
			continue
		}
		if wanted[text] {
			delete(wanted, text)
			continue
		}
		_ = c.DelRule(r) // wrong only without a handle, and the kernel gave it one
	}
	for text := range wanted {
		_, rest, _ := strings.Cut(text, " ")
		direction, bridge, _ := strings.Cut(rest, " ")
		key := expr.MetaKeyIIFNAME
		if direction == "to" {
			key = expr.MetaKeyOIFNAME
		}
		c.InsertRule(&nftables.Rule{Table: ch.Table, Chain: ch, UserData: userdata.AppendString(nil, userdata.TypeComment, text), Exprs: []expr.Any{
			meta(key, 1), equal(1, append([]byte(bridge), 0)...), &expr.Counter{}, verdict(expr.VerdictAccept),
		}})
	}
}

// blocks tells whether a chain may stop what nothing in it accepts.
func blocks(ch *nftables.Chain, rules []*nftables.Rule) bool {
	if ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop {
		return true
	}
	return slices.ContainsFunc(rules, func(r *nftables.Rule) bool {
		return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
			switch x := e.(type) {
			case *expr.Reject:
				return true
			case *expr.Verdict:
				// What it jumps to may stop packets; that it does not costs two rules.
				return x.Kind == expr.VerdictDrop || x.Kind == expr.VerdictJump || x.Kind == expr.VerdictGoto
			case *expr.Target:
				return x.Name == "REJECT" || x.Name == "DROP"
			}
			return false
		})
	})
}

// bridges are the names of ours. f.mu is held.
func (f *Firewall) bridges() []string {
	var names []string
	for key := range f.model[setBridges] {
		names = append(names, strings.TrimRight(key, "\x00"))
	}
	return names
}

// tryCoexist does it and goes on where it fails. f.mu is held.
func (f *Firewall) tryCoexist() {
	if err := f.coexist(f.bridges()); err != nil {
		f.log.Warn("the host's own firewall was not told of our bridges", "error", err)
	}
}
