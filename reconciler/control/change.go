package control

import (
	"fmt"
	"io"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
)

// MaxOps bounds the writes, and the compares, of a Change. The store's own limit
// (store.DefaultTxnOps) is above it.
const MaxOps = 120

// Change is one transaction being put together: it happens whole, or not at all
// when one of the revisions that it is based on has passed.
type Change struct {
	compares []*internalv1.Compare
	expected map[string]int64
	ops      []*internalv1.Op
	about    string
	then     []func()
}

// Then runs f once the change was applied, for what is only to be said then.
func (c *Change) Then(f func()) { c.then = append(c.then, f) }

// NewChange begins a change; about names it in errors, usually by a key.
func NewChange(about string) *Change {
	return &Change{about: about, expected: map[string]int64{}}
}

// Empty tells whether the change writes nothing.
func (c *Change) Empty() bool { return len(c.ops) == 0 }

// Room is how many more writes the change may hold, if each expects another key.
func (c *Change) Room() int { return MaxOps - max(len(c.ops), len(c.compares)) }

// Expect makes the change fail unless the object is at the revision at which it
// was read.
func (c *Change) Expect(m object.Message) { c.expectAt(object.KeyOf(m), ModRevision(m)) }

// ExpectAbsent makes the change fail if there is any key under a prefix.
func (c *Change) ExpectAbsent(prefix string) {
	c.compares = append(c.compares, &internalv1.Compare{
		Key: []byte(prefix), RangeEnd: []byte(PrefixEnd(prefix)),
		Target: internalv1.Compare_TARGET_VERSION, Result: internalv1.Compare_RESULT_EQUAL,
	})
}

func (c *Change) expectAt(key string, revision int64) {
	if _, known := c.expected[key]; known {
		return
	}
	c.expected[key] = revision
	c.compares = append(c.compares, &internalv1.Compare{
		Key: []byte(key), Target: internalv1.Compare_TARGET_MOD, Result: internalv1.Compare_RESULT_EQUAL, Number: revision,
	})
}

// Create puts a new object; the change fails if its key is taken.
func (c *Change) Create(m object.Message) error {
	c.expectAt(object.KeyOf(m), 0)
	return c.put(m)
}

// Update puts an object in the place of the one it was cloned from.
func (c *Change) Update(m object.Message) error {
	c.Expect(m)
	return c.put(m)
}

func (c *Change) put(m object.Message) error {
	value, err := object.Encode(m)
	if err != nil {
		return err
	}
	c.ops = append(c.ops, &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte(object.KeyOf(m)), Value: value}}})
	return nil
}

// Delete removes an object, which was read from the store. A Service gives what it
// has claimed back in the same transaction: see DeleteOps.
func (c *Change) Delete(m object.Message) {
	c.Expect(m)
	c.ops = append(c.ops, deleteOp(object.KeyOf(m), ""))
	if svc, ok := m.(*balsav1.Service); ok {
		for _, key := range object.ServiceClaims(svc) {
			c.Release(key)
		}
	}
}

// DeleteOps is how many writes Delete makes of an object.
func DeleteOps(m object.Message) int {
	if svc, ok := m.(*balsav1.Service); ok {
		return 1 + len(object.ServiceClaims(svc))
	}
	return 1
}

// Claim writes a key of package object's claims, which owner has from then on; the
// change fails if somebody has it already.
func (c *Change) Claim(key string, owner object.Message) {
	c.expectAt(key, 0)
	c.ops = append(c.ops, &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte(key), Value: []byte(object.KeyOf(owner))}}})
}

// Release gives a claim up. Expect its owner, so that it is the owner's still.
func (c *Change) Release(key string) { c.ops = append(c.ops, deleteOp(key, "")) }

// DeletePrefix removes every key under a prefix, whatever its revision.
func (c *Change) DeletePrefix(prefix string) {
	c.ops = append(c.ops, deleteOp(prefix, PrefixEnd(prefix)))
}

func deleteOp(key, end string) *internalv1.Op {
	return &internalv1.Op{Op: &internalv1.Op_DeleteRange{DeleteRange: &internalv1.DeleteRange{Key: []byte(key), RangeEnd: []byte(end)}}}
}

// EndPod asks for the end of a pod as the API does: one that no agent can have
// begun, or that is over, goes at once; another is marked and goes when its
// agent says that nothing of it is left. A pod that is marked already stays as
// it is.
func (c *Change) EndPod(pod *balsav1.Pod, now time.Time) error {
	grace := pod.GetSpec().GetTerminationGracePeriodSeconds()
	if pod.GetSpec().GetNodeName() == "" || object.PodFinished(pod) || grace == 0 {
		c.Delete(pod)
		return nil
	}
	if object.IsTerminating(pod) {
		return nil
	}
	next := object.Clone(pod)
	next.Metadata.DeletionTimestamp = timestamppb.New(now)
	next.Metadata.DeletionGracePeriodSeconds = proto.Int64(grace)
	return c.Update(next)
}

// Stamp makes m a new object: defaults, a name if it has only the beginning of
// one, uid and creation time.
func Stamp(m object.Message, random io.Reader, now time.Time) error {
	object.Default(m)
	if err := object.GenerateName(m, random); err != nil {
		return err
	}
	uid, err := object.NewUID(random)
	if err != nil {
		return err
	}
	object.Stamp(m, uid, now)
	return nil
}

// ModRevision is the revision at which an object was read; 0 for one that was
// not read from a store.
func ModRevision(m object.Message) int64 {
	text := m.GetMetadata().GetResourceVersion()
	if text == "" {
		return 0
	}
	revision, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		panic(fmt.Sprintf("control: %s has resourceVersion %q, which no store gives", object.Describe(m), text))
	}
	return revision
}

// PrefixEnd is the first key after all that begin with prefix, whose last byte is
// not 0xff.
func PrefixEnd(prefix string) string {
	last := len(prefix) - 1
	return prefix[:last] + string(prefix[last]+1)
}
