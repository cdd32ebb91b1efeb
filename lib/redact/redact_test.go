package redact

import "testing"

func TestAddressesLoseTheirCredentials(t *testing.T) {
	for in, want := range map[string]string{
		"https://me:secret@host/x":                             "https://xxxxx:xxxxx@host/x",
		`Get "http://token@host:80/x.git#main:d": refused`:     `Get "http://xxxxx@host:80/x.git#main:d": refused`,
		"https://:secret@host":                                 "https://:xxxxx@host",
		"https://a:p@ss@host/y@z":                              "https://xxxxx:xxxxx@host/y@z",
		"two: http://a:b@c/ and git+https://d:e@f/ end":        "two: http://xxxxx:xxxxx@c/ and git+https://xxxxx:xxxxx@f/ end",
		"ssh://git@host/x ssh://git:pw@host/x":                 "ssh://git@host/x ssh://git:xxxxx@host/x",
		"https://host/a@b http://host?x=a@b git@host:x.git me": "https://host/a@b http://host?x=a@b git@host:x.git me",
		"": "",
	} {
		if got := URLs(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
