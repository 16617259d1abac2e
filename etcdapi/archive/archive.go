// Package archive writes an etcd space as a database file of etcd's own, so that
// `etcdutl snapshot status` and `etcdutl snapshot restore` read it and a real etcd
// starts from what was restored: the way out of Balsa, and a second pair of eyes on
// what it holds.
//
// The file is a bbolt database in the format of etcd 3.6 with the SHA-256 of its
// bytes behind it. It has every key as it is at the view's revision, with its
// revisions, version and lease; every lease, with its full time; and the members.
// It is as etcd's would be that was compacted at that revision: the older versions of
// the keys are not in it.
//
//	bucket   key                                value
//	key      revision, '_', sub (8+1+8 bytes)   mvccpb.KeyValue
//	lease    id (8 bytes)                       leasepb.Lease
//	meta     finishedCompactRev …               see meta
//	members  id in hexadecimal                  JSON
//
// The package refuses to read: what it wrote is for etcd's tools. It keeps the file
// on disk only while it writes it.
package archive

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"google.golang.org/protobuf/proto"

	"github.com/balsa-run/balsa/etcdapi"
	"github.com/balsa-run/balsa/store"
)

const (
	// batchKeys is how many keys one transaction of the file writes: it bounds the
	// memory that is needed beside the keys' names.
	batchKeys = 10_000
	// fill is how full pages get: the keys come in order and nobody adds any.
	fill = 0.98
)

// Archiver is an etcdapi.Archiver that builds its files in a folder, which must
// exist.
type Archiver struct{ Dir string }

// Archive writes the database, then its digest. A to that is an etcdapi.Sized is told
// the length before the first byte.
func (a Archiver) Archive(ctx context.Context, view store.View, members []etcdapi.Member, to io.Writer) (err error) {
	dir, err := os.MkdirTemp(a.Dir, "etcd-snapshot-")
	if err != nil {
		return fmt.Errorf("make a folder for the snapshot: %w", err)
	}
	defer func() {
		if e := os.RemoveAll(dir); err == nil && e != nil {
			err = fmt.Errorf("remove the snapshot's folder: %w", e)
		}
	}()
	// Nothing of it has to survive a crash.
	db, err := bolt.Open(filepath.Join(dir, "db"), 0o600, &bolt.Options{NoSync: true, NoGrowSync: true, NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return fmt.Errorf("make the snapshot's file: %w", err)
	}
	err = build(ctx, db, view, members)
	if err == nil {
		err = send(ctx, db, to)
	}
	if e := db.Close(); err == nil && e != nil {
		err = fmt.Errorf("close the snapshot's file: %w", e)
	}
	return err
}

// buckets are all that etcd has.
func buckets() []string {
	return []string{"key", "meta", "lease", "alarm", "cluster", "members", "members_removed", "auth", "authUsers", "authRoles"}
}

func build(ctx context.Context, db *bolt.DB, view store.View, members []etcdapi.Member) error {
	if err := db.Update(func(tx *bolt.Tx) error { return begin(tx, view, members) }); err != nil {
		return fmt.Errorf("begin the snapshot: %w", err)
	}
	places := placesOf(view)
	for batch := range slices.Chunk(places, batchKeys) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := db.Update(func(tx *bolt.Tx) error { return putKeys(tx.Bucket([]byte("key")), view, batch) }); err != nil {
			return fmt.Errorf("write keys of the snapshot: %w", err)
		}
	}
	return nil
}

func begin(tx *bolt.Tx, view store.View, members []etcdapi.Member) error {
	for _, name := range buckets() {
		if _, err := tx.CreateBucket([]byte(name)); err != nil {
			return err
		}
	}
	if err := putMeta(tx, view); err != nil {
		return err
	}
	if err := putLeases(tx.Bucket([]byte("lease")), view); err != nil {
		return err
	}
	return putMembers(tx.Bucket([]byte("members")), members)
}

// putMeta says that everything before the view was compacted, so that a restored
// etcd goes on from the view's revision also if its last change was a deletion.
// Index and term are of a log that etcd never sees; its restore sets its own.
func putMeta(tx *bolt.Tx, view store.View) error {
	meta := tx.Bucket([]byte("meta"))
	index := binary.BigEndian.AppendUint64(nil, uint64(view.Revision()))
	values := map[string][]byte{
		"consistent_index": index,
		"term":             binary.BigEndian.AppendUint64(nil, 1),
		"storageVersion":   []byte(etcdapi.StorageVersion),
	}
	if view.Revision() > 1 { // revision 1 is the empty space, which has no past
		rev := revisionBytes(view.Revision(), 0)
		values["scheduledCompactRev"], values["finishedCompactRev"] = rev, rev
	}
	for name, value := range values {
		if err := meta.Put([]byte(name), value); err != nil {
			return err
		}
	}
	return tx.Bucket([]byte("cluster")).Put([]byte("clusterVersion"), []byte(etcdapi.StorageVersion))
}

