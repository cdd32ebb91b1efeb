package output

import (
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/fluent/fluent-logger-golang/fluent"

	"github.com/berth-project/berth/core/container"
)

const fluentdPort = 24224

func fluentdOptions() []string {
	return []string{
		"fluentd-address", "fluentd-async", "fluentd-async-connect", "fluentd-async-reconnect-interval", "fluentd-buffer-limit", "fluentd-max-retries",
		"fluentd-read-timeout", "fluentd-request-ack", "fluentd-retry-wait", "fluentd-sub-second-precision", "fluentd-write-timeout",
	}
}

func checkFluentd(o map[string]string) error {
	_, err := fluentdConfig(o)
	return err
}

func fluentdConfig(o map[string]string) (f fluent.Config, err error) {
	f = fluent.Config{BufferLimit: 1 << 20, RetryWait: 1000, MaxRetry: math.MaxInt32}
	if err := fluentdAddress(o["fluentd-address"], &f); err != nil {
		return f, err
	}
	if text := o["fluentd-buffer-limit"]; text != "" {
		n, err := units.RAMInBytes(text)
		if err != nil {
			return f, err
		}
		f.BufferLimit = int(n)
	}
	if text := o["fluentd-max-retries"]; text != "" {
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil {
			return f, err
		}
		f.MaxRetry = int(n)
	}
	if o["fluentd-async"] != "" && o["fluentd-async-connect"] != "" {
		return f, fmt.Errorf("conflicting options: cannot specify both 'fluentd-async' and 'fluentd-async-connect'")
	}
	for key, at := range map[string]*bool{
		"fluentd-async": &f.Async, "fluentd-async-connect": &f.Async, "fluentd-request-ack": &f.RequestAck, "fluentd-sub-second-precision": &f.SubSecondPrecision,
	} {
		if o[key] == "" {
			continue
		}
		if *at, err = strconv.ParseBool(o[key]); err != nil {
			return f, err
		}
	}
	f.ForceStopAsyncSend = f.Async
	wait, interval := time.Second, time.Duration(0)
	for key, at := range map[string]*time.Duration{
		"fluentd-retry-wait": &wait, "fluentd-async-reconnect-interval": &interval, "fluentd-read-timeout": &f.ReadTimeout, "fluentd-write-timeout": &f.WriteTimeout,
	} {
		if o[key] == "" {
			continue
		}
		if *at, err = time.ParseDuration(o[key]); err != nil {
			return f, fmt.Errorf("invalid value for %s: %w", key, err)
		}
		if *at < 0 {
			return f, fmt.Errorf("invalid value for %s: value must be a positive duration", key)
		}
	}
	if interval > 0 && (interval < 100*time.Millisecond || interval > 10*time.Second) {
		return f, fmt.Errorf("invalid value for fluentd-async-reconnect-interval: value (%q) must be between 100ms and 10s", o["fluentd-async-reconnect-interval"])
	}
	f.RetryWait, f.AsyncReconnectInterval = int(wait.Milliseconds()), int(interval.Milliseconds())
	return f, nil
}

func fluentdAddress(address string, f *fluent.Config) error {
	f.FluentNetwork, f.FluentHost, f.FluentPort = "tcp", "127.0.0.1", fluentdPort
	if address == "" {
		return nil
	}
	host := address
	if strings.Contains(address, "://") {
		u, err := transport("fluentd-address", address, "tcp", "tls", "unix")
		if err != nil {
			return fmt.Errorf("invalid fluentd-address %s: %w", address, err)
		}
		f.FluentNetwork = u.Scheme
		if u.Scheme == "unix" {
			f.FluentHost, f.FluentPort, f.FluentSocketPath = "", 0, u.Path
			return nil
		}
		if u.Path != "" {
			return fmt.Errorf("invalid fluentd-address %s: should not contain a path element", address)
		}
		host = u.Host
	}
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		if !strings.Contains(err.Error(), "missing port in address") {
			return fmt.Errorf("invalid fluentd-address %s: %w", address, err)
		}
		f.FluentHost = host
		return nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return fmt.Errorf("invalid fluentd-address %s: invalid port number: %w", address, err)
	}
	f.FluentHost, f.FluentPort = name, int(n)
	return nil
}

type fluentdSender struct {
	f    *fluent.Fluent
	tag  string
	base map[string]string
}

func newFluentd(c container.Container, cfg container.LogConfig) (sender, error) {
	config, err := fluentdConfig(cfg.Options)
	if err != nil {
		return nil, err
	}
	s := &fluentdSender{base: attributes(cfg, c, nil)}
	if s.tag, err = remoteTag(c, cfg); err != nil {
		return nil, err
	}
	s.base["container_id"], s.base["container_name"] = string(c.ID), "/"+c.Name
	if s.f, err = fluent.New(config); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *fluentdSender) send(m message) error {
	data := make(map[string]string, len(s.base)+6)
	for k, v := range s.base {
		data[k] = v
	}
	data["source"], data["log"] = streamName(m.stderr), string(m.text)
	if m.id != "" {
		data["partial_message"], data["partial_id"] = "true", m.id
		data["partial_ordinal"], data["partial_last"] = strconv.Itoa(m.ordinal), strconv.FormatBool(m.last)
	}
	return s.f.PostWithTime(s.tag, m.time, data)
}

func (s *fluentdSender) close() error { return s.f.Close() }

func streamName(stderr bool) string {
	if stderr {
		return "stderr"
	}
	return "stdout"
}
