// Command welcome is the one program of the image welcome: a small web page
// that tells where it runs.
package main

import (
	"fmt"
	"html/template"
	"net/http"
	"os"
	"time"
)

var page = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Welcome to Berth</title>
<style>
  body { font: 1.1rem/1.6 system-ui, sans-serif; max-width: 38rem; margin: 12vh auto; padding: 0 1.5rem; color: #12303f; background: #f4f8fa }
  h1 { font-weight: 600; letter-spacing: -.02em } code { background: #dfeaf0; padding: .1em .35em; border-radius: .25em }
  @media (prefers-color-scheme: dark) { body { color: #dbe8ee; background: #0d1a21 } code { background: #1d323d } }
</style>
<h1>Welcome to Berth</h1>
<p>This page is served by a container.</p>
<p>Its name on the network is <code>{{.Host}}</code>, and it has been up for <code>{{.Up}}</code>.</p>
<p>Try next: <code>berth ps</code>, <code>berth logs welcome</code>, <code>berth exec welcome /welcome --version</code>.</p>
</html>
`))

func main() {
	if len(os.Args) > 1 && os.Args[1] == "--version" {
		fmt.Println("welcome 1")
		return
	}
	started := time.Now()
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Println(time.Now().UTC().Format(time.RFC3339), r.Method, r.URL.Path)
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		if err := page.Execute(w, struct{ Host, Up string }{host, time.Since(started).Round(time.Second).String()}); err != nil {
			fmt.Fprintln(os.Stderr, "page not written:", err)
		}
	})
	fmt.Println("welcome listens on port 8080")
	if err := http.ListenAndServe(":8080", nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
