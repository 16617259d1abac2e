package archive_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/balsa-run/balsa/etcdapi"
	"github.com/balsa-run/balsa/etcdapi/archive"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/store"
)

// world is a store that commands are applied to.
type world struct {
	store *store.Store
	index uint64
}

func newWorld() *world { return &world{store: store.New(store.Options{})} }

func (w *world) view() store.View { return w.store.Space(store.SpaceEtcd).View() }

func (w *world) do(t interface{ Fatalf(string, ...any) }, cmd *internalv1.Command) {
	w.index++
	cmd.Space = store.SpaceEtcd
	if r := w.store.Apply(w.index, 1, []*internalv1.Command{cmd})[0]; r.GetOutcome() != internalv1.CommandResult_OUTCOME_OK {
		t.Fatalf("%v: %v", cmd, r)
	}
}

func txn(ops ...*internalv1.Op) *internalv1.Command {
	return &internalv1.Command{Op: &internalv1.Command_Txn{Txn: &internalv1.Txn{Success: ops}}}
}

func put(key, value string, lease int64) *internalv1.Op {
	return &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte(key), Value: []byte(value), Lease: lease}}}
}

func del(key string) *internalv1.Op {
	return &internalv1.Op{Op: &internalv1.Op_DeleteRange{DeleteRange: &internalv1.DeleteRange{Key: []byte(key)}}}
}

func grant(id, ttl int64) *internalv1.Command {
	return &internalv1.Command{Op: &internalv1.Command_LeaseGrant{LeaseGrant: &internalv1.LeaseGrant{Id: id, TtlSeconds: ttl}}}
}

// sink takes an archive.
type sink struct {
	bytes.Buffer
	said int64
}

func (s *sink) Size(total int64) { s.said = total }

// archived writes an archive, checks its digest and opens it.
func archived(t interface {
	Fatalf(string, ...any)
}, dir string, view store.View, members ...etcdapi.Member) *bolt.DB {
	to := &sink{}
	if err := (archive.Archiver{Dir: dir}).Archive(context.Background(), view, members, to); err != nil {
		t.Fatalf("archive: %v", err)
	}
	text := to.Bytes()
	body := text[:len(text)-sha256.Size]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], text[len(body):]) || len(body)%512 != 0 || to.said != int64(len(text)) {
		t.Fatalf("%d bytes, %d were said; the digest at the end is not that of the rest", len(text), to.said)
	}
	path := filepath.Join(dir, fmt.Sprintf("read-%d.db", len(text)))
	if err := os.WriteFile(path, body, 0o600); err != nil {
		t.Fatalf("%v", err)
	}
	db, err := bolt.Open(path, 0o400, &bolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return db
}

// content is what etcd makes of a database.
type content struct {
	keys    []store.KV
	leases  map[int64]int64
	compact int64
	last    int64
}

func read(t interface{ Fatalf(string, ...any) }, db *bolt.DB) (c content) {
	c.leases = map[int64]int64{}
	err := db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			return err
		}
		places := map[string]bool{}
		err := tx.Bucket([]byte("key")).ForEach(func(k, v []byte) error {
			kv := &mvccpb.KeyValue{}
			if err := proto.Unmarshal(v, kv); err != nil {
				return err
			}
			if c.last = int64(binary.BigEndian.Uint64(k)); len(k) != 17 || k[8] != '_' || c.last != kv.ModRevision || places[string(k)] {
				return fmt.Errorf("key %x holds %v", k, kv)
			}
			places[string(k)] = true
			c.keys = append(c.keys, store.KV{
				Key: string(kv.Key), Value: kv.Value, Lease: kv.Lease, Version: kv.Version,
				CreateRevision: store.Revision(kv.CreateRevision), ModRevision: store.Revision(kv.ModRevision),
			})
			return nil
		})
		if err != nil {
			return err
		}
		if rev := tx.Bucket([]byte("meta")).Get([]byte("finishedCompactRev")); rev != nil {
			c.compact = int64(binary.BigEndian.Uint64(rev))
		}
		return tx.Bucket([]byte("lease")).ForEach(func(k, v []byte) error {
			l := &leasepb.Lease{}
			if err := proto.Unmarshal(v, l); err != nil || l.ID != int64(binary.BigEndian.Uint64(k)) || l.RemainingTTL != 0 {
				return fmt.Errorf("lease %x is %v: %w", k, l, err)
			}
			c.leases[l.ID] = l.TTL
			return nil
		})
	})
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return c
}