func putLeases(b *bolt.Bucket, view store.View) error {
	for lease := range view.Leases() {
		value, err := proto.Marshal(&leasepb.Lease{ID: lease.ID, TTL: lease.TTLSeconds})
		if err != nil {
			return err
		}
		if err := b.Put(binary.BigEndian.AppendUint64(nil, uint64(lease.ID)), value); err != nil {
			return err
		}
	}
	return nil
}

// member is etcd's membership.Member.
type member struct {
	ID         uint64   `json:"id"`
	PeerURLs   []string `json:"peerURLs"`
	IsLearner  bool     `json:"isLearner,omitempty"`
	Name       string   `json:"name,omitempty"`
	ClientURLs []string `json:"clientURLs,omitempty"`
}

func putMembers(b *bolt.Bucket, members []etcdapi.Member) error {
	for _, m := range members {
		value, err := json.Marshal(member{ID: m.ID, PeerURLs: m.PeerURLs, IsLearner: m.Learner, Name: m.Name, ClientURLs: m.ClientURLs})
		if err != nil {
			return err
		}
		if err := b.Put([]byte(strconv.FormatUint(m.ID, 16)), value); err != nil {
			return err
		}
	}
	return nil
}

// place is where a key stands in the file: behind those of earlier revisions.
type place struct {
	revision store.Revision
	key      string
}

// placesOf are the view's keys in the order of the file. Keys that one transaction
// wrote stand by their names, since nothing else is known of their order.
func placesOf(view store.View) []place {
	places := make([]place, 0, view.Count("", ""))
	for kv := range view.Range("", "", 0) {
		places = append(places, place{kv.ModRevision, kv.Key})
	}
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.revision, b.revision), cmp.Compare(a.key, b.key))
	})
	return places
}

func putKeys(b *bolt.Bucket, view store.View, places []place) error {
	b.FillPercent = fill
	last, sub := lastOf(b)
	for _, p := range places {
		if sub++; p.revision != last {
			last, sub = p.revision, 0
		}
		kv, found := view.Get(p.key)
		if !found {
			return fmt.Errorf("key %q has gone from a view that cannot change", p.key)
		}
		value, err := proto.Marshal(&mvccpb.KeyValue{
			Key: []byte(kv.Key), Value: kv.Value, Lease: kv.Lease, Version: kv.Version,
			CreateRevision: int64(kv.CreateRevision), ModRevision: int64(kv.ModRevision),
		})
		if err != nil {
			return err
		}
		if err := b.Put(revisionBytes(p.revision, sub), value); err != nil {
			return err
		}
	}
	return nil
}

// lastOf is where the batch before this one ended.
func lastOf(b *bolt.Bucket) (revision store.Revision, sub int64) {
	key, _ := b.Cursor().Last()
	if key == nil {
		return 0, -1
	}
	return store.Revision(binary.BigEndian.Uint64(key)), int64(binary.BigEndian.Uint64(key[9:]))
}

// revisionBytes is a key of the bucket of keys.
func revisionBytes(revision store.Revision, sub int64) []byte {
	out := binary.BigEndian.AppendUint64(nil, uint64(revision))
	out = append(out, '_')
	return binary.BigEndian.AppendUint64(out, uint64(sub))
}

// send streams the file and its digest, which is how etcd's restore knows that the
// file is whole.
func send(ctx context.Context, db *bolt.DB, to io.Writer) error {
	digest, out := sha256.New(), &watched{ctx: ctx, to: to}
	err := db.View(func(tx *bolt.Tx) error {
		if sized, ok := to.(etcdapi.Sized); ok {
			sized.Size(tx.Size() + sha256.Size)
		}
		_, err := tx.WriteTo(io.MultiWriter(out, digest))
		return err
	})
	if err == nil {
		_, err = out.Write(digest.Sum(nil))
	}
	if out.err != nil {
		err = out.err // bbolt keeps only its text
	}
	if err != nil {
		return fmt.Errorf("send the snapshot: %w", err)
	}
	return nil
}

// watched stops writing when nobody waits for it any more, and remembers why.
type watched struct {
	ctx context.Context
	to  io.Writer
	err error
}

func (w *watched) Write(data []byte) (n int, err error) {
	if w.err == nil && w.ctx.Err() != nil {
		w.err = context.Cause(w.ctx)
	}
	if w.err == nil {
		n, w.err = w.to.Write(data)
	}
	return n, w.err
}
