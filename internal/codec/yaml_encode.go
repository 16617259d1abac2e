package codec

import (
	"bytes"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
)

// MarshalYAML is a message as one YAML document in the style of kubectl: fields
// in the order of the .proto file, lists not indented under their key. Text that
// YAML 1.1 or 1.2 could take for something else is in quotes.
func MarshalYAML(m proto.Message) ([]byte, error) {
	text, err := AppendJSON(nil, m)
	if err != nil {
		return nil, err
	}
	t, err := ParseJSON(text, len(text))
	if err != nil {
		return nil, fmt.Errorf("marshal YAML: %w", err)
	}
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	encoder.CompactSeqIndent()
	if err := encoder.Encode(yamlNode(&t.Root)); err != nil {
		return nil, fmt.Errorf("marshal YAML: %w", err)
	}
	if err := encoder.Close(); err != nil {
		return nil, fmt.Errorf("marshal YAML: %w", err)
	}
	return out.Bytes(), nil
}

func yamlNode(n *Node) *yaml.Node {
	switch n.Kind {
	case Map:
		y := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		for i := range n.Fields {
			y.Content = append(y.Content, yamlString(n.Fields[i].Name), yamlNode(&n.Fields[i].Value))
		}
		return y
	case List:
		y := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for i := range n.Items {
			y.Content = append(y.Content, yamlNode(&n.Items[i]))
		}
		return y
	case String:
		return yamlString(n.Text)
	case Bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: n.Text}
	default:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: n.Text}
	}
}

func yamlString(s string) *yaml.Node {
	y := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	switch {
	case looksOtherwise(s):
		y.Style = yaml.DoubleQuotedStyle
	case strings.Contains(s, "\n") && safeLiteral(s):
		y.Style = yaml.LiteralStyle
	case strings.ContainsFunc(s, needsEscape):
		y.Style = yaml.DoubleQuotedStyle
	}
	return y
}

// looksOtherwise tells words that some version of YAML takes for a number, a
// boolean, null, a time or a merge key.
func looksOtherwise(s string) bool {
	if s == "" || s == "~" || s == "<<" || s == "=" {
		return true
	}
	if c := s[0]; isDigit(c) || strings.IndexByte("+-.", c) >= 0 {
		return strings.ContainsFunc(s, func(r rune) bool { return r >= '0' && r <= '9' }) && !strings.Contains(s, " ") ||
			strings.HasPrefix(strings.TrimLeft(strings.ToLower(s), "+-"), ".inf") || strings.EqualFold(s, ".nan")
	}
	switch strings.ToLower(s) {
	case "y", "n", "yes", "no", "on", "off", "true", "false", "null":
		return true
	}
	return false
}

// safeLiteral tells whether a literal block gives back exactly s: its lines hold
// no control characters, it does not begin with space, no line ends in one.
func safeLiteral(s string) bool {
	if strings.HasPrefix(s, " ") || strings.HasPrefix(s, "\n") || strings.HasPrefix(s, "\t") {
		return false
	}
	for line := range strings.SplitSeq(s, "\n") {
		if strings.ContainsFunc(line, needsEscape) || strings.HasSuffix(line, " ") || strings.HasSuffix(line, "\t") {
			return false
		}
	}
	return true
}

// needsEscape tells characters that only double quotes carry through.
func needsEscape(r rune) bool {
	return r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r == 0xfeff || r >= 0xfffe && r <= 0xffff
}
