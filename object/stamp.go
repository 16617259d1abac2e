package object

import (
	"encoding/hex"
	"fmt"
	"io"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// suffixLength is how many letters and digits generateName appends.
const suffixLength = 5

// maxGeneratedPrefix keeps a generated name a DNS label.
const maxGeneratedPrefix = maxLabelLength - suffixLength

// suffixAlphabet has no vowels and no look-alikes, so that no suffix spells a
// word; 32 letters would be more even to draw, but these 27 are Kubernetes'.
const suffixAlphabet = "bcdfghjklmnpqrstvwxz2456789"

// NewUID draws a random UUID (RFC 9562, version 4).
func NewUID(random io.Reader) (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return "", fmt.Errorf("draw a uid: %w", err)
	}
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:], nil
}

// GenerateName gives m the name that its generateName begins, when it has none.
func GenerateName(m Message, random io.Reader) error {
	meta := EnsureMetadata(m)
	if meta.Name != "" || meta.GenerateName == "" {
		return nil
	}
	suffix, err := NameSuffix(random)
	if err != nil {
		return err
	}
	prefix := meta.GenerateName
	if len(prefix) > maxGeneratedPrefix {
		prefix = prefix[:maxGeneratedPrefix]
	}
	meta.Name = prefix + suffix
	return nil
}

// NameSuffix draws five letters and digits.
func NameSuffix(random io.Reader) (string, error) {
	out := make([]byte, 0, suffixLength)
	var b [1]byte
	for len(out) < suffixLength {
		if _, err := io.ReadFull(random, b[:]); err != nil {
			return "", fmt.Errorf("draw a name: %w", err)
		}
		// Bytes past the last multiple would favour the first letters.
		if n := len(suffixAlphabet); int(b[0]) < 256/n*n {
			out = append(out, suffixAlphabet[int(b[0])%n])
		}
	}
	return string(out), nil
}

// Stamp makes m a new object: its uid, its creation time, generation 1, and the
// status it begins with, whatever it came with. The status of a Node is kept,
// since the Node registers with it, and that of a PersistentVolume, which is made
// as bound. Give it its name first.
func Stamp(m Message, uid string, now time.Time) {
	meta := EnsureMetadata(m)
	meta.Uid = uid
	meta.CreationTimestamp = timestamppb.New(now)
	meta.Generation = 1
	meta.ResourceVersion = ""
	meta.DeletionTimestamp = nil
	meta.DeletionGracePeriodSeconds = nil
	switch m := m.(type) {
	case *balsav1.Namespace:
		m.Status = &balsav1.NamespaceStatus{Phase: NamespaceActive}
	case *balsav1.Pod:
		m.Status = &balsav1.PodStatus{Phase: PodPending, QosClass: QOSClass(m.GetSpec())}
	case *balsav1.PersistentVolumeClaim:
		m.Status = &balsav1.PersistentVolumeClaimStatus{Phase: ClaimPending}
	case *balsav1.PersistentVolume:
		m.Status = ensure(m.Status)
		setDefault(&m.Status.Phase, VolumeAvailable)
	case *balsav1.ReplicaSet:
		m.Status = nil
	case *balsav1.Deployment:
		m.Status = nil
	case *balsav1.Service:
		m.Status = nil
	case *balsav1.PodDisruptionBudget:
		m.Status = nil
	case *balsav1.AddressPool:
		m.Status = nil
	}
}

// CarryOver gives next, a user's replacement of old, what users do not write:
// uid, times, managedFields and status of old. It keeps what next says about
// uid and resourceVersion only when they are set, as preconditions that the
// caller checks. Call BumpGeneration after defaulting.
func CarryOver(old, next Message) {
	from, to := old.GetMetadata(), EnsureMetadata(next)
	setDefault(&to.Uid, from.GetUid())
	setDefault(&to.ResourceVersion, from.GetResourceVersion())
	to.Generation = from.GetGeneration()
	to.CreationTimestamp = from.GetCreationTimestamp()
	to.DeletionTimestamp = from.GetDeletionTimestamp()
	to.DeletionGracePeriodSeconds = from.DeletionGracePeriodSeconds
	to.ManagedFields = from.GetManagedFields()
	SetStatus(next, old)
	carryOverSpec(old, next)
}

// carryOverSpec keeps the fields of a spec that the server writes.
func carryOverSpec(old, next Message) {
	switch next := next.(type) {
	case *balsav1.Service:
		next.Spec = ensure(next.Spec)
		keepService(ensure(old.(*balsav1.Service).GetSpec()), next.Spec, nil)
		dropBalancer(next)
	case *balsav1.Node:
		carryOverTaints(old.(*balsav1.Node).GetSpec().GetTaints(), next.GetSpec().GetTaints())
	case *balsav1.PersistentVolumeClaim:
		carryOverClaim(old.(*balsav1.PersistentVolumeClaim).GetSpec(), next.GetSpec())
	}
}

func carryOverClaim(old, next *balsav1.PersistentVolumeClaimSpec) {
	if old == nil || next == nil {
		return
	}
	setDefault(&next.VolumeName, old.GetVolumeName())
	if next.StorageClassName == nil {
		next.StorageClassName = old.StorageClassName
	}
}

// carryOverTaints gives taints that stay the time that they were added.
func carryOverTaints(old, next []*balsav1.Taint) {
	for _, t := range next {
		for _, o := range old {
			if t.GetTimeAdded() == nil && t.GetKey() == o.GetKey() && t.GetEffect() == o.GetEffect() {
				t.TimeAdded = o.GetTimeAdded()
			}
		}
	}
}

// SetStatus gives m the status of from, which is of the same kind. The status is
// shared. Kinds without a status stay as they are.
func SetStatus(m, from Message) {
	dst, src := m.ProtoReflect(), from.ProtoReflect()
	fd := dst.Descriptor().Fields().ByName("status")
	switch {
	case fd == nil:
	case src.Has(fd):
		dst.Set(fd, src.Get(fd))
	default:
		dst.Clear(fd)
	}
}

// HasStatus tells whether objects of a kind have a status.
func HasStatus(kind Kind) bool {
	return kind.New().ProtoReflect().Descriptor().Fields().ByName("status") != nil
}

// BumpGeneration sets next's generation: that of old, plus one when anything but
// metadata and status differs.
func BumpGeneration(old, next Message) {
	meta := EnsureMetadata(next)
	meta.Generation = old.GetMetadata().GetGeneration()
	if !SpecEqual(old, next) {
		meta.Generation++
	}
}

// SpecEqual tells whether two objects of a kind are the same but for metadata
// and status.
func SpecEqual(a, b Message) bool {
	x, y := a.ProtoReflect(), b.ProtoReflect()
	fields := x.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if name := fd.Name(); name == "metadata" || name == "status" {
			continue
		}
		if x.Has(fd) != y.Has(fd) || !x.Get(fd).Equal(y.Get(fd)) {
			return false
		}
	}
	return true
}

// Same tells whether two objects of a kind are equal but for resourceVersion, so
// that writing b over a would change nothing.
func Same(a, b Message) bool {
	return proto.Equal(withoutResourceVersion(a), withoutResourceVersion(b))
}

// Clone is a deep copy, to be changed freely.
func Clone[M Message](m M) M { return proto.CloneOf(m) }

func valueOfString(s string) protoreflect.Value { return protoreflect.ValueOfString(s) }
