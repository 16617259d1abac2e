package revisions

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Override says which copy a Deployment uses in the place of a live object.
type Override struct {
	// Use is the copy's name; empty: the object counts as not there.
	Use string `json:"use"`
	// InsteadOf is the fingerprint of the live content that is passed over: once it
	// is another, the override is over. What undo writes is "@" and the
	// resourceVersion of the live object ("@" alone: there is none); the reconciler,
	// which can read Secrets, puts the fingerprint in its place.
	InsteadOf string `json:"insteadOf"`
}

// Absent stands for the fingerprint of what is not there.
const Absent = "absent"

// AtVersion is the InsteadOf of a live object by its resourceVersion.
func AtVersion(resourceVersion string) string { return "@" + resourceVersion }

// Version is the reverse of AtVersion.
func (o Override) Version() (resourceVersion string, ok bool) {
	return strings.CutPrefix(o.InsteadOf, "@")
}

// ParsePins reads AnnotationPins; "" is none.
func ParsePins(text string) (map[Ref]string, error) { return parse[string](AnnotationPins, text) }

// FormatPins writes AnnotationPins; "" for none.
func FormatPins(pins map[Ref]string) string { return format(pins) }

// ParsePinned reads AnnotationPinned; "" is none.
func ParsePinned(text string) (map[Ref]Override, error) {
	return parse[Override](AnnotationPinned, text)
}

// FormatPinned writes AnnotationPinned; "" for none.
func FormatPinned(pinned map[Ref]Override) string { return format(pinned) }

func parse[V any](annotation, text string) (map[Ref]V, error) {
	if text == "" {
		return nil, nil
	}
	var byName map[string]V
	if err := json.Unmarshal([]byte(text), &byName); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", annotation, err)
	}
	out := make(map[Ref]V, len(byName))
	for name, value := range byName {
		ref, err := ParseRef(name)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %w", annotation, err)
		}
		out[ref] = value
	}
	return out, nil
}

func format[V any](values map[Ref]V) string {
	if len(values) == 0 {
		return ""
	}
	byName := make(map[string]V, len(values))
	for ref, value := range values {
		byName[ref.String()] = value
	}
	text, err := json.Marshal(byName) // maps in the order of their keys
	if err != nil {
		panic(fmt.Sprintf("revisions: %v", err)) // strings always can
	}
	return string(text)
}
