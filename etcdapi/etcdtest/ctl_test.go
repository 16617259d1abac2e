package etcdtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestEtcdctl runs every subcommand of etcdctl that asks a server something, auth's
// apart, on a fresh etcd and a fresh balsa, and compares what it prints and how it
// ends. completion and options ask nobody.
func TestEtcdctl(t *testing.T) {
	t.Parallel()
	var told [2][]string
	sides := []*side{startEtcd(t), startBalsa(t)}
	for i, s := range sides {
		c := &ctl{teller: &teller{T: t, side: s, ctx: t.Context(), c: s.client, frame: frame{base: 1}}, ids: map[string]string{}}
		for _, part := range []struct {
			name string
			run  func(*ctl)
		}{
			{"keys", ctlKeys}, {"errors", ctlErrors}, {"transactions", ctlTxn}, {"watches", ctlWatch}, {"leases", ctlLeases},
			{"locks and elections", ctlLocks}, {"compaction", ctlCompaction}, {"maintenance", ctlMaintenance},
			{"a mirror", ctlMirror}, {"a snapshot", ctlSnapshot}, {"scale", ctlDatascale}, {"pages", pages}, {"the gateway", gateway},
		} {
			c.notef("== %s", part.name)
			part.run(c)
		}
		told[i] = c.notes
	}
	if diff := cmp.Diff(told[0], told[1]); diff != "" {
		t.Errorf("etcdctl's output differs (-etcd +balsa):\n%s", diff)
	}
}

// ctl runs etcdctl against one side.
type ctl struct {
	*teller
	ids map[string]string // ids of this side, and what the comparison calls them
}

// command is etcdctl with what it needs to reach the side.
func (c *ctl) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, peer("etcdctl"), append(append([]string{}, c.flags...), args...)...)
	if c.pems != "" {
		// It asks for /metrics without the authority that it was given (datascale).
		cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+filepath.Join(c.pems, "ca.crt"))
	}
	// What it starts (lock does) ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// output runs it to its end.
func (c *ctl) output(stdin string, args ...string) (out string, code int) {
	c.Helper()
	stdout, stderr, code := c.outputs(stdin, args...)
	return stdout + stderr, code
}

func (c *ctl) outputs(stdin string, args ...string) (stdout, stderr string, code int) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	cmd := c.command(ctx, args...)
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &said
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		c.Fatalf("etcdctl %q on %s: %v, %v\n%s%s", args, c.name, err, ctx.Err(), out.String(), said.String())
	}
	return out.String(), said.String(), cmd.ProcessState.ExitCode()
}

// run notes what a command prints and how it ends.
func (c *ctl) run(args ...string) string {
	c.Helper()
	return c.feed("", args...)
}

func (c *ctl) feed(stdin string, args ...string) string {
	c.Helper()
	out, code := c.output(stdin, args...)
	c.notef("%s\n%sexit %d", c.normal(strings.Join(args, " ")), c.normal(out), code)
	return out
}

var (
	longID   = regexp.MustCompile(`\b[0-9a-f]{12,16}\b`)
	jsonID   = regexp.MustCompile(`"(cluster_id|member_id|raft_term|ID|id|lease|leader|raftIndex|raftTerm|raftAppliedIndex)":\d+,?`)
	fieldID  = regexp.MustCompile(`("(?:ClusterID|MemberID|RaftTerm|ID|Lease)" : )\d+`)
	duration = regexp.MustCompile(`\b\d+(\.\d+)?(ns|µs|ms|s)\b`)
	logLine  = regexp.MustCompile(`(?m)^\{"level":"(?:warn|info)".*\n`)
	logTime  = regexp.MustCompile(`"ts":"[^"]*"|"caller":"[^"]*"|"target":"[^"]*"`)
)

