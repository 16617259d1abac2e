package object

import (
	"errors"
	"fmt"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// ErrNoObject is Unwrap's answer to an envelope that holds nothing.
var ErrNoObject = errors.New("no object given: set one of its kinds, for example {\"pod\": {…}}")

// Wrap puts a message into the envelope of the wire. The message is shared.
func Wrap(m Message) *balsav1.Object {
	switch m := m.(type) {
	case *balsav1.Namespace:
		return &balsav1.Object{Object: &balsav1.Object_Namespace{Namespace: m}}
	case *balsav1.Node:
		return &balsav1.Object{Object: &balsav1.Object_Node{Node: m}}
	case *balsav1.ConfigMap:
		return &balsav1.Object{Object: &balsav1.Object_ConfigMap{ConfigMap: m}}
	case *balsav1.Secret:
		return &balsav1.Object{Object: &balsav1.Object_Secret{Secret: m}}
	case *balsav1.StorageClass:
		return &balsav1.Object{Object: &balsav1.Object_StorageClass{StorageClass: m}}
	case *balsav1.PersistentVolume:
		return &balsav1.Object{Object: &balsav1.Object_PersistentVolume{PersistentVolume: m}}
	case *balsav1.PersistentVolumeClaim:
		return &balsav1.Object{Object: &balsav1.Object_PersistentVolumeClaim{PersistentVolumeClaim: m}}
	case *balsav1.Service:
		return &balsav1.Object{Object: &balsav1.Object_Service{Service: m}}
	case *balsav1.AddressPool:
		return &balsav1.Object{Object: &balsav1.Object_AddressPool{AddressPool: m}}
	case *balsav1.NetworkPolicy:
		return &balsav1.Object{Object: &balsav1.Object_NetworkPolicy{NetworkPolicy: m}}
	case *balsav1.PodDisruptionBudget:
		return &balsav1.Object{Object: &balsav1.Object_PodDisruptionBudget{PodDisruptionBudget: m}}
	case *balsav1.Deployment:
		return &balsav1.Object{Object: &balsav1.Object_Deployment{Deployment: m}}
	case *balsav1.ReplicaSet:
		return &balsav1.Object{Object: &balsav1.Object_ReplicaSet{ReplicaSet: m}}
	case *balsav1.Pod:
		return &balsav1.Object{Object: &balsav1.Object_Pod{Pod: m}}
	case *balsav1.EndpointSlice:
		return &balsav1.Object{Object: &balsav1.Object_EndpointSlice{EndpointSlice: m}}
	case *balsav1.NetworkPolicySlice:
		return &balsav1.Object{Object: &balsav1.Object_NetworkPolicySlice{NetworkPolicySlice: m}}
	case *balsav1.Event:
		return &balsav1.Object{Object: &balsav1.Object_Event{Event: m}}
	}
	panic(fmt.Sprintf("object: %T is not a kind", m))
}

// Unwrap takes the message out of the envelope; ErrNoObject when it is empty.
func Unwrap(o *balsav1.Object) (Message, error) {
	switch o := o.GetObject().(type) {
	case *balsav1.Object_Namespace:
		return found(o.Namespace)
	case *balsav1.Object_Node:
		return found(o.Node)
	case *balsav1.Object_ConfigMap:
		return found(o.ConfigMap)
	case *balsav1.Object_Secret:
		return found(o.Secret)
	case *balsav1.Object_StorageClass:
		return found(o.StorageClass)
	case *balsav1.Object_PersistentVolume:
		return found(o.PersistentVolume)
	case *balsav1.Object_PersistentVolumeClaim:
		return found(o.PersistentVolumeClaim)
	case *balsav1.Object_Service:
		return found(o.Service)
	case *balsav1.Object_AddressPool:
		return found(o.AddressPool)
	case *balsav1.Object_NetworkPolicy:
		return found(o.NetworkPolicy)
	case *balsav1.Object_PodDisruptionBudget:
		return found(o.PodDisruptionBudget)
	case *balsav1.Object_Deployment:
		return found(o.Deployment)
	case *balsav1.Object_ReplicaSet:
		return found(o.ReplicaSet)
	case *balsav1.Object_Pod:
		return found(o.Pod)
	case *balsav1.Object_EndpointSlice:
		return found(o.EndpointSlice)
	case *balsav1.Object_NetworkPolicySlice:
		return found(o.NetworkPolicySlice)
	case *balsav1.Object_Event:
		return found(o.Event)
	}
	return nil, ErrNoObject
}

// found guards against a typed nil inside the oneof.
func found[M interface {
	comparable
	Message
}](m M) (Message, error) {
	var none M
	if m == none {
		return nil, ErrNoObject
	}
	return m, nil
}
