package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/balsa-run/balsa/chaos/stage"
	"github.com/balsa-run/balsa/chaos/world/host"
)

const (
	etcdPort       = "2379"
	etcdPeerPort   = "2380"
	rivalPatience  = 60 * time.Second
	rivalPause     = 100 * time.Millisecond
	etcdQuotaBytes = 8 << 30
)

// StorePeers is what the store is measured against and with.
type StorePeers struct {
	// Dir holds etcd, etcdctl and etcd's own benchmark tool.
	Dir string
}

// Program is the path of one of them.
func (p StorePeers) Program(name string) string { return filepath.Join(p.Dir, name) }

// identity is what a client of a cluster shows and trusts.
type identity struct{ authority, certificate, key string }

// rival is a cluster that speaks etcd's API: three members, each on a host of its
// own, all on one disk.
type rival struct {
	name    string
	members []rivalMember
	identity
}

// rivalMember is one member, which can be killed and comes back on its disk.
type rivalMember struct {
	host    *host.Host
	process func() *host.Process
	restart func() error
}

func (m rivalMember) endpoint() string { return "https://" + m.host.Address + ":" + etcdPort }

func (r *rival) endpoints() string {
	var all []string
	for _, m := range r.members {
		all = append(all, m.endpoint())
	}
	return strings.Join(all, ",")
}

// tls are the flags that etcd's tools share.
func (i identity) tls() []string {
	return []string{"--cacert", i.authority, "--cert", i.certificate, "--key", i.key}
}

// balsaRival is a cluster of ours with its etcd face switched on.
func balsaRival(ctx context.Context, s *stage.Stage) (*rival, error) {
	dir := filepath.Join(s.Lab.Dir, "pem")
	if _, err := s.Balsa(ctx, "user", "create", "bench", "--role", "admin", "--pem", dir); err != nil {
		return nil, err
	}
	r := &rival{name: "balsa", identity: identity{
		authority: filepath.Join(dir, "ca.crt"), certificate: filepath.Join(dir, "client.crt"), key: filepath.Join(dir, "client.key"),
	}}
	for _, server := range s.Servers {
		r.members = append(r.members, rivalMember{host: server.Host, process: func() *host.Process { return server.Process }, restart: server.Restart})
	}
	return r, nil
}

// etcdRival starts etcd on hosts of its own in the same lab, with mutual TLS for
// clients and peers, and etcd's own defaults for everything that costs time.
func etcdRival(lab *host.Lab, peers StorePeers) (*rival, error) {
	r := &rival{name: "etcd"}
	var initial []string
	var hosts []*host.Host
	for i := range clusterServers {
		h, err := lab.AddHost(fmt.Sprintf("e%d", i+1))
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, h)
		initial = append(initial, h.Name+"=https://"+h.Address+":"+etcdPeerPort)
	}
	authority, err := newAuthority(filepath.Join(lab.Dir, "etcd-pki"))
	if err != nil {
		return nil, err
	}
	if r.identity, err = authority.issue("bench", ""); err != nil {
		return nil, err
	}
	for _, h := range hosts {
		own, err := authority.issue(h.Name, h.Address)
		if err != nil {
			return nil, err
		}
		m, err := startEtcd(h, peers, own, strings.Join(initial, ","))
		if err != nil {
			return nil, err
		}
		r.members = append(r.members, m)
	}
	return r, nil
}

func startEtcd(h *host.Host, peers StorePeers, own identity, initial string) (rivalMember, error) {
	client, peer := "https://"+h.Address+":"+etcdPort, "https://"+h.Address+":"+etcdPeerPort
	args := []string{"--name", h.Name, "--data-dir", filepath.Join(h.Dir, "data"), "--log-level", "error",
		"--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
		"--initial-cluster", initial, "--initial-cluster-state", "new", "--quota-backend-bytes", strconv.Itoa(etcdQuotaBytes),
		"--client-cert-auth", "--trusted-ca-file", own.authority, "--cert-file", own.certificate, "--key-file", own.key,
		"--peer-client-cert-auth", "--peer-trusted-ca-file", own.authority, "--peer-cert-file", own.certificate, "--peer-key-file", own.key}
	var process *host.Process
	start := func() (err error) {
		process, err = h.Start("etcd", peers.Program("etcd"), args...)
		return err
	}
	return rivalMember{host: h, process: func() *host.Process { return process }, restart: start}, start()
}

// rivals is the two clusters in one lab, and the host from which they are used.
type rivals struct {
	ours, theirs *rival
	operator     *host.Host
	peers        StorePeers
	dir          string
}

// both lends the two clusters, ready.
func (g *StoreGround) both(ctx context.Context, use func(*rivals) error) error {
	return g.clusterWith(ctx, stage.Options{
		Servers: clusterServers, ServerArgs: func(address string) []string { return []string{"--etcd-listen", address + ":" + etcdPort} },
	}, func(s *stage.Stage) error {
		r := &rivals{operator: s.Operator, peers: g.Peers, dir: s.Lab.Dir}
		var err error
		if r.ours, err = balsaRival(ctx, s); err != nil {
			return err
		}
		if r.theirs, err = etcdRival(s.Lab, g.Peers); err != nil {
			return err
		}
		for _, one := range []*rival{r.ours, r.theirs} {
			if err := r.ready(ctx, one); err != nil {
				return err
			}
		}
		return use(r)
	})
}

