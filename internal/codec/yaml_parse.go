package codec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// MaxDocuments bounds how many documents one YAML text may have.
const MaxDocuments = 5_000

// ParseYAML reads the documents of a YAML text of at most limit bytes. An empty
// document is a Tree whose root is Null. The meaning of scalars is YAML 1.2's
// core schema; numbers keep their text, and what 1.1 and 1.2 read differently is
// refused where a number or boolean is wanted. Aliases are followed up to
// MaxAliasNodes; merge keys ("<<") and tags of one's own are refused.
func ParseYAML(data []byte, limit int) ([]*Tree, error) {
	if len(data) > limit {
		return nil, &Error{Issues: []Issue{{Message: "the text is too long", Found: bytesText(len(data)), Allowed: "at most " + bytesText(limit)}}}
	}
	if i := invalidUTF8(string(data)); i >= 0 {
		return nil, failAt(string(data), i, "the text is not UTF-8")
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var trees []*Tree
	for {
		var doc yaml.Node
		err := decoder.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return trees, nil
		}
		if err != nil {
			return trees, yamlSyntaxError(err)
		}
		if len(trees) == MaxDocuments {
			return trees, &Error{Issues: []Issue{{Line: doc.Line, Column: 1, Message: fmt.Sprintf("more than %d documents", MaxDocuments)}}}
		}
		tree := &Tree{}
		c := yamlConverter{}
		if err := c.document(&doc, &tree.Root); err != nil {
			return trees, err
		}
		trees = append(trees, tree)
	}
}

// yamlSyntaxError keeps the line that the library found. Its message about an
// unknown anchor would repeat what may be an unquoted password.
func yamlSyntaxError(err error) *Error {
	message := strings.TrimPrefix(err.Error(), "yaml: ")
	// Without a line in the message it is the first one.
	issue := Issue{Message: message, Line: 1, Column: 1}
	if m := yamlLine().FindStringSubmatch(message); m != nil {
		issue.Line, _ = strconv.Atoi(m[1])
		issue.Message = m[2]
		if isGrammar(issue.Message) {
			issue.Line++ // the library counts these from 0
		}
	}
	if strings.Contains(issue.Message, "unknown anchor") {
		issue.Message = "an alias (*name) without an anchor (&name) before it"
		issue.Hint = "write text that begins with * in quotes"
	}
	if strings.Contains(issue.Message, "cannot start any token") {
		issue.Hint = "indent with spaces, and write text that begins with a special character in quotes"
	}
	issue.Message = "not YAML: " + issue.Message
	return &Error{Issues: []Issue{issue}}
}

// isGrammar tells messages of the library's grammar from those of its scanner.
// Their line is where the block begins that could not be read.
func isGrammar(message string) bool {
	for _, what := range []string{"key", "node content", "'-' indicator", "',' or ']'", "',' or '}'", "<document start>"} {
		if message == "did not find expected "+what {
			return true
		}
	}
	return false
}

func yamlLine() *regexp.Regexp { return regexp.MustCompile(`^line (\d+): (?s:(.*))$`) }

type yamlConverter struct {
	// aliased counts the nodes that aliases have expanded to.
	aliased int
	inAlias int
}

func (c *yamlConverter) fail(y *yaml.Node, hint, format string, args ...any) error {
	return &Error{Issues: []Issue{{Line: y.Line, Column: y.Column, Message: fmt.Sprintf(format, args...), Hint: hint}}}
}

func (c *yamlConverter) document(doc *yaml.Node, n *Node) error {
	if doc.Kind != yaml.DocumentNode || len(doc.Content) == 0 {
		n.Kind, n.line, n.column = Null, int32(max(doc.Line, 1)), 1
		return nil
	}
	return c.value(doc.Content[0], n, 1)
}

func (c *yamlConverter) value(y *yaml.Node, n *Node, depth int) error {
	n.line, n.column = int32(max(y.Line, 1)), int32(max(y.Column, 1))
	if depth > MaxDepth {
		return c.fail(y, "", "nested deeper than %d", MaxDepth)
	}
	if c.inAlias > 0 {
		if c.aliased++; c.aliased > MaxAliasNodes {
			return c.fail(y, "write the repeated parts out", "aliases expand to more than %d values", MaxAliasNodes)
		}
	}
	if err := c.checkTag(y); err != nil {
		return err
	}
	switch y.Kind {
	case yaml.AliasNode:
		c.inAlias++
		defer func() { c.inAlias-- }()
		return c.value(y.Alias, n, depth+1)
	case yaml.MappingNode:
		return c.mapping(y, n, depth)
	case yaml.SequenceNode:
		return c.sequence(y, n, depth)
	case yaml.ScalarNode:
		scalar(y, n)
		return nil
	}
	return c.fail(y, "", "a YAML construct that manifests do not have")
}

func (c *yamlConverter) checkTag(y *yaml.Node) error {
	if y.Style&yaml.TaggedStyle == 0 {
		return nil
	}
	switch y.ShortTag() {
	case "!!str", "!!int", "!!bool", "!!float", "!!null", "!!map", "!!seq":
		return nil
	}
	return c.fail(y, "remove the tag", "tags (!name) are not supported")
}

func (c *yamlConverter) mapping(y *yaml.Node, n *Node, depth int) error {
	n.Kind = Map
	n.Fields = make([]Field, 0, len(y.Content)/2)
	seen := duplicates{}
	for i := 0; i+1 < len(y.Content); i += 2 {
		key := y.Content[i]
		if key.Kind != yaml.ScalarNode {
			return c.fail(key, "", "a key must be a plain word or a quoted string")
		}
		if key.ShortTag() == "!!merge" {
			return c.fail(key, "write the merged fields out", "merge keys (<<) are not supported")
		}
		n.Fields = append(n.Fields, Field{Name: key.Value})
		f := &n.Fields[len(n.Fields)-1]
		f.Key.line, f.Key.column = int32(max(key.Line, 1)), int32(max(key.Column, 1))
		if seen.add(n.Fields) {
			return c.fail(key, "", "the key %q is there twice", key.Value)
		}
		if err := c.value(y.Content[i+1], &f.Value, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (c *yamlConverter) sequence(y *yaml.Node, n *Node, depth int) error {
	n.Kind = List
	n.Items = make([]Node, len(y.Content))
	for i, item := range y.Content {
		if err := c.value(item, &n.Items[i], depth+1); err != nil {
			return err
		}
	}
	return nil
}

func scalar(y *yaml.Node, n *Node) {
	n.Kind, n.Text = String, y.Value
	if y.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		return
	}
	n.Plain = true
	switch y.ShortTag() {
	case "!!null":
		n.Kind, n.Text = Null, "null"
	case "!!bool":
		n.Kind, n.Text = Bool, strings.ToLower(y.Value)
	case "!!int", "!!float":
		n.Kind = Number
	}
}
