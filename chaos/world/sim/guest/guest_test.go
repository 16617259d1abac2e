package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/balsa-run/balsa/chaos/world/sim/history"
	"github.com/balsa-run/balsa/chaos/world/sim/inside"
)

// What a client is told decides what the checks hold against the cluster.
func TestOutcome(t *testing.T) {
	for _, test := range []struct {
		err  error
		want history.Outcome
	}{
		{nil, history.OK},
		{connect.NewWireError(connect.CodeAlreadyExists, errors.New("said the server")), history.Refused},
		{connect.NewError(connect.CodeAlreadyExists, errors.New("said nobody")), history.Unknown},
		{connect.NewWireError(connect.CodeUnavailable, errors.New("no leader")), history.Unknown},
		{connect.NewError(connect.CodeDeadlineExceeded, context.DeadlineExceeded), history.Unknown},
		{errors.New("something else"), history.Unknown},
	} {
		if got := outcome(test.err); got != test.want {
			t.Errorf("%v is %s, expected %s", test.err, got, test.want)
		}
	}
}

func TestScenarioRefusesAnUnknownLie(t *testing.T) {
	trace := inside.NewTrace(io.Discard, slog.LevelError)
	if _, err := newScenario(trace, options{plant: "small talk"}); err == nil {
		t.Error("a lie that does not exist was taken")
	}
}

// A run that did too little is not good, and one in which something was wrong is
// bad, however much it did.
func TestVerdict(t *testing.T) {
	busy := func(s *scenario) []history.Member {
		var changes []history.Change
		for i := range int64(minCommits) {
			value := "v" + time.Duration(i).String()
			at := time.Duration(i) * time.Second
			changes = append(changes, history.Change{Revision: i + 2, Key: value, Value: value})
			s.history.Add(history.Op{Kind: history.Create, Key: value, Value: value, Revision: i + 2, Outcome: history.OK, Begun: at, Ended: at + 1})
			s.history.Add(history.Op{Kind: history.Get, Key: value, Value: value, Revision: i + 2, Outcome: history.OK, Begun: at + 2, Ended: at + 3})
		}
		return []history.Member{{Name: "s1", Revision: minCommits + 1, Changes: changes}}
	}
	for name, test := range map[string]struct {
		run  func(s *scenario) []history.Member
		calm bool
		want int
	}{
		"nothing done":    {func(*scenario) []history.Member { return []history.Member{{Name: "s1"}} }, true, exitTooLittle},
		"no failover":     {busy, false, exitTooLittle},
		"enough":          {busy, true, 0},
		"a wrong":         {func(s *scenario) []history.Member { s.world.Wrongf("something"); return busy(s) }, true, exitBroken},
		"a contradiction": {func(s *scenario) []history.Member { m := busy(s); m[0].Changes = m[0].Changes[1:]; return m }, true, exitBroken},
		"never at rest":   {func(s *scenario) []history.Member { busy(s); s.world.Wrongf("no rest"); return nil }, true, exitBroken},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := newScenario(inside.NewTrace(io.Discard, slog.LevelError), options{calm: test.calm})
			if err != nil {
				t.Fatal(err)
			}
			if got := s.judge(test.run(s)); got != test.want {
				t.Errorf("exit code %d, expected %d; wrong: %q", got, test.want, s.world.Wrongs())
			}
		})
	}
}
