package object

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/balsa-run/balsa/internal/codec"
)

// check gathers violations.
type check struct {
	found  Violations
	writer Writer
}

func (c *check) add(v Violation) {
	if len(c.found) < maxViolations {
		c.found = append(c.found, v)
	}
}

func (c *check) required(path, hint string) {
	c.add(Violation{Field: path, Message: "is required", Hint: hint})
}

// text reports a text that is not allowed, as one of the problem functions found.
func (c *check) text(path, value, problem string) {
	if problem != "" {
		c.add(Violation{Field: path, Message: "is not valid", Found: quoted(value), Allowed: problem})
	}
}

// oneOf reports a value outside a set; values that only Kubernetes has are named
// as such.
func (c *check) oneOf(path, value string, allowed []string, unsupported ...string) {
	switch {
	case slices.Contains(allowed, value):
	case slices.Contains(unsupported, value):
		c.add(Violation{Field: path, Message: "is not supported yet", Found: quoted(value), Allowed: strings.Join(allowed, ", ")})
	default:
		v := Violation{Field: path, Message: "is not one of the allowed values", Found: quoted(value), Allowed: strings.Join(allowed, ", ")}
		v.Hint = codec.Nearest(value, allowed)
		c.add(v)
	}
}

// optional is oneOf for a field that may be left empty.
func (c *check) optional(path, value string, allowed ...string) {
	if value != "" {
		c.oneOf(path, value, allowed)
	}
}

func (c *check) between(path string, value, lowest, highest int64) {
	if value < lowest || value > highest {
		c.add(Violation{Field: path, Message: "is out of range", Found: strconv.FormatInt(value, 10), Allowed: fmt.Sprintf("%d to %d", lowest, highest)})
	}
}

func (c *check) port(path string, value int32) { c.between(path, int64(value), 1, maxPort) }

func validPort(value int32) bool { return value >= 1 && value <= maxPort }

// atMost reports a list that is too long and tells whether it is not.
func (c *check) atMost(path string, n, limit int, what string) bool {
	if n <= limit {
		return true
	}
	c.add(Violation{Field: path, Message: "has too many " + what, Found: strconv.Itoa(n), Allowed: "at most " + strconv.Itoa(limit)})
	return false
}

func (c *check) duplicate(path, value string) {
	c.add(Violation{Field: path, Message: "is there twice", Found: value})
}

// noNUL reports a text that no program can be given.
func (c *check) noNUL(path, value string) {
	if strings.IndexByte(value, 0) >= 0 {
		c.add(Violation{Field: path, Message: "contains a NUL character, which no process can be given", Hint: "remove the character"})
	}
}

func (c *check) labels(path string, labels map[string]string) {
	for _, key := range sortedKeys(labels) {
		here := codec.KeyPath(path, key)
		c.text(here, key, labelKeyProblem(key))
		c.text(here, labels[key], labelValueProblem(labels[key]))
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// field, index and key build paths.
func field(path, name string) string        { return codec.FieldPath(path, name) }
func index(path string, i int) string       { return codec.IndexPath(path, i) }
func mapKey(path string, key string) string { return codec.KeyPath(path, key) }
