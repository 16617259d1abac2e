package main

// The wire: lines of words. DESIGN.md beside this file is the contract.
//
//	line  = word *( " " word ) LF
//	word  = verb | key "=" value
//	value = bytes; those up to 0x20, 0x7f, "%" and "=" are written %XX

const (
	// protoVersion is what this shim speaks best, protoMin the oldest it still
	// speaks.
	protoVersion = 1
	protoMin     = 1
	// maxLineBytes bounds one request; a longer one ends the connection.
	maxLineBytes = 16 << 10
	// maxWords bounds the keys of one request.
	maxWords = 32
)

// request is one parsed line: an id that the answer repeats, a verb, its keys.
type request struct {
	id   string
	verb string
	keys []keyValue
}

type keyValue struct{ key, value string }

// get returns a key's value, or "".
func (r *request) get(key string) string {
	for _, kv := range r.keys {
		if kv.key == key {
			return kv.value
		}
	}
	return ""
}

// number returns a key's number; absent is zero.
func (r *request) number(key string) (int64, bool) {
	s := r.get(key)
	if s == "" {
		return 0, true
	}
	return parseInt(s)
}

// parseRequest reads a line without its line feed: "<id> <verb> key=value ...".
// Keys that nobody knows are kept and ignored, so that a newer agent may send
// them.
func parseRequest(line string) (request, bool) {
	words, ok := splitWords(line)
	if !ok || len(words) < 2 || !isToken(words[0]) || !isToken(words[1]) {
		return request{}, false
	}
	r := request{id: words[0], verb: words[1]}
	for _, word := range words[2:] {
		kv, ok := parseKeyValue(word)
		if !ok {
			return request{}, false
		}
		r.keys = append(r.keys, kv)
	}
	return r, true
}

func splitWords(line string) ([]string, bool) {
	var words []string
	start := -1
	for i := 0; i <= len(line); i++ {
		if i == len(line) || line[i] == ' ' {
			if start >= 0 {
				words = append(words, line[start:i])
			}
			start = -1
			continue
		}
		if line[i] < ' ' || line[i] == 0x7f {
			return nil, false
		}
		if start < 0 {
			start = i
		}
	}
	return words, len(words) <= maxWords
}

func parseKeyValue(word string) (keyValue, bool) {
	for i := range len(word) {
		if word[i] == '=' {
			value, ok := unescape(word[i+1:])
			return keyValue{word[:i], value}, ok && isToken(word[:i])
		}
	}
	return keyValue{}, false
}

// isToken: ids, verbs and keys are lower-case letters, digits and hyphens.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

const hexDigits = "0123456789ABCDEF"

// appendEscaped appends a value so that it holds no blank, "=" or control.
func appendEscaped(b []byte, s string) []byte {
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c == '%' || c == '=' || c == 0x7f {
			b = append(b, '%', hexDigits[c>>4], hexDigits[c&15])
			continue
		}
		b = append(b, c)
	}
	return b
}

func unescape(s string) (string, bool) {
	var out []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '=' {
			return "", false
		}
		if s[i] != '%' {
			out = append(out, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", false
		}
		high, ok1 := hexValue(s[i+1])
		low, ok2 := hexValue(s[i+2])
		if !ok1 || !ok2 {
			return "", false
		}
		out = append(out, high<<4|low)
		i += 2
	}
	return string(out), true
}

func hexValue(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// line builds one answer.
type line struct{ b []byte }

func newLine(first string) *line { return &line{append(make([]byte, 0, 128), first...)} }

func (l *line) word(s string) *line {
	l.b = append(append(l.b, ' '), s...)
	return l
}

func (l *line) str(key, value string) *line {
	l.b = append(append(append(l.b, ' '), key...), '=')
	l.b = appendEscaped(l.b, value)
	return l
}

func (l *line) num(key string, n int64) *line {
	l.b = append(append(append(l.b, ' '), key...), '=')
	l.b = appendInt(l.b, n)
	return l
}

func (l *line) end() []byte { return append(l.b, '\n') }