// normal is output without what must differ: ids, addresses and durations.
func (c *ctl) normal(out string) string {
	out = logLine.ReplaceAllString(out, "") // the client's own, of each attempt
	out = logTime.ReplaceAllString(out, "")
	out = strings.ReplaceAll(out, c.flags[1], "ENDPOINT")
	out = strings.ReplaceAll(out, c.address, "ADDRESS")
	out = longID.ReplaceAllStringFunc(out, func(id string) string {
		if c.ids[id] == "" {
			c.ids[id] = fmt.Sprint("id-", len(c.ids)+1)
		}
		return c.ids[id]
	})
	out = jsonID.ReplaceAllString(out, "")
	out = fieldID.ReplaceAllString(out, "${1}ID")
	return duration.ReplaceAllString(out, "DURATION")
}

func ctlKeys(c *ctl) {
	c.run("put", "a", "1")
	c.feed("from standard input", "put", "b")
	c.run("put", "a", "2", "--prev-kv")
	c.run("put", "--ignore-value", "a")
	c.run("put", "--ignore-lease", "a", "3")
	for _, key := range []string{"dir/1", "dir/2", "dir/3", "x"} {
		c.run("put", key, "value of "+key)
	}
	for _, args := range [][]string{
		{"a"}, {"nothing"}, {"dir/", "--prefix"}, {"dir/1", "dir/3"}, {"b", "--from-key"}, {"dir/", "--prefix", "--keys-only"},
		{"", "--prefix", "--count-only", "-w", "fields"}, {"dir/", "--prefix", "--limit", "2"}, {"a", "--rev", "2"},
		{"", "--from-key", "--order", "DESCEND", "--sort-by", "MODIFY"}, {"a", "--print-value-only"}, {"a", "--hex"},
		{"a", "--consistency", "s"}, {"a", "-w", "json"}, {"a", "-w", "fields"}, {"", "--prefix", "--min-mod-rev", "5", "--max-mod-rev", "7"},
		{"", "--prefix", "--min-create-rev", "3", "--max-create-rev", "6", "--keys-only"},
	} {
		c.run(append([]string{"get"}, args...)...)
	}
	c.run("del", "x", "--prev-kv")
	c.run("del", "x")
	c.run("del", "dir/", "--prefix", "-w", "json")
	c.run("del", "b", "c")
	c.run("del", "zz", "--from-key")
}

func ctlErrors(c *ctl) {
	c.run("get", "a", "--rev", "9999")
	c.run("put", "a", "1", "--lease", "1234567")
	c.run("put", "nothing", "--ignore-value")
	c.run("put", "", "1")
	c.run("compaction", "9999")
	c.run("lease", "revoke", "1234567")
}

func ctlTxn(c *ctl) {
	c.feed("mod(\"a\") > \"0\"\nvalue(\"a\") = \"3\"\n\nput t yes\nget a\n\nput t no\n\n", "txn")
	c.feed("ver(\"a\") = \"99\"\n\nput t yes\n\nput t no\ndel a\n\n", "txn", "-w", "json")
	c.feed("c(\"t\") < \"2\"\n\nput t yes\n\nput t no\nput t twice\n\n", "txn")
}

// follow runs a command until it has printed so many lines.
func (c *ctl) follow(lines int, args ...string) {
	c.Helper()
	f := c.begin(args...)
	eventually(c, fmt.Sprintf("etcdctl %q prints %d lines", args, lines), func() bool {
		return strings.Count(f.said(), "\n") >= lines
	})
	f.stop()
	c.notef("%s\n%s", c.normal(strings.Join(args, " ")), c.normal(f.said()))
}

// running is a command that goes on.
type running struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu  sync.Mutex
	out bytes.Buffer // guarded by mu
}

func (c *ctl) begin(args ...string) *running {
	c.Helper()
	r := &running{cmd: c.command(c.ctx, args...), done: make(chan struct{})}
	r.cmd.Stdout, r.cmd.Stderr = r, io.Discard
	if err := r.cmd.Start(); err != nil {
		c.Fatal(err)
	}
	go func() {
		_ = r.cmd.Wait() // it is ended by a signal
		close(r.done)
	}()
	c.Cleanup(r.stop)
	return r
}

