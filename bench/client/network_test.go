package main

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/balsa-run/balsa/netproxy"
)

func TestObjectsArePlannedWithoutProblems(t *testing.T) {
	const services = 50
	all, err := objects(services, 3)
	if err != nil {
		t.Fatal(err)
	}
	node, err := nodeParams(options{address: "192.0.2.1"})
	if err != nil {
		t.Fatal(err)
	}
	tracker := netproxy.NewTracker(node)
	tracker.Set(all)
	full := tracker.Ruleset(1)
	if len(full.Problems) > 0 {
		t.Fatalf("problems: %v", full.Problems)
	}
	for i := range services {
		tracker.SetSlice(moved(i, 3, i))
		next := tracker.Ruleset(int64(i) + 2)
		change := netproxy.Diff(full, next)
		if change.Empty() || change.Replace || len(next.Problems) > 0 {
			t.Fatalf("change %d: %+v, problems %v", i, change, next.Problems)
		}
		full = next
	}
	if _, err := objects(maxServices+1, 3); err == nil {
		t.Error("more endpoints than there are addresses were made")
	}
	if _, err := nodeParams(options{address: "nowhere"}); err == nil {
		t.Error("a node without an address was taken")
	}
}

func at(ms int) time.Time { return time.Unix(0, 0).Add(time.Duration(ms) * time.Millisecond) }

func TestOutageIsTheLongestTimeBetweenAnswers(t *testing.T) {
	probes := []probe{{sent: at(0), by: "a"}, {sent: at(2), by: "a"}, {sent: at(4)}, {sent: at(6)}, {sent: at(9), by: "b"}, {sent: at(11)}, {sent: at(13), by: "a"}}
	if got := outage(probes); got != 7*time.Millisecond {
		t.Errorf("outage %v, want 7ms", got)
	}
	if got := outage(nil); got != 0 {
		t.Errorf("outage of nothing: %v", got)
	}
	if got := answeredAfter(probes, at(2)); got != 2 {
		t.Errorf("%d answers after 2 ms, want 2", got)
	}
}

// echoing answers datagrams as the pods of the measures do.
func echoing(t *testing.T, name string) string {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 512)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if _, err := conn.WriteTo(append(buffer[:n:n], " "+name...), from); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { _ = conn.Close(); <-done })
	return conn.LocalAddr().String()
}

func TestProbesTellWhoAnswered(t *testing.T) {
	p := startProber(t.Context(), echoing(t, "far"))
	err := p.until(t.Context(), "answers", func(probes []probe) bool { return answeredAfter(probes, time.Time{}) >= 3 })
	probes := p.stop()
	if err != nil {
		t.Fatal(err)
	}
	for i, one := range probes {
		if i < 3 && (one.by != "far" || one.answered.Before(one.sent)) || i > 0 && one.sent.Before(probes[i-1].sent) {
			t.Errorf("probe %d: %+v", i, one)
		}
	}
}

func TestProbesOfNobodyEndWithTheirContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	p := startProber(ctx, "127.0.0.1:1")
	cause := errors.New("told to stop")
	err := p.until(ctx, "answers", func(probes []probe) bool {
		if len(probes) >= 2 {
			cancel(cause)
		}
		return answeredAfter(probes, time.Time{}) > 0
	})
	if probes := p.stop(); !errors.Is(err, cause) || answeredAfter(probes, time.Time{}) != 0 {
		t.Errorf("probes of nobody: %v, %+v", err, probes)
	}
}

// server listens as Balsa's resolver and is asked by the load.
func TestQueriesOfOurResolver(t *testing.T) {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := conn.LocalAddr().String()
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- resolve(ctx, options{address: address, services: 20, endpoints: 3}) }()
	o := options{address: address, services: 20, count: 100, size: 4}
	var report answers
	for deadline := time.Now().Add(20 * time.Second); ; {
		if report, err = queries(t.Context(), o); err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil || len(report.TookMS) != o.count || report.Seconds <= 0 {
		t.Errorf("%d of %d answers in %v s: %v", len(report.TookMS), o.count, report.Seconds, err)
	}
	o.services = 40 // of which it knows half
	if _, err := queries(t.Context(), o); err == nil {
		t.Error("names that are not there were answered")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the resolver ended: %v", err)
	}
}

