package object

import (
	"fmt"
	"strconv"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Limits of objects.
const (
	// MaxObjectBytes bounds an object's encoded size.
	MaxObjectBytes = 3 << 19
	// MaxDataBytes bounds the values of a ConfigMap or a Secret together, with
	// their keys.
	MaxDataBytes = 1 << 20
	// maxAnnotationBytes bounds all annotations of an object, keys and values.
	maxAnnotationBytes = 256 << 10
	maxOwnerReferences = 32
	maxLabels          = 128
	maxPort            = 65535
)

// Validate checks a defaulted object that w is about to create. It does not ask
// whether what the object refers to exists.
func Validate(m Message, w Writer) Violations {
	c := &check{writer: w}
	c.creatable(m)
	c.object(m)
	return c.found
}

// ValidateUpdate checks a defaulted object by which w is about to replace old.
// Call CarryOver before.
func ValidateUpdate(old, next Message, w Writer) Violations {
	c := &check{writer: w}
	c.updatable(next)
	c.object(next)
	c.identity(old, next)
	c.immutable(old, next)
	return c.found
}

// ValidateInput checks that what a user creates or applies does not claim what
// only the server writes: status and parts of metadata. uid and resourceVersion
// are the caller's business, as preconditions. Call it before anything else.
func ValidateInput(m Message) Violations {
	c := &check{}
	meta := m.GetMetadata()
	server := func(path string, set bool) {
		if set {
			c.add(Violation{Field: path, Message: "is written by the server only", Hint: "remove the field"})
		}
	}
	server("metadata.generation", meta.GetGeneration() != 0)
	server("metadata.creationTimestamp", meta.GetCreationTimestamp() != nil)
	server("metadata.deletionTimestamp", meta.GetDeletionTimestamp() != nil)
	server("metadata.deletionGracePeriodSeconds", meta != nil && meta.DeletionGracePeriodSeconds != nil)
	server("metadata.managedFields", len(meta.GetManagedFields()) > 0)
	r := m.ProtoReflect()
	if fd := r.Descriptor().Fields().ByName("status"); fd != nil {
		server("status", r.Has(fd) && proto.Size(r.Get(fd).Message().Interface()) > 0)
	}
	return c.found
}

// creatable refuses kinds that only the system creates.
func (c *check) creatable(m Message) {
	if _, isNode := m.(*balsav1.Node); isNode && c.writer == User {
		c.add(Violation{Field: "kind", Message: "a Node is made by its agent only", Hint: "start an agent with a join token"})
	}
	if pod, isPod := m.(*balsav1.Pod); isPod && len(pod.GetSpec().GetEphemeralContainers()) > 0 {
		c.noEphemeral("spec.ephemeralContainers")
	}
	c.updatable(m)
}

// updatable refuses kinds that only the system writes.
func (c *check) updatable(m Message) {
	if c.writer == System {
		return
	}
	switch m.(type) {
	case *balsav1.EndpointSlice:
		c.add(Violation{Field: "kind", Message: "an EndpointSlice is derived from a Service and its pods, and written by the system only", Hint: "change the Service's selector or the pods' labels"})
	case *balsav1.NetworkPolicySlice:
		c.add(Violation{Field: "kind", Message: "a NetworkPolicySlice is derived from a NetworkPolicy and the pods, and written by the system only", Hint: "change the NetworkPolicy, or the labels of the pods or namespaces"})
	case *balsav1.Event:
		c.add(Violation{Field: "kind", Message: "an Event is written by the system only"})
	}
}

func (c *check) object(m Message) {
	c.typeMeta(m)
	c.metadata(m)
	switch m := m.(type) {
	case *balsav1.Namespace:
	case *balsav1.Node:
		c.node(m)
	case *balsav1.Pod:
		c.pod(m)
	case *balsav1.ReplicaSet:
		c.replicaSet(m.GetSpec())
	case *balsav1.Deployment:
		c.deployment(m.GetSpec())
	case *balsav1.Service:
		c.service(ensure(m.GetSpec()))
		c.serviceStatus(m.GetStatus())
	case *balsav1.NetworkPolicy:
		c.networkPolicy(m.GetSpec())
	case *balsav1.NetworkPolicySlice:
		c.policySlice(m)
	case *balsav1.PodDisruptionBudget:
		c.budget(ensure(m.GetSpec()))
	case *balsav1.AddressPool:
		c.addressPool(m)
	case *balsav1.StorageClass:
		c.storageClass(m)
	case *balsav1.PersistentVolume:
		c.persistentVolume(m.GetSpec())
	case *balsav1.PersistentVolumeClaim:
		c.claim(m.GetSpec())
	case *balsav1.EndpointSlice:
		c.endpointSlice(m)
	case *balsav1.ConfigMap:
		c.configMap(m)
	case *balsav1.Secret:
		c.secret(m)
	case *balsav1.Event:
		c.event(m)
	}
	if size := proto.Size(m); size > MaxObjectBytes {
		c.add(Violation{Field: "metadata.name", Message: "the object is too large", Found: strconv.Itoa(size) + " bytes", Allowed: "at most " + strconv.Itoa(MaxObjectBytes) + " bytes"})
	}
}

func (c *check) typeMeta(m Message) {
	kind := kinds[kindIndex(m)]
	if m.GetApiVersion() != kind.APIVersion {
		c.add(Violation{Field: "apiVersion", Message: "does not fit the kind " + kind.Name, Found: quoted(m.GetApiVersion()), Allowed: kind.APIVersion})
	}
	if m.GetKind() != kind.Name {
		c.add(Violation{Field: "kind", Message: "does not fit the object", Found: quoted(m.GetKind()), Allowed: kind.Name})
	}
}

func (c *check) metadata(m Message) {
	kind, meta := kinds[kindIndex(m)], m.GetMetadata()
	c.name(kind, meta)
	if kind.Namespaced {
		c.text("metadata.namespace", meta.GetNamespace(), dnsLabelProblem(meta.GetNamespace()))
	} else if meta.GetNamespace() != "" {
		c.add(Violation{Field: "metadata.namespace", Message: withArticle(kind.Name) + " belongs to no namespace", Found: quoted(meta.GetNamespace()), Hint: "remove the field"})
	}
	c.labelsAndAnnotations("metadata", meta)
	c.owners(meta.GetOwnerReferences())
}

func (c *check) name(kind Kind, meta *balsav1.ObjectMeta) {
	if prefix := meta.GetGenerateName(); prefix != "" {
		// What the prefix grows into must be a name.
		if problem := NameProblem(kind, prefix[:min(len(prefix), maxGeneratedPrefix)]+"x"); problem != "" {
			c.add(Violation{Field: "metadata.generateName", Message: "is not the beginning of a name", Found: quoted(prefix), Allowed: problem})
		}
		if meta.GetName() == "" {
			return
		}
	}
	if meta.GetName() == "" {
		c.required("metadata.name", "give the object a name")
		return
	}
	c.text("metadata.name", meta.GetName(), NameProblem(kind, meta.GetName()))
}

func (c *check) labelsAndAnnotations(path string, meta *balsav1.ObjectMeta) {
	c.atMost(field(path, "labels"), len(meta.GetLabels()), maxLabels, "labels")
	c.labels(field(path, "labels"), meta.GetLabels())
	here, size := field(path, "annotations"), 0
	for _, key := range sortedKeys(meta.GetAnnotations()) {
		c.text(mapKey(here, key), key, labelKeyProblem(key))
		size += len(key) + len(meta.GetAnnotations()[key])
	}
	if size > maxAnnotationBytes {
		c.add(Violation{Field: here, Message: "are too large together", Found: strconv.Itoa(size) + " bytes", Allowed: "at most " + strconv.Itoa(maxAnnotationBytes) + " bytes"})
	}
}

func (c *check) owners(refs []*balsav1.OwnerReference) {
	const path = "metadata.ownerReferences"
	if !c.atMost(path, len(refs), maxOwnerReferences, "owners") {
		return
	}
	controller := ""
	uids := map[string]bool{}
	for i, ref := range refs {
		here := index(path, i)
		for _, f := range []struct{ name, value string }{
			{"apiVersion", ref.GetApiVersion()}, {"kind", ref.GetKind()}, {"name", ref.GetName()}, {"uid", ref.GetUid()},
		} {
			if f.value == "" {
				c.required(field(here, f.name), "")
			}
		}
		if uids[ref.GetUid()] && ref.GetUid() != "" {
			c.duplicate(field(here, "uid"), quoted(ref.GetUid()))
		}
		uids[ref.GetUid()] = true
		if ref.GetController() && controller != "" {
			c.add(Violation{Field: field(here, "controller"), Message: "only one owner may be the controller", Found: "also " + controller, Allowed: "one"})
		} else if ref.GetController() {
			controller = here
		}
	}
}

// identity checks that next is the object that old is.
func (c *check) identity(old, next Message) {
	from, to := old.GetMetadata(), next.GetMetadata()
	c.same("metadata.name", from.GetName(), to.GetName())
	c.same("metadata.namespace", from.GetNamespace(), to.GetNamespace())
	c.same("metadata.uid", from.GetUid(), to.GetUid())
	if !proto.Equal(from.GetCreationTimestamp(), to.GetCreationTimestamp()) {
		c.add(Violation{Field: "metadata.creationTimestamp", Message: "never changes"})
	}
	if from.GetDeletionTimestamp() != nil && to.GetDeletionTimestamp() == nil {
		c.add(Violation{Field: "metadata.deletionTimestamp", Message: "a deletion cannot be taken back", Hint: "wait until the object is gone and create it again"})
	}
}

// same checks a text that never changes. Not for values of Secrets.
func (c *check) same(path, old, next string) {
	if old != next {
		c.add(Violation{Field: path, Message: "never changes", Found: quoted(next), Allowed: quoted(old)})
	}
}

func (c *check) immutable(old, next Message) {
	switch next := next.(type) {
	case *balsav1.Pod:
		c.podUpdate(old.(*balsav1.Pod), next)
	case *balsav1.Deployment:
		c.selectorUpdate(old.(*balsav1.Deployment).GetSpec().GetSelector(), next.GetSpec().GetSelector())
	case *balsav1.ReplicaSet:
		c.selectorUpdate(old.(*balsav1.ReplicaSet).GetSpec().GetSelector(), next.GetSpec().GetSelector())
	case *balsav1.Service:
		c.serviceUpdate(ensure(old.(*balsav1.Service).GetSpec()), ensure(next.GetSpec()))
	case *balsav1.ConfigMap:
		c.configMapUpdate(old.(*balsav1.ConfigMap), next)
	case *balsav1.Secret:
		c.secretUpdate(old.(*balsav1.Secret), next)
	case *balsav1.Node:
		c.nodeUpdate(old.(*balsav1.Node), next)
	case *balsav1.StorageClass:
		c.storageClassUpdate(old.(*balsav1.StorageClass), next)
	case *balsav1.PersistentVolume:
		c.persistentVolumeUpdate(old.(*balsav1.PersistentVolume).GetSpec(), next.GetSpec())
	case *balsav1.PersistentVolumeClaim:
		c.claimUpdate(old.(*balsav1.PersistentVolumeClaim).GetSpec(), next.GetSpec())
	case *balsav1.EndpointSlice:
		c.same("addressType", old.(*balsav1.EndpointSlice).GetAddressType(), next.GetAddressType())
	}
}

func (c *check) selectorUpdate(old, next *balsav1.LabelSelector) {
	if !proto.Equal(old, next) {
		c.add(Violation{
			Field: "spec.selector", Message: "never changes", Found: selectorText(next), Allowed: selectorText(old),
			Hint: "delete the object and create it again, or use another name",
		})
	}
}

func selectorText(ls *balsav1.LabelSelector) string {
	s, err := SelectorFrom(ls)
	if err != nil {
		return "a selector that is not valid"
	}
	return quoted(s.String())
}

// selector checks a LabelSelector and returns it where it is good.
func (c *check) selector(path string, ls *balsav1.LabelSelector) (Selector, bool) {
	before := len(c.found)
	c.labels(field(path, "matchLabels"), ls.GetMatchLabels())
	for i, e := range ls.GetMatchExpressions() {
		if _, err := newRequirement(e.GetKey(), e.GetOperator(), e.GetValues()); err != nil {
			c.add(Violation{Field: index(field(path, "matchExpressions"), i), Message: err.Error()})
		}
	}
	if len(c.found) > before {
		return Selector{}, false
	}
	s, err := SelectorFrom(ls)
	return s, err == nil
}

// size reports values that are too large together.
func (c *check) size(path string, size, limit int) {
	if size > limit {
		c.add(Violation{Field: path, Message: "too large together", Found: fmt.Sprintf("%d bytes", size), Allowed: fmt.Sprintf("at most %d bytes", limit)})
	}
}
