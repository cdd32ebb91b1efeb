package output

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"

	"github.com/docker/go-units"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

// Limits of logs.
const (
	maxLine       = 16 << 10 // bytes; longer lines are cut into parts
	localSize     = 20 << 20 // bytes of one log file of the driver local
	localFiles    = 5
	maxFiles      = 1000
	defaultBuffer = 1 << 20 // bytes that wait for a remote log with mode=non-blocking
)

// settings are a log configuration that has been understood.
type settings struct {
	driver   string
	keeps    bool  // lines are kept in a file here
	size     int64 // bytes of one file; 0 is unbounded
	files    int
	compress bool
	queue    int64 // bytes that may wait for a remote log; 0: writing waits for it
	remote   dialer
}

// driver describes what a log driver accepts.
type driver struct {
	options []string
	unknown string // the error's format for options it does not know
	check   func(options map[string]string) error
	remote  dialer
}

const unknownOption = "unknown log opt '%s' for %s log driver"

func driverOf(name string) (driver, bool) {
	switch name {
	case "none":
		return driver{}, true
	case "local":
		return driver{[]string{"max-size", "max-file", "compress"}, "unknown log opt '%s' for log driver %s", nil, nil}, true
	case "json-file":
		return driver{[]string{"max-size", "max-file", "compress"}, unknownOption, nil, nil}, true
	case "syslog":
		return driver{syslogOptions(), unknownOption, checkSyslog, newSyslog}, true
	case "fluentd":
		return driver{fluentdOptions(), unknownOption, checkFluentd, newFluentd}, true
	case "gelf":
		return driver{gelfOptions(), "unknown log opt %q for %s log driver", checkGelf, newGelf}, true
	case "journald":
		return driver{nil, unknownOption, nil, newJournald}, true
	}
	return driver{}, false
}

// Drivers lists the log drivers that are supported.
func Drivers() []string {
	return []string{"fluentd", "gelf", "journald", "json-file", "local", "none", "syslog"}
}

// Options that every driver takes: how it is fed, what is told of the
// container, and the cache that makes remote logs readable.
func commonOptions() []string {
	return []string{"mode", "max-buffer-size", "labels", "labels-regex", "env", "env-regex", "tag"}
}

func cacheOptions() []string {
	return []string{"cache-disabled", "cache-max-size", "cache-max-file", "cache-compress"}
}

// parse understands and validates a configuration, whose driver is named.
func parse(cfg container.LogConfig) (settings, error) {
	d, ok := driverOf(cfg.Driver)
	if !ok {
		return settings{}, fault.Invalidf("logger: no log driver named '%s' is registered", cfg.Driver)
	}
	s := settings{driver: cfg.Driver, files: 1, remote: d.remote}
	if cfg.Driver == "none" {
		return s, nil
	}
	if err := s.parseMode(cfg.Options); err != nil {
		return s, err
	}
	known := append(append(commonOptions(), d.options...), cacheOptions()...)
	for _, k := range slices.Sorted(maps.Keys(cfg.Options)) {
		if !slices.Contains(known, k) {
			return s, fault.Invalidf("%s", fmt.Sprintf(d.unknown, k, cfg.Driver))
		}
	}
	if d.check != nil {
		if err := d.check(cfg.Options); err != nil {
			return s, fault.Invalidf("%w", err)
		}
	}
	for _, k := range []string{"labels-regex", "env-regex"} {
		if _, err := regexp.Compile(cfg.Options[k]); err != nil {
			return s, fault.Invalidf("%w", err)
		}
	}
	if _, err := expandTag(container.Container{ID: blankID}, cfg.Options["tag"]); err != nil {
		return s, err
	}
	s.keeps = true
	prefix := ""
	if d.remote != nil {
		prefix = "cache-"
		if off, err := parseBool(cfg.Options, "cache-disabled"); err != nil || off {
			s.keeps = false
			return s, err
		}
	}
	return s, s.parseFiles(cfg, prefix)
}

func (s *settings) parseMode(o map[string]string) error {
	switch o["mode"] {
	case "", "blocking", "non-blocking":
	default:
		return fault.Invalidf("logger: logging mode not supported: %s", o["mode"])
	}
	if o["mode"] == "non-blocking" {
		s.queue = defaultBuffer
	}
	if text, ok := o["max-buffer-size"]; ok {
		if o["mode"] != "non-blocking" {
			return fault.Invalidf("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
		}
		n, err := units.RAMInBytes(text)
		if err != nil || n < 0 {
			return fault.Invalidf("error parsing option max-buffer-size: invalid size: '%s'", text)
		}
		s.queue = max(n, 1)
	}
	return nil
}

func (s *settings) parseFiles(cfg container.LogConfig, prefix string) (err error) {
	if cfg.Driver != "json-file" {
		s.size, s.files = localSize, localFiles
	}
	o := cfg.Options
	if text, ok := o[prefix+"max-size"]; ok {
		if s.size, err = units.FromHumanSize(text); err != nil {
			return fault.Invalidf("%w", err)
		}
		if s.size <= 0 {
			return fault.Invalidf("max-size must be a positive number")
		}
	}
	if text, ok := o[prefix+"max-file"]; ok {
		if s.files, err = strconv.Atoi(text); err != nil {
			return fault.Invalidf("%w", err)
		}
		if s.files < 1 {
			return fault.Invalidf("max-file cannot be less than 1")
		}
		if s.files > maxFiles {
			return fault.Invalidf("max-file cannot be more than %d", maxFiles)
		}
	}
	if s.compress, err = parseBool(o, prefix+"compress"); err != nil {
		return err
	}
	if s.compress && (s.files < 2 || s.size == 0) {
		if cfg.Driver == "json-file" {
			return fault.Invalidf("compress cannot be true when max-file is less than 2 or max-size is not set")
		}
		return fault.Invalidf("compression cannot be enabled when max file count is 1")
	}
	if s.size == 0 {
		// Docker lets such a log grow for ever; here no log fills a disk.
		s.size, s.files = localSize, localFiles
	}
	return nil
}

func parseBool(o map[string]string, key string) (bool, error) {
	text, ok := o[key]
	if !ok {
		return false, nil
	}
	b, err := strconv.ParseBool(text)
	if err != nil {
		return false, fault.Invalidf("%w", err)
	}
	return b, nil
}

// dialer connects a container to a remote log.
type dialer func(c container.Container, cfg container.LogConfig) (sender, error)
