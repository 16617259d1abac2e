package codec

import (
	"fmt"
	"strings"
)

// maxIssues bounds how many faults one Error lists.
const maxIssues = 50

// Issue is one fault of a text.
type Issue struct {
	// Path is the field, for example "spec.replica"; empty for a syntax error.
	Path string
	// Line and Column are where it is, from 1; 0 where there are no lines.
	Line, Column int
	// Message says what is wrong.
	Message string
	// Found and Allowed say it shortly, where that is possible.
	Found, Allowed string
	// Hint is what to try; may be empty.
	Hint string
}

// String is the issue in one line, without its position.
func (i Issue) String() string {
	var b strings.Builder
	if i.Path != "" {
		b.WriteString(i.Path + ": ")
	}
	b.WriteString(i.Message)
	if i.Found != "" {
		b.WriteString("; found " + i.Found)
	}
	if i.Allowed != "" {
		b.WriteString("; allowed: " + i.Allowed)
	}
	if i.Hint != "" {
		b.WriteString("; try: " + i.Hint)
	}
	return b.String()
}

// Error is the refusal of a text, with all of its faults. Find it with
// errors.As.
type Error struct {
	Issues []Issue
}

// Error lists the issues, one a line.
func (e *Error) Error() string {
	lines := make([]string, len(e.Issues))
	for n, i := range e.Issues {
		lines[n] = i.String()
		if i.Line > 0 {
			lines[n] = fmt.Sprintf("line %d, column %d: %s", i.Line, i.Column, lines[n])
		}
	}
	return strings.Join(lines, "\n")
}

func failAt(source string, offset int, format string, args ...any) *Error {
	line, column := position(source, offset)
	return &Error{Issues: []Issue{{Line: line, Column: column, Message: fmt.Sprintf(format, args...)}}}
}