// Write implements io.Writer for the command's output.
func (r *running) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.Write(p)
}

func (r *running) said() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.String()
}

func (r *running) stop() {
	r.cmd.Process.Signal(syscall.SIGTERM)
	<-r.done
}

func ctlWatch(c *ctl) {
	c.follow(9, "watch", "a", "--rev", "1")
	c.follow(7, "watch", "a", "--rev", "4", "--prev-kv")
	c.follow(18, "watch", "dir/", "--prefix", "--rev", "1")
	c.run("put", "told", "a program")
	c.follow(4, "watch", "told", "--rev", "2", "--", "sh", "-c", "echo $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE")
}

func ctlLeases(c *ctl) {
	out := c.run("lease", "grant", "600")
	id := longID.FindString(out)
	c.run("put", "bound", "1", "--lease", id)
	c.run("put", "bound/2", "1", "--lease", id)
	c.run("lease", "list")
	left, _ := c.output("", "lease", "timetolive", id, "--keys")
	left = attached.ReplaceAllStringFunc(left, inOrder)
	c.notef("%s", regexp.MustCompile(`remaining\(\w+\)`).ReplaceAllString(c.normal(left), "remaining"))
	c.run("lease", "keep-alive", "--once", id)
	c.run("get", "bound", "-w", "fields")
	c.run("lease", "revoke", id)
	c.run("get", "bound", "--prefix")
	c.run("lease", "timetolive", id)
	c.run("lease", "keep-alive", "--once", id)
	c.run("lease", "revoke", id)
}

// attached is the keys of a lease as etcdctl prints them: separated by blanks, and
// from etcd in the order of a map of Go's, another one each time.
var attached = regexp.MustCompile(`attached keys\(\[[^\]]*\]\)`)

func inOrder(printed string) string {
	keys := strings.Fields(strings.TrimSuffix(strings.TrimPrefix(printed, "attached keys(["), "])"))
	slices.Sort(keys)
	return fmt.Sprintf("attached keys(%s)", keys)
}

