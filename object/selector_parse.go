package object

import (
	"fmt"
	"strings"
)

// Limits of a selector's text.
const (
	maxSelectorLength       = 4096
	maxSelectorRequirements = 64
)

// ParseSelector reads a label selector: requirements joined by commas, each one
// of
//
//	key = value    key == value    key != value
//	key in (a, b)  key notin (a, b)
//	key            !key
//
// The empty text matches everything.
func ParseSelector(text string) (Selector, error) {
	var s Selector
	if len(text) > maxSelectorLength {
		return s, fmt.Errorf("selector: %d bytes long, allowed: %d", len(text), maxSelectorLength)
	}
	for rest := strings.TrimSpace(text); rest != ""; {
		if len(s.requirements) == maxSelectorRequirements {
			return Selector{}, fmt.Errorf("selector %q: more than %d requirements", text, maxSelectorRequirements)
		}
		r, after, err := parseRequirement(rest)
		if err != nil {
			return Selector{}, fmt.Errorf("%w, in %q", err, text)
		}
		s.requirements = append(s.requirements, r)
		if rest, err = cutComma(after); err != nil {
			return Selector{}, fmt.Errorf("%w, in %q", err, text)
		}
	}
	return s, nil
}

// cutComma steps over the comma between two requirements.
func cutComma(s string) (string, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return "", nil
	}
	after, found := strings.CutPrefix(s, ",")
	after = strings.TrimSpace(after)
	if !found || after == "" {
		return "", fmt.Errorf("selector: found %q, allowed: a comma and another requirement", s)
	}
	return after, nil
}

func parseRequirement(s string) (Requirement, string, error) {
	if after, negated := strings.CutPrefix(s, "!"); negated {
		key, rest := cutWord(strings.TrimSpace(after))
		r, err := newRequirement(key, OpDoesNotExist, nil)
		return r, rest, err
	}
	key, rest := cutWord(s)
	operator, rest := cutOperator(rest)
	switch operator {
	case "=", "==", "!=":
		value, rest := cutWord(strings.TrimSpace(rest))
		r, err := newRequirement(key, operatorOf(operator), []string{value})
		return r, rest, err
	case "in", "notin":
		values, rest, err := cutSet(rest)
		if err != nil {
			return Requirement{}, "", fmt.Errorf("selector: %s %s: %w", key, operator, err)
		}
		r, err := newRequirement(key, operatorOf(operator), values)
		return r, rest, err
	}
	r, err := newRequirement(key, OpExists, nil)
	return r, rest, err
}

func operatorOf(symbol string) string {
	if symbol == "!=" || symbol == "notin" {
		return OpNotIn
	}
	return OpIn
}

// cutWord takes a key or a value off the front.
func cutWord(s string) (word, rest string) {
	i := strings.IndexAny(s, " \t\r\n,=!()")
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i:]
}

// cutOperator takes an operator off the front; "" when there is none.
func cutOperator(s string) (operator, rest string) {
	t := strings.TrimSpace(s)
	for _, op := range []string{"==", "=", "!="} {
		if after, ok := strings.CutPrefix(t, op); ok {
			return op, after
		}
	}
	for _, op := range []string{"in", "notin"} {
		after, ok := strings.CutPrefix(t, op)
		if ok && strings.HasPrefix(strings.TrimSpace(after), "(") {
			return op, after
		}
	}
	return "", s
}

// cutSet takes "(a, b)" off the front.
func cutSet(s string) (values []string, rest string, err error) {
	inside, found := strings.CutPrefix(strings.TrimSpace(s), "(")
	if !found {
		return nil, "", fmt.Errorf("found %q, allowed: values in parentheses, for example (a,b)", s)
	}
	inside, rest, found = strings.Cut(inside, ")")
	if !found {
		return nil, "", fmt.Errorf("found %q, allowed: a closing parenthesis after the values", s)
	}
	for v := range strings.SplitSeq(inside, ",") {
		values = append(values, strings.TrimSpace(v))
	}
	return values, rest, nil
}
