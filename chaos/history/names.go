package history

import (
	"strconv"
	"strings"
	"time"
)

// The bounds of a printed record: a proof is read by people, whole values are in
// the exports.
const (
	maxShownString = 64
	maxShownItems  = 8
)

// String is the type in one word.
func (t Type) String() string {
	switch t {
	case Invoke:
		return "invoke"
	case OK:
		return "ok"
	case Refused:
		return "refused"
	case Unknown:
		return "unknown"
	}
	return "type(" + strconv.Itoa(int(t)) + ")"
}

// fNames are the words for the operations, in exports too. Never written.
var fNames = [...]string{
	Read: "read", StaleRead: "stale-read", Put: "put", CAS: "cas", Delete: "delete", List: "list",
	StaleList: "stale-list", Txn: "txn", Watch: "watch", Deliver: "deliver", Compact: "compact",
	Grant: "grant", KeepAlive: "keep-alive", Revoke: "revoke", Lock: "lock", Unlock: "unlock",
	Fenced: "fenced", Hash: "hash", Fault: "fault",
}

// String is the operation in one word.
func (f F) String() string {
	if f > 0 && int(f) < len(fNames) {
		return fNames[f]
	}
	return "f(" + strconv.Itoa(int(f)) + ")"
}

// String is the step as Elle calls it.
func (m MopF) String() string {
	switch m {
	case MopRead:
		return "r"
	case MopAppend:
		return "append"
	case MopWrite:
		return "w"
	}
	return "mop(" + strconv.Itoa(int(m)) + ")"
}

// String is the record on one line: position, time, process, what became of it,
// the operation, and then the fields that are set, each by its name. Long values
// and long lists are cut, and say so.
func (r Record) String() string {
	l := line{}
	l.word("#" + strconv.FormatInt(r.Index, 10))
	l.word(shownTime(r.Time))
	l.word("p" + strconv.Itoa(int(r.Process)))
	l.word(r.Type.String())
	l.word(r.F.String())
	if r.Key != "" || r.End != "" {
		l.word(shownKeys(r))
	}
	l.text("value", r.Value)
	l.number("base", r.Base)
	l.number("revision", r.Revision)
	l.number("at", r.At)
	l.number("limit", r.Limit)
	l.number("count", r.Count)
	if r.More {
		l.word("more")
	}
	l.number("lease", r.Lease)
	if r.TTL != 0 {
		l.word("ttl=" + r.TTL.String())
	}
	l.kvs(r.KVs)
	l.mops(r.Mops)
	l.text("error", r.Error)
	if r.Server != "" {
		l.word("server=" + r.Server)
	}
	return l.String()
}

// shownTime has a fixed number of digits, so that lines of a proof stand below
// each other.
func shownTime(t time.Duration) string {
	if t == MaxTime {
		return "never"
	}
	return strconv.FormatFloat(t.Seconds(), 'f', 6, 64) + "s"
}

func shownKeys(r Record) string {
	if r.End == "" {
		return shown(r.Key)
	}
	return "[" + shown(r.Key) + ", " + shown(r.End) + ")"
}

// shown is s quoted, cut when it is long.
func shown(s string) string {
	if len(s) <= maxShownString {
		return strconv.Quote(s)
	}
	return strconv.Quote(s[:maxShownString]) + "…(" + strconv.Itoa(len(s)) + " bytes)"
}

// line is a record being printed.
type line struct{ strings.Builder }

func (l *line) word(s string) {
	if l.Len() > 0 {
		l.WriteByte(' ')
	}
	l.WriteString(s)
}

func (l *line) text(name, s string) {
	if s != "" {
		l.word(name + "=" + shown(s))
	}
}

func (l *line) number(name string, n int64) {
	if n != 0 {
		l.word(name + "=" + strconv.FormatInt(n, 10))
	}
}

func (l *line) kvs(kvs []KV) {
	if len(kvs) == 0 {
		return
	}
	words := make([]string, 0, maxShownItems+1)
	for i, kv := range kvs {
		if i == maxShownItems {
			words = append(words, "… "+strconv.Itoa(len(kvs)-i)+" more")
			break
		}
		words = append(words, kv.String())
	}
	l.word("kvs=[" + strings.Join(words, ", ") + "]")
}

// String is the key as key=value@revision, or key-@revision when it was deleted.
func (kv KV) String() string {
	at := "@" + strconv.FormatInt(kv.ModRevision, 10)
	text := shown(kv.Key) + "=" + shown(kv.Value) + at
	if kv.Deleted {
		text = shown(kv.Key) + "-" + at
	}
	if kv.Prev != nil {
		text += " was " + shown(kv.Prev.Value) + "@" + strconv.FormatInt(kv.Prev.ModRevision, 10)
	}
	return text
}

func (l *line) mops(mops []Mop) {
	if len(mops) == 0 {
		return
	}
	words := make([]string, 0, maxShownItems+1)
	for i, m := range mops {
		if i == maxShownItems {
			words = append(words, "… "+strconv.Itoa(len(mops)-i)+" more")
			break
		}
		words = append(words, m.String())
	}
	l.word("mops=[" + strings.Join(words, ", ") + "]")
}

// String is the step as "append k v", or "r k [a b]"; "r k ?" before the answer.
func (m Mop) String() string {
	head := m.F.String() + " " + shown(m.Key) + " "
	switch {
	case m.F != MopRead:
		return head + shown(m.Value)
	case m.Values == nil:
		return head + "?"
	}
	// The end of a list is what differs between two reads of it.
	cut := max(0, len(m.Values)-maxShownItems)
	words := make([]string, 0, maxShownItems+1)
	if cut > 0 {
		words = append(words, "… "+strconv.Itoa(cut)+" before")
	}
	for _, v := range m.Values[cut:] {
		words = append(words, shown(v))
	}
	return head + "[" + strings.Join(words, " ") + "]"
}
