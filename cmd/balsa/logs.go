package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/object"
)

const (
	// selectorTail is how many lines of each container are shown of pods that were
	// chosen by labels, as kubectl does.
	selectorTail = 10
	// maxHeldLine bounds the parts of a line that wait for its end where several
	// containers print at once.
	maxHeldLine = 1 << 20
)

// logQuery is what the flags say.
type logQuery struct {
	request       *balsav1.LogsRequest
	tail          int64
	since         time.Duration
	sinceTime     string
	timestamps    bool
	allContainers bool
	prefix        bool
	selector      string
	maxRequests   int
}

func (a *app) logsCommand() *cobra.Command {
	q := &logQuery{request: &balsav1.LogsRequest{}}
	command := &cobra.Command{
		Use: "logs POD", Short: "Show what a pod's containers printed", Args: cobra.MaximumNArgs(1),
		Example: "  balsa logs hello-7d9f-x2k4j\n  balsa logs -f --tail 20 hello-7d9f-x2k4j\n  balsa logs -p hello-7d9f-x2k4j -c echo\n  balsa logs -l app=hello --all-containers --prefix --since 10m",
		RunE: func(command *cobra.Command, args []string) error {
			if err := q.complete(command, args); err != nil {
				return err
			}
			if len(args) == 1 {
				q.request.Name = args[0]
				if found, err := targets(args); err == nil && len(found) == 1 && len(found[0].names) == 1 {
					if found[0].kind.Name != "Pod" {
						return &usageError{fmt.Errorf("logs are those of a pod; %s is not one", args[0])}
					}
					q.request.Name = found[0].names[0]
				}
			}
			q.request.Namespace = a.namespace
			c, err := a.connect()
			if err != nil {
				return err
			}
			if q.selector == "" && !q.allContainers && !q.prefix {
				return a.logs(command.Context(), c, q.request, q.timestamps)
			}
			return a.manyLogs(command.Context(), c, q)
		},
	}
	q.flags(command)
	return command
}

func (q *logQuery) flags(command *cobra.Command) {
	flags := command.Flags()
	flags.StringVarP(&q.request.Container, "container", "c", "", "container; may be left out when there is one")
	flags.BoolVarP(&q.request.Follow, "follow", "f", false, "go on with what is printed, until the container ends")
	flags.BoolVarP(&q.request.Previous, "previous", "p", false, "of the container's run before this one")
	flags.Int64Var(&q.tail, "tail", -1, "only the last lines; -1: all (10 with --selector)")
	flags.DurationVar(&q.since, "since", 0, "only what is younger, for example 10m")
	flags.StringVar(&q.sinceTime, "since-time", "", "only what was printed at or after this time, for example 2026-01-02T03:04:05Z")
	flags.BoolVar(&q.timestamps, "timestamps", false, "put the time before each line")
	flags.BoolVar(&q.allContainers, "all-containers", false, "of every container of the pod")
	flags.BoolVar(&q.prefix, "prefix", false, "put pod and container before each line")
	flags.StringVarP(&q.selector, "selector", "l", "", "of all pods with these labels")
	flags.IntVar(&q.maxRequests, "max-log-requests", 5, "how many containers may be followed at once")
}

func (q *logQuery) complete(command *cobra.Command, args []string) error {
	switch {
	case len(args) == 0 && q.selector == "":
		return &usageError{errors.New("name a pod, or choose pods with --selector")}
	case len(args) == 1 && q.selector != "":
		return &usageError{errors.New("name a pod or choose pods with --selector, not both")}
	case q.allContainers && q.request.GetContainer() != "":
		return &usageError{errors.New("--all-containers and --container do not go together")}
	case q.since > 0 && q.sinceTime != "":
		return &usageError{errors.New("--since and --since-time do not go together")}
	case q.maxRequests < 1:
		return &usageError{fmt.Errorf("--max-log-requests %d: want at least 1", q.maxRequests)}
	case q.tail < -1:
		return &usageError{fmt.Errorf("--tail %d: want -1 for all lines, or how many", q.tail)}
	}
	if command.Flags().Changed("tail") && q.tail >= 0 {
		q.request.TailLines = &q.tail
	} else if q.selector != "" && !command.Flags().Changed("tail") {
		q.request.TailLines = new(int64(selectorTail))
	}
	if q.since > 0 {
		q.request.SinceTime = timestamppb.New(time.Now().Add(-q.since))
	}
	if q.sinceTime != "" {
		at, err := time.Parse(time.RFC3339Nano, q.sinceTime)
		if err != nil {
			return &usageError{fmt.Errorf("--since-time %q: want a time such as 2026-01-02T03:04:05Z", q.sinceTime)}
		}
		q.request.SinceTime = timestamppb.New(at)
	}
	return nil
}

