package output

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/core/container"
	"github.com/berth-project/berth/lib/fault"
)

func TestLogConfigurationsAreChecked(t *testing.T) {
	o := testOutput(t)
	for _, tt := range []struct {
		driver  string
		options []string
		want    string // the error; "" for none
	}{
		{"", nil, ""},
		{"", []string{"max-size", "10m"}, ""},
		{"none", []string{"whatever", "x"}, ""},
		{"nope", nil, "logger: no log driver named 'nope' is registered"},
		{"json-file", []string{"max-size", "10m", "max-file", "3", "compress", "true", "labels", "a", "env-regex", "^b", "tag", "{{.Name}}/{{.ID}}"}, ""},
		{"json-file", []string{"x", "1"}, "unknown log opt 'x' for json-file log driver"},
		{"local", []string{"x", "1"}, "unknown log opt 'x' for log driver local"},
		{"json-file", []string{"max-size", "none"}, "invalid size: 'none'"},
		{"json-file", []string{"max-size", "0"}, "max-size must be a positive number"},
		{"json-file", []string{"max-file", "0"}, "max-file cannot be less than 1"},
		{"json-file", []string{"max-file", "x"}, `strconv.Atoi: parsing "x": invalid syntax`},
		{"json-file", []string{"compress", "true"}, "compress cannot be true when max-file is less than 2 or max-size is not set"},
		{"json-file", []string{"mode", "fast"}, "logger: logging mode not supported: fast"},
		{"json-file", []string{"max-buffer-size", "1m"}, "logger: max-buffer-size option is only supported with 'mode=non-blocking'"},
		{"json-file", []string{"mode", "non-blocking", "max-buffer-size", "1m"}, ""},
		{"json-file", []string{"labels-regex", "("}, "error parsing regexp: missing closing ): `(`"},
		{"json-file", []string{"tag", "{{.Nope}}"}, `template: log-tag:1:2: executing "log-tag" at <.Nope>: can't evaluate field Nope in type output.tagInfo`},
		{"syslog", []string{"syslog-address", "udp://127.0.0.1", "syslog-facility", "local3", "syslog-format", "rfc5424", "cache-max-size", "1m"}, ""},
		{"syslog", []string{"syslog-address", "127.0.0.1:514"}, "syslog-address should be in form proto://address, got 127.0.0.1:514"},
		{"syslog", []string{"syslog-facility", "nope"}, "invalid syslog facility"},
		{"syslog", []string{"syslog-format", "nope"}, "Invalid syslog format"},
		{"syslog", []string{"max-size", "1m"}, "unknown log opt 'max-size' for syslog log driver"},
		{"fluentd", []string{"fluentd-address", "tcp://127.0.0.1:24224", "fluentd-async", "true"}, ""},
		{"fluentd", []string{"x", "1"}, "unknown log opt 'x' for fluentd log driver"},
		{"gelf", nil, "gelf-address is a required parameter"},
		{"gelf", []string{"gelf-address", "udp://127.0.0.1:12201", "gelf-compression-type", "none"}, ""},
		{"gelf", []string{"gelf-address", "udp://127.0.0.1:12201", "gelf-compression-type", "lzma"}, `unknown value "lzma" for log opt "gelf-compression-type" for gelf log driver`},
		{"gelf", []string{"gelf-address", "http://127.0.0.1:1"}, "gelf: endpoint needs to be TCP or UDP"},
		{"gelf", []string{"x", "1", "gelf-address", "udp://127.0.0.1:1"}, `unknown log opt "x" for gelf log driver`},
		{"journald", []string{"x", "1"}, "unknown log opt 'x' for journald log driver"},
	} {
		t.Run(tt.driver+" "+tt.want, func(t *testing.T) {
			err := o.Check(testContainer(tt.driver, tt.options...).Spec.Log)
			got := ""
			if err != nil {
				got = err.Error()
				if !errors.Is(err, fault.ErrInvalid) {
					t.Errorf("class of %v", err)
				}
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestLogsWithoutAFileAreNotRead(t *testing.T) {
	for _, c := range []container.Container{testContainer("none"), testContainer("syslog", "cache-disabled", "true")} {
		err := testOutput(t).Logs(t.Context(), c, all(), nil)
		if err == nil || err.Error() != "configured logging driver does not support reading" {
			t.Errorf("%s: %v", c.Spec.Log.Driver, err)
		}
	}
}

func TestDetailsAreShownOnlyWhereAskedFor(t *testing.T) {
	for _, driver := range []string{"local", "json-file"} {
		o, c := testOutput(t), testContainer(driver, "labels", "a,b", "env", "E", "tag", "{{.Name}}")
		c.Spec.Labels = map[string]string{"a": "1", "c": "3"}
		c.Spec.Env = []string{"E=2", "F=4"}
		p := start(t, o, c)
		write(t, p.out, "x\n")
		p.end(t)
		for _, details := range []bool{false, true} {
			var want, got map[string]string
			if details {
				want = map[string]string{"a": "1", "E": "2", "tag": "c1"}
			}
			opt := all()
			opt.Details = details
			if err := o.Logs(t.Context(), c, opt, func(r container.LogRecord) error { got = r.Attrs; return nil }); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(driver, d)
			}
		}
	}
}
