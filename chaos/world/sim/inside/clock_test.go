package inside

import (
	"testing"
	"testing/synctest"
	"time"
)

// unmoved reaches into time.Time: the wall moves, differences do not.
func TestUnmoved(t *testing.T) {
	for _, by := range []time.Duration{0, time.Hour, -time.Hour, 1} {
		before := time.Now()
		moved := unmoved(before, by)
		if moved.Sub(before) != 0 || !moved.Equal(before) {
			t.Errorf("by %v: the monotonic reading moved by %v", by, moved.Sub(before))
		}
		if wall := moved.Round(0).Sub(before.Round(0)); wall != by {
			t.Errorf("by %v: the wall moved by %v", by, wall)
		}
		if without := unmoved(before.Round(0), by); without.Sub(before.Round(0)) != by {
			t.Errorf("by %v: a time without a monotonic reading moved by %v", by, without.Sub(before.Round(0)))
		}
	}
}

// A clock that was set shows another wall, and no time that has passed. (Outside
// of a bubble: in one there are no monotonic readings.)
func TestClockThatJumps(t *testing.T) {
	c := newMachineClock()
	start := c.Now()
	undo := c.jump(time.Hour)
	if passed := c.Now().Sub(start); passed > time.Minute {
		t.Errorf("after a jump %v have passed", passed)
	}
	if wall := c.Now().Round(0).Sub(start.Round(0)); wall < time.Hour {
		t.Errorf("the wall is %v on, expected an hour", wall)
	}
	undo()
	if wall := c.Now().Round(0).Sub(start.Round(0)); wall > time.Minute {
		t.Errorf("after it was set back the wall is %v on", wall)
	}
}

func TestClockThatDrifts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near := func(what string, got, want time.Duration) {
			t.Helper()
			if (got - want).Abs() > time.Microsecond {
				t.Errorf("%s %v, expected %v", what, got, want)
			}
		}
		c, began := newMachineClock(), time.Now()
		stop := c.drift(100 * time.Millisecond)
		timer := c.NewTimer(1100 * time.Millisecond)
		<-timer.C()
		near("a timer of 1.1 s took", time.Since(began), time.Second)
		near("it shows", c.Now().Sub(began), 1100*time.Millisecond)
		time.Sleep(time.Hour)
		stop()
		near("an hour later it is wrong by", time.Until(c.Now()), driftMax)
		if timer.Reset(time.Second); !timer.Stop() {
			t.Error("a timer that runs was not stopped")
		}
	})
}

// Whoever waits until a moment, and looks again, comes to it: also over the last
// nanosecond. (A lessor on such a clock looked for ever, and time stood still.)
func TestWaitingOnAClockThatDriftsEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, rate := range []time.Duration{-maxDrift, -1, 1, 100 * time.Millisecond, maxDrift} {
			c := newMachineClock()
			stop := c.drift(rate)
			for d := time.Duration(1); d < 2000; d = d*3/2 + 1 {
				looks := 0
				for end := c.Now().Add(d); c.Now().Before(end); looks++ {
					if looks == 100 {
						t.Fatalf("rate %v: %v before the end after %d looks", rate, end.Sub(c.Now()), looks)
					}
					<-c.NewTimer(end.Sub(c.Now())).C()
				}
			}
			stop()
		}
	})
}