// inTurns lets both take their turn; another one begins in each round.
func (r *rivals) inTurns(round int, take func(*rival) error) error {
	return inTurn(round, func() error { return take(r.ours) }, func() error { return take(r.theirs) })
}

// ready waits until every member answers a linearizable read.
func (r *rivals) ready(ctx context.Context, one *rival) error {
	ctx, cancel := context.WithTimeout(ctx, rivalPatience)
	defer cancel()
	for {
		_, err := r.ctl(ctx, one, "endpoint", "health")
		if err == nil {
			return nil
		}
		if pause(ctx, rivalPause) != nil {
			return fmt.Errorf("%s does not become healthy: %w", one.name, err)
		}
	}
}

// ctl runs etcdctl against all members.
func (r *rivals) ctl(ctx context.Context, one *rival, args ...string) (string, error) {
	args = append(append([]string{"--endpoints", one.endpoints()}, one.tls()...), args...)
	return r.operator.Run(ctx, r.peers.Program("etcdctl"), args...)
}

// leader is the member that leads.
func (r *rivals) leader(ctx context.Context, one *rival) (rivalMember, error) {
	text, err := r.ctl(ctx, one, "endpoint", "status", "--write-out", "json")
	if err != nil {
		return rivalMember{}, err
	}
	var all []struct {
		Endpoint string `json:"Endpoint"`
		Status   struct {
			Header struct {
				MemberID uint64 `json:"member_id"`
			} `json:"header"`
			Leader uint64 `json:"leader"`
		} `json:"Status"`
	}
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return rivalMember{}, fmt.Errorf("status of %s: %w", one.name, err)
	}
	for _, status := range all {
		for _, m := range one.members {
			if status.Endpoint == m.endpoint() && status.Status.Leader == status.Status.Header.MemberID {
				return m, nil
			}
		}
	}
	return rivalMember{}, fmt.Errorf("no member of %s leads", one.name)
}

// memories are the resident memories of all members, in megabytes.
func (r *rival) memories() ([]float64, error) {
	var all []float64
	for _, m := range r.members {
		memory, err := memoryOf(m.process().Pid())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.host.Name, err)
		}
		all = append(all, memory.rss)
	}
	return all, nil
}

// tool runs etcd's own benchmark tool with so many clients.
func (r *rivals) tool(ctx context.Context, one *rival, clients int, args ...string) (toolReport, error) {
	// etcd's documents give a hundred connections to a thousand clients.
	all := append([]string{"--endpoints", one.endpoints(), "--clients", strconv.Itoa(clients), "--conns", strconv.Itoa(min(clients, toolConnections))}, one.tls()...)
	text, err := r.operator.Run(ctx, r.peers.Program("etcd-benchmark"), append(all, args...)...)
	if err != nil {
		return toolReport{}, err
	}
	return parseTool(text)
}

const toolConnections = 100

// toolReport is what the tool says at its end.
type toolReport struct {
	perSecond, p50MS, p99MS float64
}

// parseTool reads the last summary of the tool's output; errors in it are one.
func parseTool(text string) (toolReport, error) {
	var report toolReport
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "Error distribution"):
			return report, fmt.Errorf("requests failed: %s", text[strings.Index(text, "Error distribution"):])
		case len(words) == 2 && words[0] == "Requests/sec:":
			if _, err := fmt.Sscan(words[1], &report.perSecond); err != nil {
				return report, fmt.Errorf("requests a second %q: %w", words[1], err)
			}
		case len(words) == 4 && words[1] == "in" && (words[0] == "50%" || words[0] == "99%"):
			var seconds float64
			if _, err := fmt.Sscan(words[2], &seconds); err != nil {
				return report, fmt.Errorf("latency %q: %w", words[2], err)
			}
			if words[0] == "50%" {
				report.p50MS = 1000 * seconds
			} else {
				report.p99MS = 1000 * seconds
			}
		}
	}
	if report.perSecond <= 0 {
		return report, fmt.Errorf("the tool tells no rate:\n%s", text)
	}
	return report, nil
}

// awaitAnswer starts a program on the operator's host that notes when a member
// first answers a linearizable read, and returns that moment.
func (g *StoreGround) awaitAnswer(ctx context.Context, r *rivals, one *rival, m rivalMember) (time.Time, error) {
	out := filepath.Join(r.dir, "answer.json")
	if _, err := r.operator.Run(ctx, g.Client, "-out", out, "-address", m.endpoint(), "-ca", one.authority, "-cert", one.certificate, "-key", one.key, "answer"); err != nil {
		return time.Time{}, err
	}
	text, err := os.ReadFile(out)
	if err != nil {
		return time.Time{}, err
	}
	var us int64
	if err := json.Unmarshal(text, &us); err != nil {
		return time.Time{}, err
	}
	return time.UnixMicro(us), nil
}
