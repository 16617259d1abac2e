package storetest

import (
	"strings"

	"pgregory.net/rapid"

	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

// Generator draws commands that are likely to meet each other: few keys, few
// leases, revisions near those that exist.
type Generator struct {
	Spaces []string
	// Revision is the newest revision of a space.
	Revision func(space string) int64
}

// Some of them are no text.
var keys = []string{"a", "a/1", "a/2", "b", "b\x00", "c", "c/\xff", "c/\xff\x00\xfe", "\xff\xff", "\x00", "\xc3\x28"}

func drawKey(t *rapid.T) string { return rapid.SampledFrom(keys).Draw(t, "key") }

func drawEnd(t *rapid.T) string {
	return rapid.SampledFrom([]string{"", "", "", "\x00", "a/2", "b", "c", "d", "c/\xff\x00", "\xff\xff\xff"}).Draw(t, "end")
}

// DrawRange draws start <= k < end as views and watches have it.
func DrawRange(t *rapid.T) (start, end string) {
	r := rapid.SampledFrom([][2]string{{"", ""}, {"a", "a\x00"}, {"a/", "a0"}, {"b", ""}, {"a", "c"}, {"zz", "zzz"}}).Draw(t, "span")
	return r[0], r[1]
}

// Command draws any command.
func (g Generator) Command(t *rapid.T) *internalv1.Command {
	space := rapid.SampledFrom(g.Spaces).Draw(t, "space")
	cmd := g.operation(t, space)
	cmd.TimeNs = rapid.Int64Range(0, 1000).Draw(t, "time")
	if rapid.IntRange(0, 30).Draw(t, "epoch?") == 20 {
		cmd.Epoch = rapid.Uint64Range(1, 3).Draw(t, "epoch")
	}
	return cmd
}

// operation draws by weight. Small numbers are drawn far more often than large
// ones, so what is to happen often comes first.
func (g Generator) operation(t *rapid.T, space string) *internalv1.Command {
	switch k := rapid.IntRange(0, 40).Draw(t, "operation"); {
	case k <= 1:
		return Do(space, drawPut(t))
	case k <= 8:
		return Txn(space, g.drawTxn(t, space, 2))
	case k <= 12:
		return Do(space, Delete(drawKey(t), drawEnd(t)))
	case k <= 17:
		return Grant(space, drawLease(t), rapid.SampledFrom([]int64{60, 5, store.MaxLeaseTTLSeconds + 1, -1, 0}).Draw(t, "ttl"))
	case k <= 22:
		return Revoke(space, drawLease(t))
	case k <= 30:
		return Compact(space, g.Revision(space)-rapid.SampledFrom([]int64{2, 1, 0, -1, 4, 3}).Draw(t, "behind"))
	case k == 31:
		return Compact("nowhere", 1)
	}
	return Do(space, drawPut(t), drawPut(t))
}

func drawLease(t *rapid.T) int64 {
	return rapid.SampledFrom([]int64{1, 2, 3, -4}).Draw(t, "lease")
}

func drawPut(t *rapid.T) *internalv1.Op {
	p := &internalv1.Put{Key: []byte(drawKey(t)), PrevKv: rapid.Bool().Draw(t, "prev")}
	switch rapid.IntRange(0, 9).Draw(t, "put") {
	case 5, 6:
		p.Lease = drawLease(t)
	case 7:
		p.IgnoreValue = true
	case 8:
		p.IgnoreLease = true
	}
	if !p.IgnoreValue {
		n := rapid.SampledFrom([]int{1, 30, 2, 300, 100}).Draw(t, "size")
		p.Value = []byte(strings.Repeat(rapid.SampledFrom([]string{"x", "y"}).Draw(t, "value"), n))
	}
	return PutOp(p)
}

func (g Generator) drawTxn(t *rapid.T, space string, depth int) *internalv1.Txn {
	txn := &internalv1.Txn{}
	for range rapid.IntRange(0, 2).Draw(t, "compares") {
		txn.Compares = append(txn.Compares, drawCompare(t))
	}
	for range rapid.IntRange(0, 4).Draw(t, "success") {
		txn.Success = append(txn.Success, g.drawOp(t, space, depth))
	}
	for range rapid.IntRange(0, 2).Draw(t, "failure") {
		txn.Failure = append(txn.Failure, g.drawOp(t, space, depth))
	}
	return txn
}

func drawCompare(t *rapid.T) *internalv1.Compare {
	return &internalv1.Compare{
		Key:      []byte(drawKey(t)),
		RangeEnd: []byte(drawEnd(t)),
		Target:   internalv1.Compare_Target(rapid.IntRange(1, 5).Draw(t, "target")),
		Result:   internalv1.Compare_Result(rapid.IntRange(1, 4).Draw(t, "result")),
		Number:   rapid.Int64Range(0, 4).Draw(t, "number"),
		Value:    []byte(rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "value")),
	}
}

func (g Generator) drawOp(t *rapid.T, space string, depth int) *internalv1.Op {
	switch k := rapid.IntRange(0, 9).Draw(t, "op"); {
	case k <= 1:
		return drawPut(t)
	case k <= 4:
		return Delete(drawKey(t), drawEnd(t))
	case k == 5 || depth == 0:
		return Get(g.drawRange(t, space))
	}
	return Nested(g.drawTxn(t, space, depth-1))
}

func (g Generator) drawRange(t *rapid.T, space string) *internalv1.Range {
	r := &internalv1.Range{
		Key: []byte(drawKey(t)), RangeEnd: []byte(drawEnd(t)),
		Limit:     rapid.Int64Range(0, 3).Draw(t, "limit"),
		KeysOnly:  rapid.Bool().Draw(t, "keys only"),
		CountOnly: rapid.IntRange(0, 3).Draw(t, "count only") == 3,
	}
	if rapid.Bool().Draw(t, "past") {
		r.Revision = max(-2, g.Revision(space)-rapid.SampledFrom([]int64{0, 1, 2, -1, 3, 5}).Draw(t, "behind"))
	}
	r.SortOrder = internalv1.Range_SortOrder(rapid.IntRange(0, 2).Draw(t, "order"))
	r.SortTarget = internalv1.Range_SortTarget(rapid.IntRange(0, 4).Draw(t, "sort by"))
	for _, bound := range []*int64{&r.MinModRevision, &r.MaxModRevision, &r.MinCreateRevision, &r.MaxCreateRevision} {
		if rapid.IntRange(0, 4).Draw(t, "bounded") == 4 {
			*bound = g.Revision(space) - rapid.Int64Range(0, 4).Draw(t, "bound")
		}
	}
	return r
}
