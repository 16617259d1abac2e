package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/internal/revisions"
	"github.com/balsa-run/balsa/object"
)

const (
	// statusSettle gathers changes that come together.
	statusSettle = 100 * time.Millisecond
	// statusTick redraws what only time changes.
	statusTick = time.Second
)

// watching is one run of balsa rollout status.
type watching struct {
	watch    bool
	within   time.Duration
	revision int64
}

func (a *app) rolloutStatus() *cobra.Command {
	w := &watching{}
	command := a.onDeployment(&cobra.Command{
		Use: "status deployment/NAME", Short: "Follow a rollout until it is complete or has failed",
		Long: `Status tells how a rollout goes on, with what pods that are not ready say of
themselves, until it is complete. On a terminal it draws a view that changes in
place, otherwise it prints a line for each change.

Exit codes: 0 complete; 1 failed, taken back, or not complete within --timeout.`,
		Example: "  balsa rollout status deployment/hello\n  balsa rollout status deployment/hello --timeout 5m\n  balsa rollout status deployment/hello --watch=false",
	}, func(ctx context.Context, c *client.Client, name string) error {
		if w.within < 0 {
			return &usageError{fmt.Errorf("--timeout %v is negative; 0 waits for ever", w.within)}
		}
		return a.status(ctx, c, name, w)
	})
	flags := command.Flags()
	flags.BoolVarP(&w.watch, "watch", "w", true, "wait until it is complete")
	flags.DurationVar(&w.within, "timeout", 0, "how long to wait; 0: for ever")
	flags.Int64Var(&w.revision, "revision", 0, "fail when another revision is rolled out; 0: any")
	return command
}

func (a *app) status(ctx context.Context, c *client.Client, name string, w *watching) error {
	if !w.watch {
		r, err := a.readRollout(ctx, c, name)
		if err != nil {
			return err
		}
		if err := w.check(r.deployment); err != nil {
			return err
		}
		p := progressOf(r.deployment)
		if p.failed {
			return errors.New(p.text)
		}
		fmt.Fprintln(a.out, p.text)
		return nil
	}
	if w.within > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, w.within, fmt.Errorf("not complete within %v", w.within))
		defer cancel()
	}
	screen := newScreen(a.out)
	f := &follower{app: a, watching: w, name: name, screen: screen}
	return f.run(ctx, c)
}

// check refuses another revision than was asked for.
func (w *watching) check(d *balsav1.Deployment) error {
	if now := revisions.Of(d); w.revision > 0 && now != w.revision {
		return fmt.Errorf("desired revision (%d) is different from the running revision (%d)", w.revision, now)
	}
	return nil
}

// follower watches a Deployment, its ReplicaSets and pods.
type follower struct {
	app *app
	*watching
	name   string
	screen *screen

	mu   sync.Mutex
	seen bool                           // guarded by mu; the Deployment was told
	d    *balsav1.Deployment            // guarded by mu
	sets map[string]*balsav1.ReplicaSet // guarded by mu; by uid
	pods map[string]*balsav1.Pod        // guarded by mu; by uid

	said map[string]bool // lines that were printed since the state changed last
	last string
}

func (f *follower) run(ctx context.Context, c *client.Client) error {
	first, err := client.Get[*balsav1.Deployment](ctx, c, f.app.namespace, f.name, client.GetOptions{})
	if err != nil {
		return err
	}
	f.sets, f.pods, f.said = map[string]*balsav1.ReplicaSet{}, map[string]*balsav1.Pod{}, map[string]bool{}
	selector, err := object.SelectorFrom(first.GetSpec().GetSelector())
	if err != nil {
		return err
	}
	watched, cancel := context.WithCancel(ctx)
	changed, failed := make(chan struct{}, 1), make(chan error, 3)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	start := func(follow func() error) {
		running.Go(func() {
			if err := follow(); err != nil && watched.Err() == nil {
				failed <- err
			}
		})
	}
	namespace, labels := f.app.namespace, client.WatchOptions{LabelSelector: selector.String(), Outage: f.app.outage()}
	start(func() error {
		return each(client.Watch[*balsav1.Deployment](watched, c, namespace, client.WatchOptions{FieldSelector: "metadata.name=" + f.name, Outage: f.app.outage()}), changed, f.takeDeployment)
	})
	start(func() error {
		return each(client.Watch[*balsav1.ReplicaSet](watched, c, namespace, labels), changed, func(e client.Event[*balsav1.ReplicaSet]) { take(&f.mu, f.sets, e) })
	})
	start(func() error {
		return each(client.Watch[*balsav1.Pod](watched, c, namespace, labels), changed, func(e client.Event[*balsav1.Pod]) { take(&f.mu, f.pods, e) })
	})
	return f.loop(ctx, changed, failed)
}

