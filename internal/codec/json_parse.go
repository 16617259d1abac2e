package codec

import (
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// smallObject is up to how many keys duplicates are looked for one by one.
const smallObject = 16

// ParseJSON reads one JSON text (RFC 8259) of at most limit bytes. Duplicate
// keys, invalid UTF-8 and anything after the value are refused.
func ParseJSON(data []byte, limit int) (*Tree, error) {
	if len(data) > limit {
		return nil, &Error{Issues: []Issue{{Message: "the text is too long", Found: bytesText(len(data)), Allowed: "at most " + bytesText(limit)}}}
	}
	p := jsonParser{src: string(data)}
	if i := invalidUTF8(p.src); i >= 0 {
		return nil, failAt(p.src, i, "the text is not UTF-8")
	}
	tree := &Tree{source: p.src, lines: lineStarts(p.src)}
	if err := p.document(&tree.Root); err != nil {
		return nil, err
	}
	return tree, nil
}

func bytesText(n int) string { return strconv.Itoa(n) + " bytes" }

func invalidUTF8(s string) int {
	if utf8.ValidString(s) {
		return -1
	}
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}

type jsonParser struct {
	src string
	at  int
}

// fail returns an untyped nil-safe error: callers compare it with nil.
func (p *jsonParser) fail(format string, args ...any) error {
	return failAt(p.src, p.at, format, args...)
}

func (p *jsonParser) document(n *Node) error {
	if err := p.value(n, 1); err != nil {
		return err
	}
	if p.space(); p.at < len(p.src) {
		return p.fail("found %s after the end of the value", p.peekText())
	}
	return nil
}

func (p *jsonParser) space() {
	for p.at < len(p.src) {
		switch p.src[p.at] {
		case ' ', '\t', '\n', '\r':
			p.at++
		default:
			return
		}
	}
}

// peekText names the next character.
func (p *jsonParser) peekText() string {
	if p.at >= len(p.src) {
		return "the end of the text"
	}
	r, _ := utf8.DecodeRuneInString(p.src[p.at:])
	return strconv.QuoteRune(r)
}

func (p *jsonParser) peek() byte {
	if p.at >= len(p.src) {
		return 0
	}
	return p.src[p.at]
}

func (p *jsonParser) value(n *Node, depth int) error {
	p.space()
	n.column = int32(p.at)
	if depth > MaxDepth {
		return p.fail("nested deeper than %d", MaxDepth)
	}
	switch c := p.peek(); {
	case c == '{':
		return p.object(n, depth)
	case c == '[':
		return p.list(n, depth)
	case c == '"':
		n.Kind = String
		return p.string(&n.Text)
	case c == '-' || isDigit(c):
		return p.number(n)
	}
	return p.word(n)
}

func (p *jsonParser) word(n *Node) error {
	for _, w := range []struct {
		text string
		kind NodeKind
	}{{"true", Bool}, {"false", Bool}, {"null", Null}} {
		if strings.HasPrefix(p.src[p.at:], w.text) {
			n.Kind, n.Text = w.kind, w.text
			p.at += len(w.text)
			return nil
		}
	}
	return p.fail("found %s, allowed: a JSON value", p.peekText())
}

func (p *jsonParser) object(n *Node, depth int) error {
	n.Kind = Map
	p.at++
	p.space()
	if p.peek() == '}' {
		p.at++
		return nil
	}
	seen := duplicates{}
	for {
		if err := p.field(n, depth, &seen); err != nil {
			return err
		}
		p.space()
		switch p.peek() {
		case ',':
			p.at++
		case '}':
			p.at++
			return nil
		default:
			return p.fail("found %s, allowed: ',' or '}'", p.peekText())
		}
	}
}

func (p *jsonParser) field(n *Node, depth int, seen *duplicates) error {
	p.space()
	if p.peek() != '"' {
		return p.fail("found %s, allowed: a key in double quotes", p.peekText())
	}
	n.Fields = append(n.Fields, Field{})
	f := &n.Fields[len(n.Fields)-1]
	f.Key.column = int32(p.at)
	start := p.at
	if err := p.string(&f.Name); err != nil {
		return err
	}
	if seen.add(n.Fields) {
		p.at = start
		return p.fail("the key %q is there twice", f.Name)
	}
	if p.space(); p.peek() != ':' {
		return p.fail("found %s, allowed: ':' after a key", p.peekText())
	}
	p.at++
	return p.value(&f.Value, depth+1)
}

func (p *jsonParser) list(n *Node, depth int) error {
	n.Kind = List
	p.at++
	p.space()
	if p.peek() == ']' {
		p.at++
		return nil
	}
	for {
		n.Items = append(n.Items, Node{})
		if err := p.value(&n.Items[len(n.Items)-1], depth+1); err != nil {
			return err
		}
		p.space()
		switch p.peek() {
		case ',':
			p.at++
		case ']':
			p.at++
			return nil
		default:
			return p.fail("found %s, allowed: ',' or ']'", p.peekText())
		}
	}
}

func (p *jsonParser) number(n *Node) error {
	n.Kind = Number
	end := p.at
	for end < len(p.src) && strings.IndexByte("+-.eE0123456789", p.src[end]) >= 0 {
		end++
	}
	n.Text = p.src[p.at:end]
	if !isJSONNumber(n.Text) {
		return p.fail("not a JSON number")
	}
	p.at = end
	return nil
}

// isJSONNumber follows RFC 8259, section 6.
func isJSONNumber(s string) bool {
	s = strings.TrimPrefix(s, "-")
	whole := leadingDigits(s)
	if whole == 0 || whole > 1 && s[0] == '0' {
		return false
	}
	s = s[whole:]
	if after, ok := strings.CutPrefix(s, "."); ok {
		n := leadingDigits(after)
		if n == 0 {
			return false
		}
		s = after[n:]
	}
	if s != "" && (s[0] == 'e' || s[0] == 'E') {
		s = s[1:]
		if s != "" && (s[0] == '+' || s[0] == '-') {
			s = s[1:]
		}
		n := leadingDigits(s)
		return n > 0 && n == len(s)
	}
	return s == ""
}

func leadingDigits(s string) int {
	n := 0
	for n < len(s) && isDigit(s[n]) {
		n++
	}
	return n
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// string reads a string; without escapes it is a part of the source.
func (p *jsonParser) string(out *string) error {
	p.at++
	start := p.at
	for p.at < len(p.src) {
		switch c := p.src[p.at]; {
		case c == '"':
			*out = p.src[start:p.at]
			p.at++
			return nil
		case c == '\\':
			return p.escaped(p.src[start:p.at], out)
		case c < ' ':
			return p.fail("a control character inside a string must be written as an escape")
		}
		p.at++
	}
	return p.fail("the string has no end")
}

// escaped reads the rest of a string from its first escape on.
func (p *jsonParser) escaped(before string, out *string) error {
	b := append(make([]byte, 0, len(before)+32), before...)
	for p.at < len(p.src) {
		c := p.src[p.at]
		switch {
		case c == '"':
			*out = string(b)
			p.at++
			return nil
		case c < ' ':
			return p.fail("a control character inside a string must be written as an escape")
		case c != '\\':
			b = append(b, c)
			p.at++
			continue
		}
		r, err := p.escape()
		if err != nil {
			return err
		}
		b = utf8.AppendRune(b, r)
	}
	return p.fail("the string has no end")
}

func (p *jsonParser) escape() (rune, error) {
	if p.at+1 >= len(p.src) {
		return 0, p.fail("the string has no end")
	}
	c := p.src[p.at+1]
	if c == 'u' {
		return p.unicodeEscape()
	}
	const letters, values = `"\/bfnrt`, "\"\\/\b\f\n\r\t"
	i := strings.IndexByte(letters, c)
	if i < 0 {
		return 0, p.fail("not an escape of JSON")
	}
	p.at += 2
	return rune(values[i]), nil
}

func (p *jsonParser) unicodeEscape() (rune, error) {
	r, ok := p.hex4(p.at)
	if !ok {
		return 0, p.fail(`\u must be followed by four hexadecimal digits`)
	}
	if !utf16.IsSurrogate(r) {
		p.at += 6
		return r, nil
	}
	low, ok := p.hex4(p.at + 6)
	r = utf16.DecodeRune(r, low)
	if !ok || r == utf8.RuneError {
		return 0, p.fail("half of a surrogate pair")
	}
	p.at += 12
	return r, nil
}

// hex4 reads the escape \uXXXX at an offset.
func (p *jsonParser) hex4(at int) (rune, bool) {
	if at+6 > len(p.src) || p.src[at:at+2] != `\u` {
		return 0, false
	}
	n, err := strconv.ParseUint(p.src[at+2:at+6], 16, 16)
	return rune(n), err == nil
}

// duplicates finds a key that is there twice: in small objects by looking, in
// large ones with a set.
type duplicates struct{ set map[string]struct{} }

// add tells whether the last field's name was there before.
func (d *duplicates) add(fields []Field) bool {
	last := len(fields) - 1
	name := fields[last].Name
	if last < smallObject {
		for i := range last {
			if fields[i].Name == name {
				return true
			}
		}
		return false
	}
	if d.set == nil {
		d.set = make(map[string]struct{}, 2*smallObject)
		for i := range last {
			d.set[fields[i].Name] = struct{}{}
		}
	}
	if _, found := d.set[name]; found {
		return true
	}
	d.set[name] = struct{}{}
	return false
}
