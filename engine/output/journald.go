package output

import (
	"errors"
	"maps"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/coreos/go-systemd/v22/journal"

	"github.com/berth-project/berth/core/container"
)

type journaldSender struct {
	vars  map[string]string
	count atomic.Uint64
}

func newJournald(c container.Container, cfg container.LogConfig) (sender, error) {
	if !journal.Enabled() {
		return nil, errors.New("journald is not enabled on this host")
	}
	tag, err := remoteTag(c, cfg)
	if err != nil {
		return nil, err
	}
	vars := attributes(cfg, c, journalKey)
	maps.Copy(vars, map[string]string{
		"CONTAINER_ID": c.ID.Short(), "CONTAINER_ID_FULL": string(c.ID), "CONTAINER_NAME": c.Name, "CONTAINER_TAG": tag,
		"IMAGE_NAME": c.Spec.Image, "SYSLOG_IDENTIFIER": tag,
	})
	return &journaldSender{vars: vars}, nil
}

// journalKey shapes a key as journald wants: upper-case letters, digits and
// underscores, none of these first.
func journalKey(key string) string {
	key = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
	return strings.TrimLeft(key, "_")
}

func (s *journaldSender) send(m message) error {
	vars := maps.Clone(s.vars)
	vars["CONTAINER_LOG_ORDINAL"] = strconv.FormatUint(s.count.Add(1), 10)
	vars["SYSLOG_TIMESTAMP"] = m.time.Format("2006-01-02T15:04:05.000000000Z07:00")
	if m.id != "" {
		vars["CONTAINER_PARTIAL_ID"], vars["CONTAINER_PARTIAL_ORDINAL"] = m.id, strconv.Itoa(m.ordinal)
		vars["CONTAINER_PARTIAL_LAST"] = strconv.FormatBool(m.last)
		if !m.last {
			vars["CONTAINER_PARTIAL_MESSAGE"] = "true"
		}
	}
	priority := journal.PriInfo
	if m.stderr {
		priority = journal.PriErr
	}
	return journal.Send(string(m.text), priority, vars)
}

func (*journaldSender) close() error { return nil }
