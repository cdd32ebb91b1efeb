package output

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/RackSec/srslog"
	"github.com/docker/go-connections/tlsconfig"

	"github.com/berth-project/berth/core/container"
)

const secureSyslog = "tcp+tls"

func syslogOptions() []string {
	return []string{"syslog-address", "syslog-facility", "syslog-format", "syslog-tls-ca-cert", "syslog-tls-cert", "syslog-tls-key", "syslog-tls-skip-verify"}
}

func checkSyslog(o map[string]string) error {
	if _, _, err := syslogAddress(o["syslog-address"]); err != nil {
		return err
	}
	if _, err := syslogFacility(o["syslog-facility"]); err != nil {
		return err
	}
	_, _, err := syslogFormat(o["syslog-format"], "", "")
	return err
}

// transport splits proto://address.
func transport(option, address string, schemes ...string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err == nil {
		for _, s := range schemes {
			if u.Scheme == s {
				return u, nil
			}
		}
	}
	return nil, fmt.Errorf("%s should be in form proto://address, got %v", option, address)
}

func syslogAddress(address string) (network, place string, err error) {
	if address == "" {
		return "", "", nil
	}
	u, err := transport("syslog-address", address, "tcp", "udp", "unix", "unixgram", secureSyslog)
	if err != nil {
		return "", "", err
	}
	if strings.HasPrefix(u.Scheme, "unix") {
		if _, err := os.Stat(u.Path); err != nil {
			return "", "", err
		}
		return u.Scheme, u.Path, nil
	}
	host := u.Host
	if _, _, err := net.SplitHostPort(host); err != nil {
		if !strings.Contains(err.Error(), "missing port in address") {
			return "", "", err
		}
		host = net.JoinHostPort(strings.Trim(host, "[]"), "514")
	}
	return u.Scheme, host, nil
}

func syslogFacility(name string) (srslog.Priority, error) {
	if name == "" {
		return srslog.LOG_DAEMON, nil
	}
	names := []string{"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"}
	for i, n := range names {
		if n == name {
			return srslog.Priority(i << 3), nil
		}
	}
	for i := range 8 {
		if name == "local"+strconv.Itoa(i) {
			return srslog.Priority((16 + i) << 3), nil
		}
	}
	if n, err := strconv.Atoi(name); err == nil && n >= 0 && n <= 23 {
		return srslog.Priority(n << 3), nil
	}
	return 0, errors.New("invalid syslog facility")
}

func syslogFormat(name, network, tag string) (srslog.Formatter, srslog.Framer, error) {
	pid := os.Getpid()
	layout := time.RFC3339
	var framer srslog.Framer = srslog.DefaultFramer
	switch name {
	case "":
		return srslog.UnixFormatter, srslog.DefaultFramer, nil
	case "rfc3164":
		return srslog.RFC3164Formatter, srslog.DefaultFramer, nil
	case "rfc5424":
	case "rfc5424micro":
		layout = "2006-01-02T15:04:05.000000Z07:00"
	default:
		//lint:ignore ST1005 clients match docker's words
		return nil, nil, errors.New("Invalid syslog format")
	}
	if network == secureSyslog {
		framer = srslog.RFC5425MessageLengthFramer
	}
	return func(p srslog.Priority, hostname, tag, content string) string {
		return fmt.Sprintf("<%d>1 %s %s %s %d %s - %s", p, time.Now().Format(layout), hostname, tag, pid, tag, content)
	}, framer, nil
}

type syslogSender struct{ w *srslog.Writer }

func newSyslog(c container.Container, cfg container.LogConfig) (sender, error) {
	tag, err := remoteTag(c, cfg)
	if err != nil {
		return nil, err
	}
	network, address, err := syslogAddress(cfg.Options["syslog-address"])
	if err != nil {
		return nil, err
	}
	facility, err := syslogFacility(cfg.Options["syslog-facility"])
	if err != nil {
		return nil, err
	}
	format, framer, err := syslogFormat(cfg.Options["syslog-format"], network, tag)
	if err != nil {
		return nil, err
	}
	var w *srslog.Writer
	if network == secureSyslog {
		_, skip := cfg.Options["syslog-tls-skip-verify"]
		tls, err := tlsconfig.Client(tlsconfig.Options{
			CAFile: cfg.Options["syslog-tls-ca-cert"], CertFile: cfg.Options["syslog-tls-cert"], KeyFile: cfg.Options["syslog-tls-key"], InsecureSkipVerify: skip,
		})
		if err != nil {
			return nil, err
		}
		w, err = srslog.DialWithTLSConfig(network, address, facility, tag, tls)
		if err != nil {
			return nil, err
		}
	} else if w, err = srslog.Dial(network, address, facility, tag); err != nil {
		return nil, err
	}
	w.SetFormatter(format)
	w.SetFramer(framer)
	return syslogSender{w}, nil
}

func (s syslogSender) send(m message) error {
	if m.stderr {
		return s.w.Err(string(m.text))
	}
	return s.w.Info(string(m.text))
}

func (s syslogSender) close() error { return s.w.Close() }

// remoteTag is the name of a container in a remote log.
func remoteTag(c container.Container, cfg container.LogConfig) (string, error) {
	tag := cfg.Options["tag"]
	if tag == "" {
		tag = defaultTag
	}
	return expandTag(c, tag)
}
