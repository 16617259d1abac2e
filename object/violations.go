package object

import (
	"fmt"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// maxViolations bounds what one refusal lists.
const maxViolations = 50

// Violation is one reason why an object is refused. It never holds a Secret's
// value.
type Violation struct {
	// Field is the path, for example "spec.template.spec.containers[0].image".
	Field string
	// Message says what is wrong.
	Message string
	// Found and Allowed say what is there and what may be, where it is short.
	Found, Allowed string
	// Hint is the next thing to try; may be empty.
	Hint string
}

// String is the violation as one line.
func (v Violation) String() string {
	var b strings.Builder
	b.WriteString(v.Field + ": " + v.Message)
	if v.Found != "" {
		b.WriteString("; found " + v.Found)
	}
	if v.Allowed != "" {
		b.WriteString("; allowed: " + v.Allowed)
	}
	if v.Hint != "" {
		b.WriteString("; try: " + v.Hint)
	}
	return b.String()
}

// Violations are all reasons why an object is refused, in the order of its
// fields. Empty: it is valid.
type Violations []Violation

// Err is nil without violations, else an *InvalidError about m.
func (v Violations) Err(m Message) error {
	if len(v) == 0 {
		return nil
	}
	return &InvalidError{Object: Describe(m), Violations: v}
}

// Proto is the violations as they travel in an ErrorDetail.
func (v Violations) Proto() []*balsav1.FieldViolation {
	out := make([]*balsav1.FieldViolation, len(v))
	for i, x := range v {
		message := x.Message
		if x.Hint != "" {
			message += "; try: " + x.Hint
		}
		out[i] = &balsav1.FieldViolation{Field: x.Field, Message: message, Found: x.Found, Allowed: x.Allowed}
	}
	return out
}

// InvalidError is the refusal of an object. Find it with errors.As.
type InvalidError struct {
	// Object is its description, for example `pod "default/hello"`.
	Object     string
	Violations Violations
}

// Error lists every violation.
func (e *InvalidError) Error() string {
	if len(e.Violations) == 1 {
		return e.Object + " is invalid: " + e.Violations[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s is invalid, %d fields:", e.Object, len(e.Violations))
	for _, v := range e.Violations {
		b.WriteString("\n  " + v.String())
	}
	return b.String()
}
