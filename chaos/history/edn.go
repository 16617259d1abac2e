package history

import (
	"bufio"
	"errors"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// EDNOptions say what WriteEDN writes.
type EDNOptions struct {
	// Only are the operations that are written; none means all. Elle reads histories
	// of transactions only: {Txn}.
	Only []F
	// Registers: what a transaction reads is the one value of a register (Elle's
	// rw-register), not a list (list-append).
	Registers bool
}

// WriteEDN writes each record as Jepsen's programs read it (elle, elle-cli,
// knossos): a map on a line of its own, with :index, :time in nanoseconds,
// :process, :type, :f and :value. Types are :invoke, :ok, :fail and :info; faults
// are the operations of the process :nemesis, and always :info.
//
// Transactions are [[:append k v] [:r k [v …]]], or [[:w k v] [:r k v]] for
// registers; a read is nil until its answer. Other operations have values of their
// own shape, with the revision, since Jepsen's register has none:
//
//	:read    [key [revision value]]          :write  [key [revision value]]
//	:cas     [key [base revision value]]     :delete [key [base revision]]
//	:list    [key end [[key revision value] …]]
//
// Strings that are whole numbers are written as numbers, which Jepsen's workloads
// use for keys and values. What a watch delivered and hashes are no operations of
// Jepsen's: its programs want them left out. EDN has text only: bytes that are not UTF-8 are shown as
// U+FFFD. A history without its end is written as far as it goes, and then
// ErrTruncated is returned.
func WriteEDN(w io.Writer, records iter.Seq2[Record, error], opts EDNOptions) error {
	out := bufio.NewWriter(w)
	var line edn
	for r, err := range records {
		if err != nil {
			return errors.Join(err, flush(out, "EDN"))
		}
		if len(opts.Only) > 0 && !slices.Contains(opts.Only, r.F) {
			continue
		}
		line.Reset()
		line.record(&r, opts.Registers)
		if _, err := out.WriteString(line.String()); err != nil {
			return errors.Join(err, flush(out, "EDN"))
		}
	}
	return flush(out, "EDN")
}

// edn is a line being made.
type edn struct{ strings.Builder }

func (e *edn) record(r *Record, registers bool) {
	e.WriteString("{:index " + strconv.FormatInt(r.Index, 10) + ", :time " + strconv.FormatInt(int64(r.Time), 10))
	e.WriteString(", :process ")
	if r.F == Fault {
		e.WriteString(":nemesis, :type :info")
	} else {
		e.WriteString(strconv.Itoa(int(r.Process)) + ", :type " + ednType(r.Type))
	}
	e.WriteString(", :f " + ednF(r.F) + ", :value ")
	e.value(r, registers)
	if r.At != 0 {
		e.WriteString(", :at " + strconv.FormatInt(r.At, 10))
	}
	e.text(", :server ", r.Server)
	e.text(", :error ", r.Error)
	e.WriteString("}\n")
}

func ednType(t Type) string {
	switch t {
	case Invoke:
		return ":invoke"
	case OK:
		return ":ok"
	case Refused:
		return ":fail"
	default:
		return ":info"
	}
}

// ednF is the operation by Jepsen's name, where it has one.
func ednF(f F) string {
	if f == Put {
		return ":write"
	}
	return ":" + f.String()
}

func (e *edn) value(r *Record, registers bool) {
	switch r.F {
	case Txn:
		e.mops(r, registers)
	case Read, StaleRead, Put, Fenced:
		e.vector(func() {
			e.atoms(ednAtom(r.Key))
			e.vector(func() { e.atoms(ednRevision(r.Revision), e.content(r)) })
		})
	case CAS:
		e.vector(func() {
			e.atoms(ednAtom(r.Key))
			e.vector(func() { e.atoms(strconv.FormatInt(r.Base, 10), ednRevision(r.Revision), e.content(r)) })
		})
	case Delete, Lock, Unlock, Compact, Watch:
		e.vector(func() {
			e.atoms(ednAtom(r.Key))
			e.vector(func() { e.atoms(strconv.FormatInt(r.Base, 10), ednRevision(r.Revision)) })
		})
	case List, StaleList, Deliver:
		e.vector(func() {
			e.atoms(ednAtom(r.Key), ednAtom(r.End))
			e.kvs(r.KVs)
		})
	case Grant, KeepAlive, Revoke:
		e.vector(func() { e.atoms(strconv.FormatInt(r.Lease, 10), strconv.FormatInt(int64(r.TTL), 10)) })
	case Hash, Fault:
		e.atoms(ednString(r.Value))
	}
}

// content is nil for what a read did not find, or does not know yet.
func (e *edn) content(r *Record) string {
	if (r.F == Read || r.F == StaleRead) && r.Revision == 0 {
		return "nil"
	}
	return ednAtom(r.Value)
}

func (e *edn) vector(items func()) {
	e.space()
	e.WriteByte('[')
	items()
	e.WriteByte(']')
}

func (e *edn) atoms(words ...string) {
	for _, word := range words {
		e.space()
		e.WriteString(word)
	}
}

// space separates an item from the one before, when there is one.
func (e *edn) space() {
	if s := e.String(); !strings.HasSuffix(s, "[") && !strings.HasSuffix(s, " ") {
		e.WriteByte(' ')
	}
}

func (e *edn) kvs(kvs []KV) {
	if kvs == nil {
		e.atoms("nil")
		return
	}
	e.vector(func() {
		for i := range kvs {
			e.vector(func() {
				value := ednAtom(kvs[i].Value)
				if kvs[i].Deleted {
					value = "nil"
				}
				e.atoms(ednAtom(kvs[i].Key), strconv.FormatInt(kvs[i].ModRevision, 10), value)
			})
		}
	})
}

func (e *edn) mops(r *Record, registers bool) {
	e.vector(func() {
		for i := range r.Mops {
			m := &r.Mops[i]
			e.vector(func() {
				e.atoms(":"+m.F.String(), ednAtom(m.Key))
				switch {
				case m.F != MopRead:
					e.atoms(ednAtom(m.Value))
				case r.Type != OK || m.Values == nil || registers && len(m.Values) == 0:
					// Only an answer says what was read: nil of any other type is "not known".
					e.atoms("nil")
				case registers:
					e.atoms(ednAtom(m.Values[0]))
				default:
					e.list(m.Values)
				}
			})
		}
	})
}

func (e *edn) list(values []string) {
	e.vector(func() {
		for _, v := range values {
			e.atoms(ednAtom(v))
		}
	})
}

func (e *edn) text(name, s string) {
	if s != "" {
		e.WriteString(name + ednString(s))
	}
}

func ednRevision(n int64) string {
	if n == 0 {
		return "nil"
	}
	return strconv.FormatInt(n, 10)
}

// ednAtom is a number when s is one as it would be printed, so that no two strings
// become the same number.
func ednAtom(s string) string {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && strconv.FormatInt(n, 10) == s {
		return s
	}
	return ednString(s)
}

// ednString quotes as the EDN specification has it: \t \r \n \\ \" and \uNNNN.
func ednString(s string) string {
	var out strings.Builder
	out.WriteByte('"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			out.WriteByte('\\')
			out.WriteRune(c)
		case c == '\n':
			out.WriteString(`\n`)
		case c == '\r':
			out.WriteString(`\r`)
		case c == '\t':
			out.WriteString(`\t`)
		case c < ' ' || c == 0x7f:
			out.WriteString(`\u00` + strconv.FormatInt(int64(c)>>4, 16) + strconv.FormatInt(int64(c)&15, 16))
		case c == utf8.RuneError:
			out.WriteString(`\ufffd`)
		default:
			out.WriteRune(c)
		}
	}
	out.WriteByte('"')
	return out.String()
}