// each hands events on, and wakes who draws them.
func each[T object.Message](events func(func(client.Event[T], error) bool), changed chan<- struct{}, do func(client.Event[T])) error {
	for e, err := range events {
		if err != nil {
			return err
		}
		do(e)
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	return nil
}

func (f *follower) takeDeployment(e client.Event[*balsav1.Deployment]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch e.Type {
	case client.Added, client.Modified:
		f.d, f.seen = e.Object, true
	case client.Deleted:
		f.d, f.seen = nil, true
	case client.Synced:
		f.seen = true
	}
}

func take[T object.Message](mu *sync.Mutex, into map[string]T, e client.Event[T]) {
	mu.Lock()
	defer mu.Unlock()
	switch e.Type {
	case client.Added, client.Modified:
		into[e.Object.GetMetadata().GetUid()] = e.Object
	case client.Deleted:
		delete(into, e.Object.GetMetadata().GetUid())
	case client.Synced:
	}
}

// loop draws until the rollout has ended. Changes that come together are drawn
// once.
func (f *follower) loop(ctx context.Context, changed <-chan struct{}, failed <-chan error) error {
	ticker := time.NewTicker(statusTick)
	defer ticker.Stop()
	defer f.screen.end()
	for {
		ended, err := f.draw()
		if ended || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return f.interrupted(ctx)
		case err := <-failed:
			return err
		case <-changed:
			select {
			case <-time.After(statusSettle):
			case <-ctx.Done():
			}
		case <-ticker.C:
			if !f.screen.terminal {
				continue
			}
		}
	}
}

// snapshot is what is known now; nil: not enough.
func (f *follower) snapshot() (*following, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case !f.seen:
		return nil, nil
	case f.d == nil:
		return nil, fmt.Errorf("deployment/%s was deleted", f.name)
	}
	s := &following{rollout: rollout{deployment: f.d}}
	var sets []*balsav1.ReplicaSet
	for _, rs := range f.sets {
		sets = append(sets, rs)
	}
	s.sets = setsOf(f.d, sets)
	for _, uid := range sortedPods(f.pods) {
		s.pods = append(s.pods, f.pods[uid])
	}
	return s, nil
}

func (f *follower) draw() (ended bool, err error) {
	s, err := f.snapshot()
	if s == nil || err != nil {
		return false, err
	}
	if err := f.check(s.deployment); err != nil {
		return true, err
	}
	p := progressOf(s.deployment)
	if f.screen.terminal {
		f.screen.draw(s.view(f.screen.width(), time.Now()))
	} else {
		f.lines(s, p)
	}
	if p.failed {
		return true, errors.New(p.text)
	}
	return p.done, nil
}

// lines prints what is new: how the rollout stands, and complaints of pods that
// were not told yet.
func (f *follower) lines(s *following, p progress) {
	if p.text != f.last && !p.failed {
		fmt.Fprintln(f.app.out, p.text)
		f.last = p.text
	}
	for _, line := range s.complaints(time.Now()) {
		if !f.said[line] && !p.done {
			fmt.Fprintln(f.app.out, line)
			f.said[line] = true
		}
	}
}

// interrupted: the time is over, or a person has ended the program.
func (f *follower) interrupted(ctx context.Context) error {
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return &exitError{exitInterrupted}
	}
	text := fmt.Sprintf("deployment/%s: %v", f.name, context.Cause(ctx))
	if s, err := f.snapshot(); s != nil && err == nil {
		text += ": " + progressOf(s.deployment).text
		for _, line := range s.complaints(time.Now()) {
			text += "\n" + line
		}
	}
	return errors.New(text)
}

// screen draws lines in the place of those that it drew before.
type screen struct {
	out      io.Writer
	terminal bool
	fd       int
	drawn    int
}

func newScreen(out io.Writer) *screen {
	s := &screen{out: out}
	if file, ok := out.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
		s.fd, s.terminal = int(file.Fd()), err == nil
	}
	return s
}

const defaultWidth = 80

func (s *screen) width() int {
	size, err := unix.IoctlGetWinsize(s.fd, unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return defaultWidth
	}
	return int(size.Col)
}

// draw goes up over the lines of before, and clears what is left of each.
func (s *screen) draw(lines []string) {
	var text strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&text, "\x1b[%dA", s.drawn)
	}
	for _, line := range lines {
		fmt.Fprintf(&text, "\r%s\x1b[K\n", line)
	}
	text.WriteString("\x1b[J")
	s.drawn = len(lines)
	_, _ = io.WriteString(s.out, text.String()) // a terminal that is gone is nobody's loss
}

// end leaves what was drawn where it is.
func (s *screen) end() { s.drawn = 0 }
