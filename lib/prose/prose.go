// Package prose has what sentences and tables on a screen need.
package prose

import (
	"strings"
	"unicode/utf8"
)

// Clip cuts a line to a number of columns, and says so by a last "…".
func Clip(s string, columns int) string {
	if columns < 1 {
		return ""
	}
	if utf8.RuneCountInString(s) <= columns {
		return s
	}
	return string([]rune(s)[:columns-1]) + "…"
}

// Nearest gives the known word nearest to a wrong one; "" where none is near.
func Nearest(wrong string, known []string) string {
	best, least := "", len(wrong)/3+2
	for _, k := range known {
		if d := distance(strings.ToLower(wrong), k, least); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance is how many letters must be put in, taken out, exchanged or
// swapped with their neighbour to make b of a; limit where it is more.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
