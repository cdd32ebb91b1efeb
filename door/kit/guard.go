package kit

import (
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
)

// Guard keeps web pages from a door that is open on plain tcp: a browser would
// carry their requests to it. Those of another origin are refused, and those
// for a name that is not this machine's (a page may let its own name point
// here). Unix sockets and TLS with a client's certificate, which browsers do not
// reach, are let through.
// names are further names that the machine is called by.
func Guard(next http.Handler, names ...string) http.Handler {
	if h, err := os.Hostname(); err == nil {
		names = append(slices.Clone(names), h)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if _, tcp := local.(*net.TCPAddr); !tcp || r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
			next.ServeHTTP(w, r)
			return
		}
		switch {
		case r.TLS == nil && !ownName(r.Host, names): // over TLS the certificate says the name
			refuse(w, "the host "+r.Host+" is not a name of this daemon: use its address, or listen on that name with -H tcp://NAME:PORT")
		case !sameOrigin(r):
			refuse(w, "requests from web pages of other origins are refused")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func refuse(w http.ResponseWriter, why string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusForbidden)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": why})
}

// ownName tells whether a Host header can only have been meant for us.
func ownName(host string, names []string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.ToLower(strings.Trim(host, "[]")), ".")
	if _, err := netip.ParseAddr(host); err == nil || host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, host) })
}

func sameOrigin(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && strings.EqualFold(u.Host, r.Host)
}
