package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
	"github.com/balsa-run/balsa/chaos/world/sim/guest/verdict"
	"github.com/balsa-run/balsa/chaos/world/sim/inside"
)

// What a client is told decides what the checks hold against the cluster.
func TestOutcome(t *testing.T) {
	for _, test := range []struct {
		err  error
		want history.Type
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

func good() options { return options{length: time.Minute, servers: 3, clients: 3, pace: 1} }

func TestArgumentsThatMakeNoSense(t *testing.T) {
	for want, change := range map[string]func(o *options){
		"-servers 2":               func(o *options) { o.servers = 2 },
		"-servers 6":               func(o *options) { o.servers = 6 },
		"-clients 0":               func(o *options) { o.clients = 0 },
		"-clients 65":              func(o *options) { o.clients = 65 },
		"-pace 0":                  func(o *options) { o.pace = 0 },
		"-length -1s":              func(o *options) { o.length = -time.Second },
		"-plant small talk":        func(o *options) { o.plant = "small talk" },
		`there is no "gossip"`:     func(o *options) { o.workloads = "api,gossip" },
		"-schedule":                func(o *options) { o.schedule = `[{"at":` },
		`there is no bug "typo"`:   func(o *options) { o.bugs = "typo" },
		"without the tag mutate":   func(o *options) { o.bugs = "no-fsync" },
		"no such thing as a fault": nil,
	} {
		o := good()
		if change == nil {
			if _, err := o.check(); err != nil {
				t.Errorf("arguments that do make sense: %v", err)
			}
			continue
		}
		change(&o)
		s, err := setUp(t.Context(), inside.NewTrace(io.Discard, slog.LevelError), o)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		if s != nil {
			if err := s.world.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
}

// A run that did too little is not good, and one in which something was wrong is
// bad, however much it did.
func TestVerdict(t *testing.T) {
	busy := func(s *scenario) *atRest {
		for _, w := range s.chosen {
			for range max(w.ops, w.oks) {
				s.count(w.name, history.OK)
			}
		}
		var changes []history.KV
		for i := range int64(5) {
			value := "v" + time.Duration(i).String()
			changes = append(changes, history.KV{ModRevision: i + 2, Key: value, Value: value})
			o := s.etcd.Process("s1").Begin(history.Record{F: history.Put, Key: value, Value: value})
			o.Answer.Revision, o.Answer.At = i+2, i+2
			o.OK()
		}
		members := []check.Member{{Name: "s1", Revision: 6, First: 1, Changes: changes}, {Name: "s2", Revision: 6, First: 1, Changes: changes}}
		return &atRest{etcd: members}
	}
	for name, test := range map[string]struct {
		run  func(s *scenario) *atRest
		calm bool
		want int
	}{
		"nothing done":    {func(*scenario) *atRest { return &atRest{} }, true, verdict.TooLittle},
		"no failover":     {busy, false, verdict.TooLittle},
		"enough":          {busy, true, verdict.Good},
		"a wrong":         {func(s *scenario) *atRest { s.world.Wrongf("something"); return busy(s) }, true, verdict.Broken},
		"a contradiction": {func(s *scenario) *atRest { m := busy(s); m.etcd[0].Changes = m.etcd[0].Changes[1:]; return m }, true, verdict.Broken},
		"never at rest":   {func(s *scenario) *atRest { busy(s); s.world.Wrongf("no rest"); return nil }, true, verdict.Broken},
	} {
		t.Run(name, func(t *testing.T) {
			o := good()
			o.calm = test.calm
			c, err := o.check()
			if err != nil {
				t.Fatal(err)
			}
			s, err := newScenario(inside.NewTrace(io.Discard, slog.LevelError), c)
			if err != nil {
				t.Fatal(err)
			}
			if summary, got := s.judge(test.run(s)); got != test.want {
				t.Errorf("exit code %d, expected %d; %+v", got, test.want, summary)
			}
		})
	}
}

// Each of the world's own words has a rule, by which shrink knows it again.
func TestRuleOf(t *testing.T) {
	for wrong, want := range map[string]string{
		"s1 leads in term 4, and so did s2":            "two-leaders",
		"s1 gave up: disk":                             "gave-up",
		"the cluster does not come to rest: s1 is off": "no-rest",
		"something new":                                "world",
	} {
		if got := ruleOf(wrong); got != want {
			t.Errorf("%q has the rule %q, expected %q", wrong, got, want)
		}
	}
}