func ctlLocks(c *ctl) {
	c.run("lock", "guard", "echo", "guarded")
	c.run("lock", "guard", "sh", "-c", "exit 3")
	first := c.begin("lock", "guard")
	eventually(c, "the lock is taken", func() bool { return strings.HasPrefix(first.said(), "guard/") })
	second := c.begin("lock", "guard")
	waiting := func() int64 {
		r, err := c.c.Get(c.ctx, "guard/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		c.must(err)
		return r.Count
	}
	eventually(c, "the second waits", func() bool { return waiting() == 2 })
	c.equal("the second prints", "", second.said())
	first.stop()
	eventually(c, "the second has the lock", func() bool { return strings.HasPrefix(second.said(), "guard/") })
	second.stop()
	eventually(c, "nobody has the lock", func() bool { return waiting() == 0 })

	leader := c.begin("elect", "boss", "me")
	eventually(c, "somebody leads", func() bool { return strings.Contains(leader.said(), "me\n") })
	listener := c.begin("elect", "-l", "boss")
	eventually(c, "the leader is observed", func() bool { return strings.Contains(listener.said(), "me\n") })
	next := c.begin("elect", "boss", "the next")
	leader.stop()
	eventually(c, "the next leads", func() bool { return strings.Contains(next.said(), "the next\n") })
	eventually(c, "the next is observed", func() bool { return strings.Contains(listener.said(), "the next\n") })
	next.stop()
	listener.stop()
	c.notef("%s", c.normal(listener.said()))
}

func ctlCompaction(c *ctl) {
	c.run("compaction", "5")
	c.run("compaction", "5")
	c.run("compaction", "--physical", "6")
	c.run("get", "a", "--rev", "4")
	c.run("get", "a", "--rev", "6")
	watch, _ := c.output("", "watch", "a", "--rev", "3")
	c.notef("%s", c.normal(watch))
}

func ctlMaintenance(c *ctl) {
	c.run("version")
	c.run("endpoint", "health")
	c.run("alarm", "list")
	c.run("alarm", "disarm")
	c.run("defrag")
	c.equal("members", 1, strings.Count(c.only("member", "list"), ", started, "))
	c.run("move-leader", "1234567890abcdef")
	var status []struct {
		Status struct {
			Header struct {
				MemberID uint64 `json:"member_id"`
				Revision int64  `json:"revision"`
			} `json:"header"`
			Leader    uint64   `json:"leader"`
			DBSize    int64    `json:"dbSize"`
			InUse     int64    `json:"dbSizeInUse"`
			RaftIndex uint64   `json:"raftIndex"`
			Applied   uint64   `json:"raftAppliedIndex"`
			Errors    []string `json:"errors"`
		} `json:"Status"`
	}
	c.must(json.Unmarshal([]byte(c.only("endpoint", "status", "-w", "json")), &status))
	s := status[0].Status
	if s.Leader == 0 || s.Leader != s.Header.MemberID || s.DBSize == 0 || s.InUse == 0 || s.InUse > s.DBSize || s.Applied == 0 || s.RaftIndex < s.Applied || len(s.Errors) > 0 {
		c.Errorf("%s: endpoint status is %+v", c.name, s)
	}
	c.notef("revision %d", s.Header.Revision)
	if out := c.only("endpoint", "hashkv"); !strings.Contains(out, c.address) {
		c.Errorf("%s: endpoint hashkv prints %q", c.name, out)
	}
	// What etcd does here, Balsa has commands of its own for.
	if c.name != "etcd" {
		self := fmt.Sprintf("%x", s.Leader)
		for _, args := range [][]string{
			{"member", "add", "s9", "--peer-urls", "http://127.0.0.1:9"}, {"member", "update", self, "--peer-urls", "http://127.0.0.1:9"},
			{"downgrade", "validate", "3.6.0"}, {"auth", "enable"}, {"user", "list"}, {"role", "list"},
		} {
			out, code := c.output("", args...)
			if code == 0 || !strings.Contains(strings.ToLower(out), "balsa") && !strings.Contains(out, "--advertise") {
				c.Errorf("etcdctl %q ends with %d and does not say what to do instead: %s", args, code, out)
			}
		}
	}
}

// ctlDatascale writes ten thousand keys, and reads before and after what memory the
// server has, on its port's /metrics.
func ctlDatascale(c *ctl) {
	out := c.only("check", "datascale")
	used := memoryUsed.FindString(out)
	if used == "" {
		c.Errorf("check datascale on %s prints %q", c.name, out)
	}
	c.notef("%s", memoryUsed.ReplaceAllString(used, "$1"))
	c.run("get", "", "--prefix", "--count-only", "-w", "fields")
}

var memoryUsed = regexp.MustCompile(`(PASS: Approximate system memory used) : -?[0-9.]+ MB`)

// TestEtcdctlCheckPerf: the load that it makes, a minute of 150 writes a second, is
// taken in full. Whether each was quick enough depends on the machine.
func TestEtcdctlCheckPerf(t *testing.T) {
	t.Parallel()
	s := startBalsa(t)
	c := &ctl{teller: &teller{T: t, side: s, ctx: t.Context(), c: s.client, frame: frame{base: 1}}, ids: map[string]string{}}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	out, err := c.command(ctx, "check", "perf", "--load", "s").CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || !strings.Contains(string(out), "Throughput") || strings.Contains(string(out), "error") {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("%s", out[max(0, len(out)-300):])
	r, err := s.client.Get(ctx, "", clientv3.WithFromKey(), clientv3.WithCountOnly())
	if err != nil || r.Count != 0 || r.Header.Revision < 1000 {
		t.Errorf("it leaves %d keys at revision %d: %v", r.Count, r.Header.Revision, err)
	}
}

// only runs a command that must succeed, without a note.
func (c *ctl) only(args ...string) string {
	c.Helper()
	out, said, code := c.outputs("", args...)
	if code != 0 {
		c.Errorf("etcdctl %q on %s ends with %d: %s%s", args, c.name, code, out, said)
	}
	return out
}

func ctlMirror(c *ctl) {
	c.run("put", "mirror/1", "one")
	to := startEtcd(c)
	m := c.begin("make-mirror", "--prefix", "mirror/", "--dest-prefix", "copy/", "--dest-insecure-transport", to.address)
	has := func(key, value string) func() bool {
		return func() bool {
			r, err := to.client.Get(c.ctx, key)
			return err == nil && len(r.Kvs) == 1 && string(r.Kvs[0].Value) == value
		}
	}
	eventually(c, "what was there is mirrored", has("copy/1", "one"))
	c.run("put", "mirror/2", "two")
	eventually(c, "what is new is mirrored", has("copy/2", "two"))
	c.run("del", "mirror/1")
	eventually(c, "what is deleted is deleted there", func() bool {
		r, err := to.client.Get(c.ctx, "copy/1")
		return err == nil && len(r.Kvs) == 0
	})
	m.stop()
}

// ctlSnapshot saves a snapshot, looks at it with etcdutl, and starts a real etcd
// from it, which must hold what the side holds.
func ctlSnapshot(c *ctl) {
	out := c.run("lease", "grant", "600")
	lease := longID.FindString(out)
	c.run("put", "in the snapshot", "1", "--lease", lease)
	c.run("put", "in the snapshot", "2", "--lease", lease)
	before := c.everything(c.c)
	dir := c.TempDir()
	file, data := filepath.Join(dir, "snapshot.db"), filepath.Join(dir, "data")
	c.only("snapshot", "save", file)
	var status struct {
		Revision, TotalKey, TotalSize int64
		Version                       string
	}
	c.must(json.Unmarshal([]byte(c.utl("snapshot", "status", file, "-w", "json")), &status))
	if status.Revision == 0 || status.TotalKey == 0 || status.TotalSize == 0 {
		c.Errorf("%s: etcdutl says of the snapshot %+v", c.name, status)
	}
	c.notef("revision %d of the snapshot", status.Revision)
	peers := "http://" + freeAddress(c)
	c.utl("snapshot", "restore", file, "--data-dir", data, "--name", "default", "--initial-cluster", "default="+peers, "--initial-advertise-peer-urls", peers)
	c.utl("hashkv", file) // which writes to the file
	restored, stop := startEtcdOn(c, data)
	c.equal("everything that etcd has from the snapshot", before, c.everything(restored.client))
	// The lease is alive there, and takes its key along.
	id, err := strconv.ParseInt(lease, 16, 64)
	c.must(err)
	_, err = restored.client.Revoke(c.ctx, clientv3.LeaseID(id))
	c.must(err)
	r, err := restored.client.Get(c.ctx, "in the snapshot")
	c.must(err)
	c.equal("keys after the revocation", int64(0), r.Count)
	stop()
}

// everything is every key with all its numbers.
func (c *ctl) everything(from *clientv3.Client) []string {
	r, err := from.Get(c.ctx, "", clientv3.WithFromKey())
	c.must(err)
	all := []string{fmt.Sprint("revision ", r.Header.Revision)}
	for _, kv := range r.Kvs {
		all = append(all, kv.String())
	}
	return all
}

// utl runs etcdutl, which must succeed.
func (c *ctl) utl(args ...string) string {
	c.Helper()
	cmd := exec.CommandContext(within(c), peer("etcdutl"), args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		c.Fatalf("etcdutl %q on %s: %v\n%s%s", args, c.name, err, out, said.String())
	}
	return string(out)
}