func TestArchiveHoldsWhatTheViewShows(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		w.do(t, grant(7, 60))
		for range rapid.IntRange(0, 30).Draw(t, "steps") {
			var ops []*internalv1.Op
			for _, key := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "\x00", "c\xff", "d/e"}), 1, 4, rapid.ID).Draw(t, "keys") {
				if rapid.IntRange(0, 3).Draw(t, "op") == 0 {
					ops = append(ops, del(key))
				} else {
					ops = append(ops, put(key, rapid.StringN(0, 8, -1).Draw(t, "value"), rapid.SampledFrom([]int64{0, 7}).Draw(t, "lease")))
				}
			}
			w.do(t, txn(ops...))
		}
		view := w.view()
		db := archived(t, dir, view)
		defer db.Close()
		got, want := read(t, db), map[string]store.KV{}
		for kv := range view.Range("", "", 0) {
			want[kv.Key] = kv
		}
		for _, kv := range got.keys {
			there := want[kv.Key]
			if !bytes.Equal(kv.Value, there.Value) {
				t.Fatalf("key %q is %q, want %q", kv.Key, kv.Value, there.Value)
			}
			kv.Value, there.Value = nil, nil
			if diff := cmp.Diff(there, kv); diff != "" {
				t.Fatalf("key %q: %s", kv.Key, diff)
			}
			delete(want, kv.Key)
		}
		if len(want) != 0 || !cmp.Equal(got.leases, map[int64]int64{7: 60}) {
			t.Fatalf("not archived: keys %v; leases are %v", want, got.leases)
		}
		// The revision goes on from where it was, whatever was deleted last.
		if rev := int64(view.Revision()); rev > 1 && max(got.compact, got.last) != rev || rev == 1 && got.compact != 0 {
			t.Fatalf("etcd would begin at %d, or %d; want %d", got.compact, got.last, rev)
		}
	})
}

// TestManyKeys go through several transactions, and one revision through two.
func TestManyKeys(t *testing.T) {
	w := newWorld()
	const many = 25_000
	for n := 0; n < many; n += 100 {
		var ops []*internalv1.Op
		for i := range 100 {
			ops = append(ops, put(fmt.Sprintf("key-%07d", (n+i)*7919%many), "v", 0))
		}
		w.do(t, txn(ops...))
	}
	db := archived(t, t.TempDir(), w.view(), etcdapi.Member{ID: 0xabc, Name: "one", PeerURLs: []string{"https://10.0.0.1:7443"}})
	defer db.Close()
	if got := read(t, db); len(got.keys) != many {
		t.Errorf("%d keys, want %d", len(got.keys), many)
	}
	err := db.View(func(tx *bolt.Tx) error {
		if m := tx.Bucket([]byte("members")).Get([]byte("abc")); string(m) != `{"id":2748,"peerURLs":["https://10.0.0.1:7443"],"name":"one"}` {
			t.Errorf("member: %s", m)
		}
		if v := tx.Bucket([]byte("meta")).Get([]byte("storageVersion")); string(v) != etcdapi.StorageVersion {
			t.Errorf("storage version: %s", v)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// broken fails after so many bytes.
type broken struct{ left int }

var errBroken = errors.New("the client has gone")

func (b *broken) Write(data []byte) (int, error) {
	if b.left -= len(data); b.left < 0 {
		return 0, errBroken
	}
	return len(data), nil
}

func TestFaults(t *testing.T) {
	w := newWorld()
	w.do(t, txn(put("a", "1", 0)))
	dir := t.TempDir()
	for _, left := range []int{0, 5000, 40_000} {
		if err := (archive.Archiver{Dir: dir}).Archive(t.Context(), w.view(), nil, &broken{left}); left < 20_000 && !errors.Is(err, errBroken) {
			t.Errorf("after %d bytes: %v", left, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (archive.Archiver{Dir: dir}).Archive(ctx, w.view(), nil, &sink{}); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody waits: %v", err)
	}
	if err := (archive.Archiver{Dir: filepath.Join(dir, "none")}).Archive(t.Context(), w.view(), nil, &sink{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
