package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// FlowOptions say who asks a service, and how often.
type FlowOptions struct {
	// URL is asked over new connections by Fresh clients, and over one kept-alive
	// connection each by Kept clients.
	URL         string
	Fresh, Kept int
	// UDP is the host:port that UDP clients send datagrams to, one socket each.
	UDP        string
	UDPClients int
	// Interval is the pause of a client between two requests.
	Interval time.Duration
	// Witness, if not nil, is asked for evidence right after a request failed, the
	// first maxErrorsKept times of each kind.
	Witness func() string
}

// FlowReport is what became of the requests, by the kind of client.
type FlowReport struct {
	Fresh FlowKind `json:"fresh"`
	Kept  FlowKind `json:"kept"`
	UDP   FlowKind `json:"udp"`
}

// FlowKind counts the requests of one kind of client.
type FlowKind struct {
	Requests int `json:"requests"`
	Failed   int `json:"failed"`
	// Resent counts the datagrams that were sent again since no answer came within
	// udpPatience. HTTP requests are repeated by net/http alone, and only where a
	// server had closed an idle connection before (RFC 9112, section 9.3.1).
	Resent int `json:"resent"`
	// Connections counts those that were made.
	Connections int `json:"connections"`
	// Errors holds the first few.
	Errors []string `json:"errors,omitempty"`
	// SlowestMS is the longest that a request took until its answer.
	SlowestMS int64 `json:"slowestMS"`
	// Answered counts the pods that answered.
	Answered map[string]int `json:"answered"`
}

// Of datagrams, which may be lost: a resolver asks again as well.
const (
	udpPatience = 500 * time.Millisecond
	udpTries    = 4
	maxDatagram = 1500
)

// Flows asks a service until ctx ends. A request that fails counts as failed; none
// is repeated but as FlowKind.Resent says.
func Flows(ctx context.Context, o FlowOptions) FlowReport {
	report := FlowReport{}
	var mu sync.Mutex
	var clients sync.WaitGroup
	start := func(kind *FlowKind, count int, newAsker func() asker) {
		kind.Answered = map[string]int{}
		for i := range count {
			clients.Go(func() {
				ask := newAsker()
				defer ask.close()
				// Clients that begin together would go on together.
				pause(ctx, o.Interval*time.Duration(i)/time.Duration(count))
				for pause(ctx, o.Interval) {
					began := time.Now()
					got := ask.once(context.WithoutCancel(ctx))
					took := time.Since(began)
					mu.Lock()
					enough := kind.Failed >= maxErrorsKept
					mu.Unlock()
					seen := ""
					if got.err != nil && o.Witness != nil && !enough {
						seen = "\n" + o.Witness()
					}
					mu.Lock()
					kind.add(got, took, seen)
					mu.Unlock()
				}
			})
		}
	}
	start(&report.Fresh, o.Fresh, func() asker { return newHTTPAsker(o.URL, false) })
	start(&report.Kept, o.Kept, func() asker { return newHTTPAsker(o.URL, true) })
	start(&report.UDP, o.UDPClients, func() asker { return &udpAsker{address: o.UDP} })
	clients.Wait()
	return report
}

// pause is false once ctx has ended.
func pause(ctx context.Context, t time.Duration) bool {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// answer is what came of one request.
type answer struct {
	pod                 string
	resent, connections int
	err                 error
}

func (k *FlowKind) add(a answer, took time.Duration, seen string) {
	k.Requests++
	k.Resent += a.resent
	k.Connections += a.connections
	k.SlowestMS = max(k.SlowestMS, took.Milliseconds())
	if a.err == nil {
		k.Answered[a.pod]++
		return
	}
	k.Failed++
	if len(k.Errors) < maxErrorsKept {
		k.Errors = append(k.Errors, fmt.Sprintf("%s after %v: %v%s", time.Now().Format(time.StampMilli), took.Round(time.Millisecond), a.err, seen))
	}
}

// asker is one client.
type asker interface {
	once(ctx context.Context) answer
	close()
}

type httpAsker struct {
	url       string
	client    *http.Client
	transport *http.Transport
	dials     atomic.Int64 // since the last request; the transport may dial ahead
}

func newHTTPAsker(url string, keep bool) *httpAsker {
	a := &httpAsker{url: url}
	dialer := net.Dialer{Timeout: requestTimeout}
	a.transport = &http.Transport{
		DisableKeepAlives: !keep, MaxConnsPerHost: 1,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			a.dials.Add(1)
			return dialer.DialContext(ctx, network, address)
		},
	}
	a.client = &http.Client{Timeout: requestTimeout, Transport: a.transport}
	return a
}

func (a *httpAsker) close() { a.transport.CloseIdleConnections() }

func (a *httpAsker) once(ctx context.Context) answer {
	pod, err := a.get(ctx)
	return answer{pod: pod, connections: int(a.dials.Swap(0)), err: err}
}

func (a *httpAsker) get(ctx context.Context) (pod string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url, nil)
	if err != nil {
		return "", err
	}
	response, err := a.client.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	if _, err := io.Copy(io.Discard, io.LimitReader(response.Body, maxBody)); err != nil {
		return "", fmt.Errorf("read the answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("answered %s", response.Status)
	}
	return response.Header.Get(PodHeader), nil
}

// PodHeader is the header in which the echo program names its pod.
const PodHeader = "X-Pod"

// udpAsker has one socket, and so one flow, for all that it sends.
type udpAsker struct {
	address  string
	conn     net.Conn
	sequence int
}

func (a *udpAsker) close() {
	if a.conn != nil {
		_ = a.conn.Close() // nothing is lost with it
	}
}

// once sends a number and waits for it to come back, with the pod's name.
func (a *udpAsker) once(ctx context.Context) answer {
	got := answer{}
	if a.conn == nil {
		if a.conn, got.err = (&net.Dialer{}).DialContext(ctx, "udp4", a.address); got.err != nil {
			return got
		}
		got.connections = 1
	}
	a.sequence++
	var errs []error
	for got.resent = range udpTries {
		if got.pod, got.err = a.exchange(strconv.Itoa(a.sequence)); got.err == nil {
			return got
		}
		if !slices.ContainsFunc(errs, func(e error) bool { return e.Error() == got.err.Error() }) {
			errs = append(errs, got.err)
		}
	}
	got.err = errors.Join(errs...)
	return got
}

func (a *udpAsker) exchange(number string) (pod string, err error) {
	deadline := time.Now().Add(udpPatience)
	if err := a.conn.SetDeadline(deadline); err != nil {
		return "", err
	}
	if _, err := a.conn.Write([]byte(number)); err != nil {
		return "", rest(deadline, err)
	}
	answer := make([]byte, maxDatagram)
	for {
		n, err := a.conn.Read(answer)
		if err != nil {
			return "", rest(deadline, err)
		}
		echoed, pod, _ := strings.Cut(string(answer[:n]), " ")
		if echoed == number {
			return pod, nil
		} // else it answers what was asked before
	}
}

// rest waits out a try that was refused at once, as a client with a timer does.
func rest(deadline time.Time, err error) error {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		time.Sleep(time.Until(deadline))
	}
	return err
}