func TestCheckRefusesOtherAnswers(t *testing.T) {
	query := new(mdns.Msg).SetQuestion(question(7), mdns.TypeA)
	query.Id = 77
	right := new(mdns.Msg).SetReply(query)
	right.Answer = []mdns.RR{&mdns.A{Hdr: mdns.RR_Header{Name: question(7), Rrtype: mdns.TypeA, Class: mdns.ClassINET}, A: serviceIP(7).AsSlice()}}
	asked, answer := pack(t, query), pack(t, right)
	ip := serviceIP(7).AsSlice()
	if err := check(asked, answer, ip); err != nil {
		t.Errorf("the right answer: %v", err)
	}
	other := append([]byte{}, answer...)
	binary.BigEndian.PutUint16(other, 78)
	nothing := pack(t, new(mdns.Msg).SetReply(query))
	for name, wrong := range map[string][]byte{"nothing": nil, "another id": other, "no records": nothing, "cut off": answer[:14]} {
		if check(asked, wrong, ip) == nil {
			t.Errorf("%s was taken for the answer", name)
		}
	}
	if check(asked, answer, serviceIP(8).AsSlice()) == nil {
		t.Error("another address was taken for the answer")
	}
}

func pack(t *testing.T, m *mdns.Msg) []byte {
	t.Helper()
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return wire
}

func TestZoneFilesHaveEveryName(t *testing.T) {
	out := filepath.Join(t.TempDir(), "names")
	if err := zoneFiles(options{out: out, services: 3}); err != nil {
		t.Fatal(err)
	}
	zone, err := os.ReadFile(out + ".zone")
	if err != nil {
		t.Fatal(err)
	}
	parser, found := mdns.NewZoneParser(strings.NewReader(string(zone)), "", ""), map[string]string{}
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		if a, is := rr.(*mdns.A); is {
			found[a.Hdr.Name] = a.A.String()
		}
	}
	hosts, err := os.ReadFile(out + ".hosts")
	if err != nil || parser.Err() != nil {
		t.Fatal(err, parser.Err())
	}
	for i := range 3 {
		if found[question(i)] != serviceIP(i).String() || !strings.Contains(string(hosts), serviceIP(i).String()+" "+strings.TrimSuffix(question(i), ".")) {
			t.Errorf("service %d: %v and\n%s", i, found, hosts)
		}
	}
}

func TestTogetherEndsWithTheFirstError(t *testing.T) {
	broken := errors.New("broken")
	_, err := together(t.Context(), options{count: 1 << 30, size: 4}, func(_ context.Context, number int) (func(int) error, func(), error) {
		return func(i int) error {
			if number == 2 && i == 5 {
				return broken
			}
			return nil
		}, func() {}, nil
	})
	if !errors.Is(err, broken) {
		t.Errorf("error %v, want that of one client", err)
	}
	if _, err := together(t.Context(), options{}, nil); err == nil {
		t.Error("a load of nothing was played")
	}
}

func TestRequestWantsSuccess(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for _, text := range []string{"HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 503 Service Unavailable\r\n\r\n"} {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, failed := conn.Read(make([]byte, 512))
			_, err = conn.Write([]byte(text))
			if errors.Join(failed, err, conn.Close()) != nil {
				return
			}
		}
	}()
	if err := request(t.Context(), listener.Addr().String()); err != nil {
		t.Errorf("a request that succeeds: %v", err)
	}
	if err := request(t.Context(), listener.Addr().String()); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("a request that is refused: %v", err)
	}
}
