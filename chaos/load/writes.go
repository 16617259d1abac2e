package load

import (
	"context"
	"fmt"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
)

// WriteReport is what became of writes to the API.
type WriteReport struct {
	Acknowledged int `json:"acknowledged"`
	// Whether they took place is not known: they count neither as done nor as
	// lost.
	Unknown int `json:"unknown"`
	// Surely not applied, and said so.
	Refused int      `json:"refused"`
	Errors  []string `json:"errors,omitempty"` // the first few
	// Acknowledged and not there afterwards. Must be empty.
	Lost []string `json:"lost,omitempty"`
	// There, and neither acknowledged nor unknown. Must be empty.
	Phantoms []string `json:"phantoms,omitempty"`
	// The longest time between two acknowledgements, in milliseconds: what a
	// user sees of a change of leader.
	LongestGapMS int64 `json:"longestGapMS"`
	// When each acknowledged write began and ended, in order: the first
	// maxSpansKept.
	Spans []Span `json:"spans,omitempty"`
}

// Span is the time that one write took, in microseconds of Unix time.
type Span struct {
	BeganUS int64 `json:"beganUS"`
	EndedUS int64 `json:"endedUS"`
}

// maxSpansKept bounds a report, not the load.
const maxSpansKept = 100_000

// writer makes one ConfigMap after the other and remembers what it was told.
type writer struct {
	client    *client.Client
	namespace string
	prefix    string

	report  WriteReport
	last    time.Time
	acked   map[string]bool
	unknown map[string]bool
}

// Writes makes ConfigMaps named <prefix>-<number> one after the other until ctx
// ends, then lists them and tells what is missing. check bounds that last look.
func Writes(ctx context.Context, c *client.Client, namespace, prefix string, check time.Duration) (WriteReport, error) {
	w := &writer{client: c, namespace: namespace, prefix: prefix, last: time.Now(), acked: map[string]bool{}, unknown: map[string]bool{}}
	for number := 0; ctx.Err() == nil; number++ {
		w.write(context.WithoutCancel(ctx), fmt.Sprintf("%s-%d", prefix, number))
	}
	checking, cancel := context.WithTimeout(context.WithoutCancel(ctx), check)
	defer cancel()
	return w.report, w.check(checking)
}

func (w *writer) write(ctx context.Context, name string) {
	began := time.Now()
	_, err := client.Create(ctx, w.client, &balsav1.ConfigMap{
		ApiVersion: "v1", Kind: "ConfigMap",
		Metadata: &balsav1.ObjectMeta{Namespace: w.namespace, Name: name},
		Data:     map[string]string{"name": name},
	}, client.WriteOptions{})
	now := time.Now()
	switch {
	case err == nil:
		w.acked[name] = true
		w.report.Acknowledged++
		w.report.LongestGapMS = max(w.report.LongestGapMS, now.Sub(w.last).Milliseconds())
		w.last = now
		if len(w.report.Spans) < maxSpansKept {
			w.report.Spans = append(w.report.Spans, Span{BeganUS: began.UnixMicro(), EndedUS: now.UnixMicro()})
		}
		return
	case client.Applied(err) == balsav1.ErrorDetail_APPLIED_UNKNOWN:
		w.unknown[name] = true
		w.report.Unknown++
	default:
		w.report.Refused++
	}
	if len(w.report.Errors) < maxErrorsKept {
		w.report.Errors = append(w.report.Errors, now.Format(time.StampMilli)+" "+err.Error())
	}
}

func (w *writer) check(ctx context.Context) error {
	found := map[string]bool{}
	for page, err := range client.Pages[*balsav1.ConfigMap](ctx, w.client, w.namespace, client.ListOptions{}) {
		if err != nil {
			return fmt.Errorf("look whether the writes are there: %w", err)
		}
		for _, item := range page.Items {
			if name := item.GetMetadata().GetName(); strings.HasPrefix(name, w.prefix+"-") {
				found[name] = true
			}
		}
	}
	for name := range w.acked {
		if !found[name] {
			w.report.Lost = append(w.report.Lost, name)
		}
	}
	for name := range found {
		if !w.acked[name] && !w.unknown[name] {
			w.report.Phantoms = append(w.report.Phantoms, name)
		}
	}
	return nil
}
