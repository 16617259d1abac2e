package etcdtest

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// members is the size of a cluster.
const members = 3

// startEtcdCluster starts a real etcd of three members.
func startEtcdCluster(t testing.TB) []*side {
	t.Helper()
	var all []*side
	var peers, cluster []string
	for i := range members {
		all = append(all, &side{name: "etcd", address: freeAddress(t)})
		peers = append(peers, "http://"+freeAddress(t))
		cluster = append(cluster, fmt.Sprintf("m%d=%s", i, peers[i]))
	}
	for i, s := range all {
		clients := "http://" + s.address
		startProcess(t, fmt.Sprint("etcd ", i), exec.Command(peer("etcd"),
			"--name", fmt.Sprint("m", i), "--data-dir", t.TempDir(), "--log-level", "error", "--unsafe-no-fsync",
			"--listen-client-urls", clients, "--advertise-client-urls", clients, "--listen-peer-urls", peers[i],
			"--initial-advertise-peer-urls", peers[i], "--initial-cluster", strings.Join(cluster, ",")))
	}
	for _, s := range all {
		s.connect(t, "")
		awaitLeader(t, s.client, s.address)
	}
	return all
}

// startBalsaCluster starts a balsa of three servers.
func startBalsaCluster(t testing.TB) []*side {
	t.Helper()
	first := startBalsa(t)
	token := strings.TrimSpace(first.balsa(t, "token", "create", "--role", "server", "--uses", fmt.Sprint(members-1)))
	all := []*side{first}
	for i := 1; i < members; i++ {
		s := &side{name: first.name, address: freeAddress(t), program: first.program, pems: first.pems, admin: first.admin}
		startProcess(t, fmt.Sprint(s.name, " ", i+1), exec.Command(s.program, "server", "--join", first.listen, "--token", token,
			"--name", fmt.Sprint("s", i+1), "--data-dir", filepath.Join(t.TempDir(), "data"), "--listen", freeAddress(t),
			"--gossip-listen", freeAddress(t), "--etcd-listen", s.address, "--log-level", "warn"))
		s.connect(t, s.pems)
		awaitLeader(t, s.client, s.address)
		all = append(all, s)
	}
	return all
}

// TestEtcdctlOnACluster is what etcdctl does with several members: their list,
// states and hashes, and the move of the leader, through which leases live.
func TestEtcdctlOnACluster(t *testing.T) {
	t.Parallel()
	var told [2][]string
	for i, all := range [][]*side{startEtcdCluster(t), startBalsaCluster(t)} {
		c := &ctl{teller: &teller{T: t, side: all[0], ctx: t.Context(), c: all[0].client, frame: frame{base: 1}}, ids: map[string]string{}}
		c.flags[1] = endpointsOf(all)
		clusterStory(c, all)
		told[i] = c.notes
	}
	if diff := cmp.Diff(told[0], told[1]); diff != "" {
		t.Errorf("etcdctl's output differs (-etcd +balsa):\n%s", diff)
	}
}

func endpointsOf(all []*side) string {
	var urls []string
	for _, s := range all {
		urls = append(urls, s.flags[1])
	}
	return strings.Join(urls, ",")
}

func clusterStory(c *ctl, all []*side) {
	eventually(c, "all members are voters", func() bool {
		r, err := c.c.MemberList(c.ctx)
		c.must(err)
		voters := 0
		for _, m := range r.Members {
			if !m.IsLearner && len(m.ClientURLs) == 1 && len(m.PeerURLs) == 1 && m.Name != "" {
				voters++
			}
		}
		return voters == members
	})
	c.equal("started members", members, strings.Count(c.only("member", "list"), ", started, "))
	for i, s := range all {
		_, err := s.client.Put(c.ctx, "k", fmt.Sprint(i))
		c.must(err)
		for _, other := range all {
			r, err := other.client.Get(c.ctx, "k")
			c.must(err)
			c.equal("read after a write elsewhere", fmt.Sprint(i), string(r.Kvs[0].Value))
			c.equal("revision", int64(i+2), r.Header.Revision)
		}
	}
	c.only("endpoint", "health")
	c.only("endpoint", "health", "--cluster")
	eventually(c, "all members have the same hash", func() bool { return c.sameHashes() })

	before, others := c.leaderAndOthers(all)
	lease, err := c.c.Grant(c.ctx, 600)
	c.must(err)
	c.put("bound", "", clientv3.WithLease(lease.ID))
	out := c.only("move-leader", fmt.Sprintf("%x", others[0]))
	c.notef("%s", c.normal(out))
	eventually(c, "the other leads", func() bool {
		now, _ := c.leaderAndOthers(all)
		return now == others[0] && now != before
	})
	for _, s := range all {
		ttl, err := s.client.TimeToLive(c.ctx, lease.ID, clientv3.WithAttachedKeys())
		c.must(err)
		c.equal("keys of the lease", [][]byte{[]byte("bound")}, ttl.Keys)
		if ttl.TTL < 590 || ttl.TTL > 600 {
			c.Errorf("%s: a lease of 600 s has %d s left behind a change of leader", s.name, ttl.TTL)
		}
		kept, err := s.client.KeepAliveOnce(c.ctx, lease.ID)
		c.must(err)
		c.equal("kept alive for", int64(600), kept.TTL)
	}
	out, code := c.output("", "move-leader", "1234567890abcdef")
	c.notef("%s exit %d", c.normal(out), code)
}

// leaderAndOthers is who leads, when all members agree on it; 0 when not.
func (c *ctl) leaderAndOthers(all []*side) (leader uint64, others []uint64) {
	c.Helper()
	for i, s := range all {
		r, err := s.client.Status(c.ctx, s.address)
		c.must(err)
		if i > 0 && r.Leader != leader {
			return 0, nil
		}
		leader = r.Leader
		if id := r.Header.MemberId; id != leader {
			others = append(others, id)
		}
	}
	if len(others) != members-1 {
		return 0, nil
	}
	return leader, others
}

func (c *ctl) sameHashes() bool {
	c.Helper()
	var hashes []struct {
		HashKV struct {
			Hash uint32 `json:"hash"`
		} `json:"HashKV"`
	}
	c.must(json.Unmarshal([]byte(c.only("endpoint", "hashkv", "-w", "json")), &hashes))
	same := len(hashes) == members
	for _, h := range hashes {
		same = same && h.HashKV.Hash != 0 && h == hashes[0]
	}
	return same
}
