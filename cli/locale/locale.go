// Package locale chooses the language of prose on the screen.
package locale

import (
	"os"
	"strings"
)

// Say chooses by the locale between English and Spanish.
func Say(english, spanish string) string {
	for _, k := range []string{"LC_ALL", "LC_MESSAGES", "LANG"} {
		if v := os.Getenv(k); v != "" {
			if strings.HasPrefix(v, "es") {
				return spanish
			}
			return english
		}
	}
	return english
}
