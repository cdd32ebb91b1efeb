package compose

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// writeTable writes rows below headers, as docker compose spaces them.
func writeTable(out io.Writer, headers []string, rows [][]string) error {
	w := tabwriter.NewWriter(out, 20, 1, 3, ' ', 0)
	fmt.Fprintln(w, strings.Join(headers, "\t"))
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	return w.Flush()
}

// writeJSON writes v in one line, with its <, > and & as they are.
func writeJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// badFormat refuses a --format that a command does not have.
func badFormat(format string, known ...string) error {
	return fmt.Errorf("format value %q could not be parsed: use %s", format, strings.Join(known, say(" or ", " o ")))
}
