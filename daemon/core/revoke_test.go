package core

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/balsa-run/balsa/internal/clock"
)

func TestAbsences(t *testing.T) {
	at := clock.NewFake(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	a := newAbsences(at)
	step := func(after time.Duration, members ...string) []string {
		t.Helper()
		at.Advance(after)
		present := map[string]bool{}
		for _, m := range members {
			present[m] = true
		}
		return a.judge([]string{"s1", "s2", "s3"}, present)
	}
	want := func(what string, got []string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	// s3 was admitted a moment ago and is no member yet.
	want("at first", step(0, "s1", "s2"))
	want("s2 is taken out", step(time.Second, "s1"))
	want("and comes in again", step(revokeAfter-time.Second, "s1", "s2"))
	want("s2 is taken out for good", step(time.Second, "s1"))
	want("not yet", step(revokeAfter-time.Second, "s1"))
	want("long enough", step(time.Second, "s1"), "s2")
	want("tried again", step(time.Second, "s1"), "s2")
	// That s3 never came is another matter than that s2 went.
	want("s3 never came", step(revokeUnseen, "s1", "s2"), "s3")
}
