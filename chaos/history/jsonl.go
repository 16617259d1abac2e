package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"unicode/utf8"
)

// WriteJSONL writes each record as a JSON object on a line of its own, and leaves
// out what is not set; times are nanoseconds. A string that is not UTF-8 is the
// object {"base64": …}. A history without its end is written as far as it goes, and
// then ErrTruncated is returned.
func WriteJSONL(w io.Writer, records iter.Seq2[Record, error]) error {
	out := bufio.NewWriter(w)
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	for r, err := range records {
		if err != nil {
			return errors.Join(err, flush(out, "JSON lines"))
		}
		if err := encoder.Encode(jsonOf(&r)); err != nil {
			return fmt.Errorf("write record %d as JSON: %w", r.Index, err)
		}
	}
	return flush(out, "JSON lines")
}

func flush(out *bufio.Writer, what string) error {
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write the history as %s: %w", what, err)
	}
	return nil
}

// jsonText is a string of any bytes.
type jsonText string

// MarshalJSON never changes a byte: JSON has text only.
func (t jsonText) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(t)) {
		return json.Marshal(string(t))
	}
	return json.Marshal(map[string][]byte{"base64": []byte(t)})
}

// jsonRecord has the names of the fields as programs see them.
type jsonRecord struct {
	Index    int64     `json:"index"`
	Time     int64     `json:"time_ns"`
	Process  int32     `json:"process"`
	Type     string    `json:"type"`
	F        string    `json:"f"`
	Server   jsonText  `json:"server,omitempty"`
	Key      jsonText  `json:"key,omitempty"`
	End      jsonText  `json:"end,omitempty"`
	Value    jsonText  `json:"value,omitempty"`
	Base     int64     `json:"base,omitempty"`
	Revision int64     `json:"revision,omitempty"`
	At       int64     `json:"at,omitempty"`
	Limit    int64     `json:"limit,omitempty"`
	Count    int64     `json:"count,omitempty"`
	More     bool      `json:"more,omitempty"`
	Lease    int64     `json:"lease,omitempty"`
	TTL      int64     `json:"ttl_ns,omitempty"`
	KVs      []jsonKV  `json:"kvs,omitzero"`
	Mops     []jsonMop `json:"mops,omitzero"`
	Error    jsonText  `json:"error,omitempty"`
}

type jsonKV struct {
	Key            jsonText `json:"key"`
	Value          jsonText `json:"value,omitempty"`
	CreateRevision int64    `json:"create_revision,omitempty"`
	ModRevision    int64    `json:"mod_revision,omitempty"`
	Version        int64    `json:"version,omitempty"`
	Lease          int64    `json:"lease,omitempty"`
	Deleted        bool     `json:"deleted,omitempty"`
	Prev           *jsonKV  `json:"prev,omitempty"`
}

type jsonMop struct {
	F      string     `json:"f"`
	Key    jsonText   `json:"key"`
	Value  jsonText   `json:"value,omitempty"`
	Values []jsonText `json:"values,omitzero"`
}

func jsonOf(r *Record) jsonRecord {
	out := jsonRecord{
		Index: r.Index, Time: int64(r.Time), Process: r.Process, Type: r.Type.String(), F: r.F.String(),
		Server: jsonText(r.Server), Key: jsonText(r.Key), End: jsonText(r.End), Value: jsonText(r.Value),
		Base: r.Base, Revision: r.Revision, At: r.At, Limit: r.Limit, Count: r.Count, More: r.More,
		Lease: r.Lease, TTL: int64(r.TTL), Error: jsonText(r.Error),
	}
	if r.KVs != nil {
		out.KVs = make([]jsonKV, 0, len(r.KVs))
	}
	for i := range r.KVs {
		out.KVs = append(out.KVs, jsonOfKV(&r.KVs[i]))
	}
	if r.Mops != nil {
		out.Mops = make([]jsonMop, 0, len(r.Mops))
	}
	for i := range r.Mops {
		out.Mops = append(out.Mops, jsonOfMop(&r.Mops[i]))
	}
	return out
}

func jsonOfKV(kv *KV) jsonKV {
	out := jsonKV{
		Key: jsonText(kv.Key), Value: jsonText(kv.Value), CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision,
		Version: kv.Version, Lease: kv.Lease, Deleted: kv.Deleted,
	}
	if kv.Prev != nil {
		out.Prev = new(jsonOfKV(kv.Prev))
	}
	return out
}

func jsonOfMop(m *Mop) jsonMop {
	out := jsonMop{F: m.F.String(), Key: jsonText(m.Key), Value: jsonText(m.Value)}
	if m.Values != nil {
		out.Values = make([]jsonText, 0, len(m.Values))
	}
	for _, v := range m.Values {
		out.Values = append(out.Values, jsonText(v))
	}
	return out
}
