package store

// span is the keys k with start <= k, and k < end unless end is empty.
type span struct {
	start, end string
}

// spanOf reads the convention of commands: an empty rangeEnd is the one key,
// "\x00" is no upper end.
func spanOf(key, rangeEnd string) span {
	switch rangeEnd {
	case "":
		return oneKey(key)
	case "\x00":
		return span{start: key}
	}
	return span{start: key, end: rangeEnd}
}

func oneKey(key string) span { return span{start: key, end: key + "\x00"} }

func prefixSpan(prefix string) span {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			return span{start: prefix, end: prefix[:i] + string([]byte{prefix[i] + 1})}
		}
	}
	return span{start: prefix}
}

func (s span) empty() bool { return s.end != "" && s.end <= s.start }

func (s span) contains(key string) bool {
	return key >= s.start && (s.end == "" || key < s.end)
}
