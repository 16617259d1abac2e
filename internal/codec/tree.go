package codec

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits of a text.
const (
	// MaxDepth is how deep lists and objects may be nested.
	MaxDepth = 64
	// MaxRequestBytes bounds what a server or a manifest's reader takes at once.
	MaxRequestBytes = 4 << 20
	// MaxResponseBytes bounds what a client takes at once: a page of 5,000
	// objects fits.
	MaxResponseBytes = 128 << 20
	// MaxAliasNodes bounds what YAML aliases may expand to in one document.
	MaxAliasNodes = 20_000
)

// NodeKind tells what a Node is.
type NodeKind uint8

// Kinds of nodes.
const (
	Null NodeKind = iota
	Bool
	Number
	String
	List
	Map
)

// String is the kind with its article, for messages.
func (k NodeKind) String() string {
	return [...]string{"null", "a boolean", "a number", "a string", "a list", "an object"}[k]
}

// Node is a value of a parsed text.
type Node struct {
	Kind NodeKind
	// Plain strings were written without quotes in YAML.
	Plain bool
	// Text is the literal of a Bool or Number, or the content of a String.
	Text   string
	Items  []Node
	Fields []Field
	Pos
}

// Pos is where something stands in a Tree's text; see Tree.Position.
type Pos struct {
	// In YAML line and column, from 1. In JSON line is 0 and column the offset.
	line, column int32
}

// Field is a key of a Map with its value.
type Field struct {
	Name string
	// Key is where the name stands.
	Key   Pos
	Value Node
}

// Get returns the value of a key of a Map.
func (n *Node) Get(name string) (*Node, bool) {
	for i := range n.Fields {
		if n.Fields[i].Name == name {
			return &n.Fields[i].Value, true
		}
	}
	return nil, false
}

// Tree is a parsed text.
type Tree struct {
	Root Node
	// source and the offsets at which its lines begin resolve offsets of JSON.
	source string
	lines  []int32
}

// Position returns line and column, in characters from 1.
func (t *Tree) Position(p Pos) (line, column int) {
	if p.line > 0 {
		return int(p.line), int(p.column)
	}
	line = t.Line(p)
	return line, 1 + utf8.RuneCountInString(t.source[t.lines[line-1]:p.column])
}

// Line returns only the line.
func (t *Tree) Line(p Pos) int {
	if p.line > 0 {
		return int(p.line)
	}
	line, _ := slices.BinarySearch(t.lines, p.column+1)
	return max(line, 1)
}

func lineStarts(source string) []int32 {
	starts := []int32{0}
	for i := range len(source) {
		if source[i] == '\n' {
			starts = append(starts, int32(i+1))
		}
	}
	return starts
}

func position(source string, offset int) (line, column int) {
	before := source[:min(offset, len(source))]
	start := strings.LastIndexByte(before, '\n') + 1
	return 1 + strings.Count(before, "\n"), 1 + utf8.RuneCountInString(before[start:])
}

// Locate finds a field by its path as violations write it, for example
// "spec.containers[0].image" or "metadata.labels[app]". Where the text does not
// have the field it returns the nearest ancestor.
func (t *Tree) Locate(path string) (line, column int) {
	at, n := t.Root.Pos, &t.Root
	for path != "" {
		var step string
		step, path = cutStep(path)
		key, next := n.child(step)
		if next == nil {
			break
		}
		at, n = key, next
	}
	return t.Position(at)
}

// cutStep takes "name" or the inside of "[…]" off the front of a path.
func cutStep(path string) (step, rest string) {
	if inside, ok := strings.CutPrefix(path, "["); ok {
		step, rest = cutBracket(inside)
		return step, strings.TrimPrefix(rest, ".")
	}
	if i := strings.IndexAny(path, ".["); i >= 0 {
		return path[:i], strings.TrimPrefix(path[i:], ".")
	}
	return path, ""
}

func cutBracket(inside string) (step, rest string) {
	if quoted, err := strconv.QuotedPrefix(inside); err == nil {
		step, _ = strconv.Unquote(quoted)
		return step, strings.TrimPrefix(inside[len(quoted):], "]")
	}
	step, rest, _ = strings.Cut(inside, "]")
	return step, rest
}

// child returns where a step begins and its value.
func (n *Node) child(step string) (at Pos, value *Node) {
	for i := range n.Fields {
		if n.Fields[i].Name == step {
			return n.Fields[i].Key, &n.Fields[i].Value
		}
	}
	if i, err := strconv.Atoi(step); err == nil && n.Kind == List && i >= 0 && i < len(n.Items) {
		return n.Items[i].Pos, &n.Items[i]
	}
	return Pos{}, nil
}

// FieldPath appends a field's JSON name to a path.
func FieldPath(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// IndexPath appends a list's index to a path.
func IndexPath(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// KeyPath appends a map's key to a path; unusual keys are quoted.
func KeyPath(path, key string) string {
	for i := range len(key) {
		if c := key[i]; c <= ' ' || c >= 0x7f || c == '[' || c == ']' || c == '"' || c == '\\' || c == '=' {
			return path + "[" + strconv.Quote(key) + "]"
		}
	}
	if key == "" {
		return path + `[""]`
	}
	return path + "[" + key + "]"
}
