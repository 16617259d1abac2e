package object

import (
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"google.golang.org/protobuf/proto"
)

// ControllerOf returns the reference to the owner that manages an object, nil
// when it has none.
func ControllerOf(m Message) *balsav1.OwnerReference {
	for _, ref := range m.GetMetadata().GetOwnerReferences() {
		if ref.GetController() {
			return ref
		}
	}
	return nil
}

// IsControlledBy tells whether owner manages m.
func IsControlledBy(m, owner Message) bool {
	ref := ControllerOf(m)
	return ref != nil && ref.GetUid() == owner.GetMetadata().GetUid()
}

// NewControllerRef makes the reference by which owner manages another object.
func NewControllerRef(owner Message) *balsav1.OwnerReference {
	kind := KindOf(owner)
	return &balsav1.OwnerReference{
		ApiVersion:         kind.APIVersion,
		Kind:               kind.Name,
		Name:               owner.GetMetadata().GetName(),
		Uid:                owner.GetMetadata().GetUid(),
		Controller:         proto.Bool(true),
		BlockOwnerDeletion: proto.Bool(true),
	}
}

// Reference points at an object, as events and endpoints do.
func Reference(m Message) *balsav1.ObjectReference {
	kind := KindOf(m)
	return &balsav1.ObjectReference{
		ApiVersion:      kind.APIVersion,
		Kind:            kind.Name,
		Namespace:       m.GetMetadata().GetNamespace(),
		Name:            m.GetMetadata().GetName(),
		Uid:             m.GetMetadata().GetUid(),
		ResourceVersion: m.GetMetadata().GetResourceVersion(),
	}
}
