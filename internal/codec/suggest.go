package codec

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// longestSuggested bounds the names that are compared.
const longestSuggested = 64

// nearestField returns the JSON name of a message's field that a wrong name most
// likely means, "" when none is near.
func nearestField(md protoreflect.MessageDescriptor, name string) string {
	fields := md.Fields()
	candidates := make([]string, fields.Len())
	for i := range candidates {
		candidates[i] = fields.Get(i).JSONName()
	}
	return Nearest(name, candidates)
}

// Nearest returns the candidate that a wrong word most likely means, "" when
// none is near: at most a third of its letters, and at most three, differ.
func Nearest(word string, candidates []string) string {
	if len(word) > longestSuggested {
		return ""
	}
	best, bestDistance := "", min(3, max(1, len(word)/3))+1
	for _, c := range candidates {
		if fold(c) == fold(word) {
			return c
		}
		if d := distance(strings.ToLower(word), strings.ToLower(c)); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// fold makes node_name, node-name and NodeName the same.
func fold(s string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(s))
}

// distance is the optimal string alignment distance: insertions, deletions,
// replacements and swaps of neighbours count 1.
func distance(a, b string) int {
	before, row := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next[j+1] = min(row[j+1]+1, next[j]+1, row[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}