// source is one container whose log is shown.
type source struct{ pod, container string }

// sources are the containers of the pods that are meant.
func (a *app) sources(ctx context.Context, c *client.Client, q *logQuery) ([]source, error) {
	var pods []*balsav1.Pod
	if q.selector != "" {
		found, err := client.List[*balsav1.Pod](ctx, c, a.namespace, client.ListOptions{LabelSelector: q.selector})
		if err != nil {
			return nil, err
		}
		pods = found.Items
	} else {
		pod, err := client.Get[*balsav1.Pod](ctx, c, a.namespace, q.request.GetName(), client.GetOptions{})
		if err != nil {
			return nil, err
		}
		pods = []*balsav1.Pod{pod}
	}
	var found []source
	for _, pod := range pods {
		name := pod.GetMetadata().GetName()
		if !q.allContainers {
			container := q.request.GetContainer()
			if own := pod.GetSpec().GetContainers(); container == "" && len(own) == 1 {
				container = own[0].GetName()
			}
			found = append(found, source{name, container})
			continue
		}
		for _, container := range object.AllContainers(pod.GetSpec()) {
			found = append(found, source{name, container.GetName()})
		}
	}
	return found, nil
}

// manyLogs shows one container after the other, or follows them all at once.
func (a *app) manyLogs(ctx context.Context, c *client.Client, q *logQuery) error {
	found, err := a.sources(ctx, c, q)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		fmt.Fprintf(a.errOut, "no pods in namespace %s have the labels %s\n", a.namespace, q.selector)
		return nil
	}
	if q.request.GetFollow() && len(found) > q.maxRequests {
		return fmt.Errorf("there are %d logs to follow, and --max-log-requests allows %d: raise it, or choose fewer", len(found), q.maxRequests)
	}
	var mu sync.Mutex // held while a line is printed
	show := func(ctx context.Context, s source) error {
		w := &lineWriter{mu: &mu, w: a.out}
		if q.prefix {
			w.prefix = fmt.Sprintf("[pod/%s/%s] ", s.pod, s.container)
		}
		request := &balsav1.LogsRequest{
			Namespace: a.namespace, Name: s.pod, Container: s.container, Follow: q.request.GetFollow(), Previous: q.request.GetPrevious(),
			TailLines: q.request.TailLines, SinceTime: q.request.GetSinceTime(),
		}
		err := a.logsTo(ctx, c, request, q.timestamps, w)
		if err = errors.Join(err, w.flush()); err != nil {
			return fmt.Errorf("pod/%s container %s: %w", s.pod, s.container, err)
		}
		return nil
	}
	if !q.request.GetFollow() {
		for _, s := range found {
			if err := show(ctx, s); err != nil {
				return err
			}
		}
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, len(found))
	for _, s := range found {
		go func() { ended <- show(ctx, s) }()
	}
	var errs []error
	for range found {
		errs = append(errs, <-ended)
	}
	return errors.Join(errs...)
}

// lineWriter prints whole lines, so that those of several containers do not mix.
type lineWriter struct {
	mu     *sync.Mutex
	w      io.Writer
	prefix string
	held   []byte
}

func (l *lineWriter) Write(p []byte) (int, error) {
	l.held = append(l.held, p...)
	for {
		end := bytes.IndexByte(l.held, '\n') + 1
		if end == 0 && len(l.held) < maxHeldLine {
			return len(p), nil
		}
		if end == 0 {
			end = len(l.held)
		}
		if err := l.print(l.held[:end]); err != nil {
			return 0, err
		}
		l.held = append(l.held[:0], l.held[end:]...)
	}
}

func (l *lineWriter) print(line []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := fmt.Fprintf(l.w, "%s%s", l.prefix, line)
	return err
}

func (l *lineWriter) flush() error {
	if len(l.held) == 0 {
		return nil
	}
	return l.print(append(l.held, '\n'))
}

func (a *app) logs(ctx context.Context, c *client.Client, request *balsav1.LogsRequest, timestamps bool) error {
	return a.logsTo(ctx, c, request, timestamps, a.out)
}

func (a *app) logsTo(ctx context.Context, c *client.Client, request *balsav1.LogsRequest, timestamps bool, w io.Writer) error {
	begun := false // a line whose end has not come yet
	for line, err := range client.Logs(ctx, c, request, a.outage()) {
		if err != nil {
			return err
		}
		if timestamps && !begun {
			fmt.Fprintf(w, "%s ", line.GetTime().AsTime().Format(time.RFC3339Nano))
		}
		fmt.Fprintf(w, "%s", line.GetLine())
		if begun = line.GetPartial(); !begun {
			fmt.Fprintln(w)
		}
	}
	return nil
}
