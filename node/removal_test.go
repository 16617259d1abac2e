package node_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node"
	"github.com/balsa-run/balsa/node/runtime"
)

// oracle is what servers say when the node asks whether it was removed.
type oracle struct {
	mu    sync.Mutex
	gone  bool  // guarded by mu
	err   error // guarded by mu
	asked int   // guarded by mu
}

func (o *oracle) say(gone bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.gone, o.err = gone, err
}

func (o *oracle) ask(context.Context) (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked++
	return o.gone, o.err
}

func onRemovableNode(t *testing.T, test func(l *lab, o *oracle)) {
	synctest.Test(t, func(t *testing.T) {
		l, o := newLab(t), &oracle{}
		l.tweak = func(c *node.Config) { c.AskRemoved = o.ask }
		l.start()
		defer func() {
			l.stop()
			l.machine.Reboot()
		}()
		test(l, o)
	})
}

func (s *server) refuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuses = err
}

var errUnauthenticated = connect.NewError(connect.CodeUnauthenticated, errors.New("a server refused this identity's certificate"))

// TestRemovedNodeEndsItsPods: with their grace periods, and nothing of them comes
// back when the agent is started again.
func TestRemovedNodeEndsItsPods(t *testing.T) {
	onRemovableNode(t, func(l *lab, o *oracle) {
		l.server.put(newPod("polite", "term=0", "forever"))
		stubborn := newPod("stubborn", "term=ignore", "forever")
		grace := int64(20)
		stubborn.Spec.TerminationGracePeriodSeconds = &grace
		l.server.put(stubborn)
		l.within(2*time.Second, "both run", func() bool { return l.ready("polite")() && l.ready("stubborn")() })
		o.say(true, nil)
		l.server.refuse(errUnauthenticated)
		l.always(4*time.Second, "one word of one server is not enough", func() bool { return l.exists("uid-polite") && l.exists("uid-stubborn") })
		l.within(5*time.Second, "the polite one goes", func() bool { return !l.exists("uid-polite") })
		l.always(15*time.Second, "the stubborn one has its grace period", func() bool {
			_, c := l.state("uid-stubborn")
			return c.Status == runtime.ContainerRunning
		})
		l.within(10*time.Second, "then it is killed and Run ends", func() bool { return !l.exists("uid-stubborn") && l.ended() })
		if !errors.Is(l.err, node.ErrNodeRemoved) {
			l.Fatalf("Run ended with %v", l.err)
		}
		l.restart()
		l.always(4*time.Second, "nothing comes back", func() bool { return !l.exists("uid-polite") && !l.exists("uid-stubborn") })
		l.within(5*time.Second, "and it says so again", l.ended)
	})
}

// TestNodeIsNotRemovedForLess: nothing but the word of servers that go on saying
// it ends pods.
func TestNodeIsNotRemovedForLess(t *testing.T) {
	onRemovableNode(t, func(l *lab, o *oracle) {
		l.server.put(newPod("a", "forever"))
		l.within(2*time.Second, "it runs", l.ready("a"))
		_, began := l.state("uid-a")
		same := func() bool { _, c := l.state("uid-a"); return c.PID == began.PID && c.PID != 0 && !l.ended() }
		for what, c := range map[string]struct {
			beat, err error
			gone      bool
		}{
			"no server can be reached":               {beat: unavailable(), gone: true},
			"the certificate has expired":            {beat: errUnauthenticated},
			"refused, and nobody says why":           {beat: errUnauthenticated, err: errors.New("no server answers"), gone: true},
			"refused for something else than an end": {beat: connect.NewError(connect.CodePermissionDenied, errors.New("no")), gone: true},
		} {
			o.say(c.gone, c.err)
			l.server.refuse(c.beat)
			l.always(time.Minute, what, same)
		}
		// A server that is wrong for a moment, with others between.
		l.server.refuse(errUnauthenticated)
		for range 10 {
			o.say(true, nil)
			l.always(3*time.Second, "a server is wrong", same)
			o.say(false, nil)
			l.always(2*time.Second, "another knows better", same)
		}
		o.say(true, nil)
		for range 10 {
			l.always(3*time.Second, "a server is wrong", same)
			l.server.refuse(nil)
			l.always(2*time.Second, "another takes the heartbeat", same)
			l.server.refuse(errUnauthenticated)
		}
	})
}

// TestRemovedNodeBoundsItsWait for a pod that does not end.
func TestRemovedNodeBoundsItsWait(t *testing.T) {
	onRemovableNode(t, func(l *lab, o *oracle) {
		l.server.put(newPod("a", "forever"))
		l.within(2*time.Second, "it runs", l.ready("a"))
		l.mu.Lock()
		l.failOps = map[string]int{"RemovePod": 1 << 20}
		l.mu.Unlock()
		o.say(true, nil)
		l.server.refuse(errUnauthenticated)
		l.within(11*time.Minute, "Run ends", l.ended)
		if !errors.Is(l.err, node.ErrNodeRemoved) || !strings.Contains(l.err.Error(), "uid-a") {
			l.Errorf("Run ended with %v", l.err)
		}
	})
}

// TestHeartbeatsTellRemovedIdentities, each time: what to do with them is the
// owner's.
func TestHeartbeatsTellRemovedIdentities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		var mu sync.Mutex
		var told []string
		l.tweak = func(c *node.Config) {
			c.OnRemoved = func(removed []*balsav1.RemovedIdentity) {
				mu.Lock()
				defer mu.Unlock()
				told = nil
				for _, r := range removed {
					told = append(told, r.GetRole()+"/"+r.GetName())
				}
			}
		}
		l.start()
		defer l.end()
		l.server.mu.Lock()
		l.server.removed = &balsav1.RemovedIdentities{Identities: []*balsav1.RemovedIdentity{{Role: "server", Name: "s1", AtNs: 1}}}
		l.server.mu.Unlock()
		l.within(3*time.Second, "the node hears of it", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(told) == 1 && told[0] == "server/s1"
		})
	})
}
