package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/balsa-run/balsa/dns"
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// resolve answers for the services' names, as the agent does, until ctx ends.
func resolve(ctx context.Context, o options) error {
	all, err := objects(o.services, o.endpoints)
	if err != nil {
		return err
	}
	tracker := dns.NewTracker(dns.ZoneParams{Domain: domain, Reverse: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}})
	tracker.Upsert(&balsav1.Namespace{Metadata: &balsav1.ObjectMeta{Name: serviceNamespace}})
	for i := range all.Services {
		tracker.Upsert(all.Services[i])
		tracker.Upsert(all.Slices[i])
	}
	zone, _ := tracker.Zone(1)
	if problems := tracker.Problems(); len(problems) > 0 {
		return fmt.Errorf("the zone leaves something out: %s", problems[0])
	}
	server, err := dns.NewServer(dns.Options{Domain: domain})
	if err != nil {
		return err
	}
	server.SetZone(zone)
	var listen net.ListenConfig
	udp, err := listen.ListenPacket(ctx, "udp4", o.address)
	if err != nil {
		return err
	}
	tcp, err := listen.Listen(ctx, "tcp4", o.address)
	if err != nil {
		return errors.Join(err, udp.Close())
	}
	if err := server.Serve(ctx, udp, tcp); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// zoneFiles writes the same names for CoreDNS: a zone for its plugin "file", and
// lines for its plugin "hosts".
func zoneFiles(o options) error {
	var zone, hosts strings.Builder
	fmt.Fprintf(&zone, "$ORIGIN %s.\n@ 30 IN SOA ns.dns hostmaster 1 7200 1800 86400 30\n@ 30 IN NS ns.dns\n", domain)
	for i := range o.services {
		fmt.Fprintf(&zone, "%s.%s.svc 30 IN A %v\n", serviceName(i), serviceNamespace, serviceIP(i))
		fmt.Fprintf(&hosts, "%v %s\n", serviceIP(i), strings.TrimSuffix(question(i), "."))
	}
	return errors.Join(os.WriteFile(o.out+".zone", []byte(zone.String()), 0o644), os.WriteFile(o.out+".hosts", []byte(hosts.String()), 0o644))
}

func question(service int) string {
	return fmt.Sprintf("%s.%s.svc.%s.", serviceName(service), serviceNamespace, domain)
}

// queries asks a resolver for addresses of services, by size clients at once, each
// of which waits for its answer. The questions are made before the first is sent.
func queries(ctx context.Context, o options) (answers, error) {
	questions := make([]packed, o.services)
	for i := range questions {
		wire, err := new(mdns.Msg).SetQuestion(question(i), mdns.TypeA).Pack()
		if err != nil {
			return answers{}, err
		}
		ip := serviceIP(i).As4()
		questions[i] = packed{wire: wire, ip: ip[:]}
	}
	return together(ctx, o, func(ctx context.Context, number int) (func(int) error, func(), error) {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "udp4", o.address)
		if err != nil {
			return nil, nil, err
		}
		q := &questioner{conn: conn, questions: questions, random: rand.New(rand.NewPCG(1, uint64(number)))} //nolint:gosec // the same names in each run
		return q.once, func() { _ = conn.Close() }, nil
	})
}

// packed is a question as it is sent, but for its id, and the address that is to
// be answered.
type packed struct{ wire, ip []byte }

type questioner struct {
	conn      net.Conn
	questions []packed
	random    *rand.Rand
	query     [mdns.MinMsgSize]byte
	answer    [mdns.MinMsgSize]byte
}

const queryPatience = 5 * time.Second

// once asks for a service by chance.
func (q *questioner) once(number int) error {
	asked := q.questions[q.random.IntN(len(q.questions))]
	query := q.query[:copy(q.query[:], asked.wire)]
	binary.BigEndian.PutUint16(query, uint16(number)) //nolint:gosec // any number will do
	if err := q.conn.SetDeadline(time.Now().Add(queryPatience)); err != nil {
		return err
	}
	if _, err := q.conn.Write(query); err != nil {
		return err
	}
	n, err := q.conn.Read(q.answer[:])
	if err != nil {
		return err
	}
	return check(query, q.answer[:n], asked.ip)
}

// Of a message's header (RFC 1035, section 4.1.1).
const (
	headerBytes   = 12
	headerFlags   = 2
	headerAnswers = 6
	rcodeMask     = 0xf
)

// check wants one answer with the address in it. It looks at the bytes, since what
// the client does takes of the cores that the resolver has.
func check(query, answer, ip []byte) error {
	switch {
	case len(answer) < headerBytes+len(ip):
		return fmt.Errorf("%d bytes are no answer", len(answer))
	case answer[0] != query[0] || answer[1] != query[1]:
		return fmt.Errorf("the answer is to question %x, not %x", answer[:2], query[:2])
	case binary.BigEndian.Uint16(answer[headerFlags:])&rcodeMask != mdns.RcodeSuccess, binary.BigEndian.Uint16(answer[headerAnswers:]) != 1:
		return fmt.Errorf("want one address, got %x", answer)
	case !bytes.Contains(answer[min(len(query), len(answer)):], ip):
		return fmt.Errorf("want address %v, got %x", net.IP(ip), answer)
	}
	return nil
}
