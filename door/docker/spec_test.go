package docker

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// FuzzCreation: whatever a creation's body says, it is refused or can be shown
// back; nothing panics.
func FuzzCreation(f *testing.F) {
	for _, body := range []string{
		`{}`, `null`, `[]`, `{"Image":"x"}`,
		`{"Image":"x","ExposedPorts":{"80/tcp":{}},"HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"::","HostPort":"1-70000"}],"0/udp":null}}}`,
		`{"Image":"x","HostConfig":{"Binds":["a:b:c:d","/a:/b:ro,z",":"],"Mounts":[{"Type":"bind","BindOptions":null},{"Type":"image","ImageOptions":{"Subpath":".."}}],"Tmpfs":{"":"x"}}}`,
		`{"Image":"x","HostConfig":{"BlkioDeviceReadBps":[null],"Ulimits":[null],"Devices":[{}],"DeviceRequests":[{}],"LogConfig":null}}`,
		`{"Image":"x","NetworkingConfig":{"EndpointsConfig":{"n":null,"m":{"IPAMConfig":{"IPv4Address":"1.2.3.4"},"MacAddress":"02:42:ac:11:00:02"}}},"MacAddress":"zz"}`,
		`{"Image":"x","Healthcheck":{"Test":["CMD"],"Interval":-1},"Volumes":{"/a":{}},"Cmd":"text","Entrypoint":["a"]}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r := &request{Request: httptest.NewRequest(http.MethodPost, "/containers/create", strings.NewReader(string(body))), version: maxVersion}
		r.Header.Set("Content-Type", "application/json")
		var b createBody
		if decode(r, &b) != nil {
			return
		}
		s, err := toSpec(b)
		if err != nil {
			return
		}
		if _, err := json.Marshal(map[string]any{"Config": config(s), "HostConfig": hostConfig(s)}); err != nil {
			t.Errorf("%s is taken and cannot be shown: %v", body, err)
		}
	})
}

// FuzzQuery reads all that queries hold.
func FuzzQuery(f *testing.F) {
	for _, q := range []string{
		"filters={}", `filters={"a":["b"]}`, `filters={"a":{"b":true}}`, "filters=[]", "limit=-1", "since=1.5", "since=1.99999999999", "until=2020-01-01T00:00:00Z",
		`platform={"os":"linux","architecture":"arm64"}`, "platform={}&platform=linux/amd64", "h=1&w=65536", "size=maybe",
	} {
		f.Add(q)
	}
	f.Fuzz(func(_ *testing.T, query string) {
		r := &request{Request: &http.Request{Method: http.MethodGet, Header: http.Header{}}, version: maxVersion}
		u, err := url.Parse("/?" + query)
		if err != nil {
			return
		}
		r.URL = u
		if r.ParseForm() != nil {
			return
		}
		_, _ = r.filters()
		_, _ = r.number("limit", 0)
		_ = r.flag("size")
		_, _ = parseTime(r.Form.Get("since"))
		_, _ = parseTime(r.Form.Get("until"))
		_, _ = r.platform()
		_, _, _ = size(r)
	})
}
