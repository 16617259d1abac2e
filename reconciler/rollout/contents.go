package rollout

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/revisions"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

// Secrets opens and seals the values of Secrets. A value is bound to the key of
// its object and to its field, so that a copy has to be sealed anew.
type Secrets interface {
	Open(objectKey, field string, sealed []byte) ([]byte, error)
	Seal(objectKey, field string, value []byte) ([]byte, error)
	// Fingerprint tells contents apart, and nothing else about them, to those who
	// may not read them.
	Fingerprint(content []byte) []byte
}

// maxFingerprints bounds what is remembered of contents; beyond it everything is
// forgotten and read anew.
const maxFingerprints = 16_384

// reader reads contents. It remembers the fingerprint of every object at its
// revision, for a plan is made far more often than a config is changed.
type reader struct {
	secrets Secrets
	known   map[string]fingerprint // by key
}

type fingerprint struct{ version, hex string }

func (r *reader) fingerprint(m object.Message) (string, error) {
	key, version := object.KeyOf(m), m.GetMetadata().GetResourceVersion()
	if f, ok := r.known[key]; ok && f.version == version {
		return f.hex, nil
	}
	sum, err := r.sum(m)
	if err != nil {
		return "", err
	}
	if len(r.known) >= maxFingerprints {
		clear(r.known)
	}
	r.known[key] = fingerprint{version, hex.EncodeToString(sum)}
	return r.known[key].hex, nil
}

func (r *reader) sum(m object.Message) ([]byte, error) {
	if secret, ok := m.(*balsav1.Secret); ok {
		plain, err := r.opened(secret)
		if err != nil {
			return nil, err
		}
		return r.secrets.Fingerprint(revisions.SecretContent(plain)), nil
	}
	sum := sha256.Sum256(revisions.ConfigMapContent(m.(*balsav1.ConfigMap)))
	return sum[:], nil
}

func (r *reader) opened(secret *balsav1.Secret) (*balsav1.Secret, error) {
	plain := &balsav1.Secret{Type: secret.GetType(), Data: make(map[string][]byte, len(secret.GetData()))}
	for field, sealed := range secret.GetData() {
		value, err := r.secrets.Open(object.KeyOf(secret), field, sealed)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", object.Describe(secret), err)
		}
		plain.Data[field] = value
	}
	return plain, nil
}

// contents reads what a Deployment's template refers to, and the copies.
func (r *reader) contents(v store.View, d *balsav1.Deployment, sets []Set) (Contents, error) {
	namespace := d.GetMetadata().GetNamespace()
	c := Contents{
		Live: map[revisions.Ref]Content{}, Copies: map[revisions.Ref][]Content{}, Preferred: preferred(sets),
		Taken: func(ref revisions.Ref) bool { _, taken := v.Get(keyOf(namespace, ref)); return taken },
	}
	for _, use := range revisions.Uses(d.GetSpec().GetTemplate()) {
		if kv, ok := v.Get(keyOf(namespace, use.Ref)); ok {
			live, err := r.content(kv)
			if err != nil {
				return c, err
			}
			c.Live[use.Ref] = live
		}
		kind, _ := object.KindByName(use.Kind)
		entry := object.LabelIndex(kind, namespace, revisions.LabelPinnedFrom, revisions.LabelValue(use.Name))
		for kv := range v.ByIndex(entry.Index, entry.Value) {
			have, err := r.content(kv)
			if err != nil {
				return c, err
			}
			if immutable(have.Object) {
				c.Copies[use.Ref] = append(c.Copies[use.Ref], have)
			}
		}
		slices.SortFunc(c.Copies[use.Ref], func(a, b Content) int { return compareNames(a.Object, b.Object) })
	}
	return c, nil
}

func (r *reader) content(kv store.KV) (Content, error) {
	m, ok := kv.Object.(object.Message)
	if !ok {
		return Content{}, fmt.Errorf("%s holds no object", kv.Key)
	}
	f, err := r.fingerprint(m)
	return Content{Object: m, Fingerprint: f}, err
}

func immutable(m object.Message) bool {
	has, ok := m.(interface{ GetImmutable() bool })
	return ok && has.GetImmutable()
}

// preferred lists the copies that ReplicaSets refer to, the newest revision first.
func preferred(sets []Set) map[revisions.Ref][]string {
	newest := slices.Clone(sets)
	slices.SortFunc(newest, func(a, b Set) int { return oldestFirst(&counts{rs: b.ReplicaSet}, &counts{rs: a.ReplicaSet}) })
	out := map[revisions.Ref][]string{}
	for _, s := range newest {
		// One that somebody has spoilt says nothing, as one without.
		pins, _ := revisions.ParsePins(s.ReplicaSet.GetMetadata().GetAnnotations()[revisions.AnnotationPins])
		for ref, name := range pins {
			out[ref] = append(out[ref], name)
		}
	}
	return out
}

func keyOf(namespace string, ref revisions.Ref) string {
	kind, _ := object.KindByName(ref.Kind)
	return object.Key(kind, namespace, ref.Name)
}

// copied makes the copy of a ConfigMap or Secret, without owners, uid and times.
func (r *reader) copied(from object.Message, c Copy) (object.Message, error) {
	meta := &balsav1.ObjectMeta{
		Name: c.Name, Namespace: from.GetMetadata().GetNamespace(),
		Labels: map[string]string{revisions.LabelPinnedFrom: revisions.LabelValue(c.Ref.Name)},
	}
	secret, ok := from.(*balsav1.Secret)
	if !ok {
		m := from.(*balsav1.ConfigMap)
		return &balsav1.ConfigMap{Metadata: meta, Data: maps.Clone(m.GetData()), BinaryData: maps.Clone(m.GetBinaryData()), Immutable: proto.Bool(true)}, nil
	}
	dup, err := r.opened(secret)
	if err != nil {
		return nil, err
	}
	dup.Metadata, dup.Immutable = meta, proto.Bool(true)
	for _, field := range slices.Sorted(maps.Keys(dup.Data)) {
		if dup.Data[field], err = r.secrets.Seal(object.KeyOf(dup), field, dup.Data[field]); err != nil {
			return nil, fmt.Errorf("copy %s: %w", object.Describe(secret), err)
		}
	}
	return dup, nil
}

// ownerRef makes a ReplicaSet one of a copy's owners, and not its controller: it
// may have many.
func ownerRef(rs *balsav1.ReplicaSet) *balsav1.OwnerReference {
	ref := object.NewControllerRef(rs)
	ref.Controller, ref.BlockOwnerDeletion = nil, nil
	return ref
}

func isOwner(m object.Message, rs *balsav1.ReplicaSet) bool {
	return rs.GetMetadata().GetUid() != "" && slices.ContainsFunc(m.GetMetadata().GetOwnerReferences(), func(ref *balsav1.OwnerReference) bool {
		return ref.GetUid() == rs.GetMetadata().GetUid()
	})
}
