package object

import (
	"fmt"
	"slices"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"google.golang.org/protobuf/proto"
)

// Names of the store's spaces that hold objects.
const (
	SpaceObjects = "objects"
	SpaceEvents  = "events"
)

// APIVersionBalsa is the version of the kinds that Kubernetes does not have.
const APIVersionBalsa = "balsa.run/v1"

// Message is an object of any kind. Every generated kind implements it.
type Message interface {
	proto.Message
	GetApiVersion() string
	GetKind() string
	GetMetadata() *balsav1.ObjectMeta
}

// Kind describes a kind of object.
type Kind struct {
	// Name is Kubernetes' name, for example "Pod".
	Name string
	// Plural is the lower-case plural that keys start with, for example "pods".
	Plural string
	// Singular is the lower-case name, for example "pod".
	Singular string
	// APIVersion is what manifests of this kind say, for example "apps/v1".
	APIVersion string
	// Namespaced kinds live in a namespace, the others in the cluster.
	Namespaced bool
	// Short lists abbreviations, for example "po".
	Short []string
	// Space is the store's space that holds objects of this kind.
	Space string
	// New makes an empty message of this kind.
	New func() Message
}

// kinds is never written. Its order is the order in which a manifest's objects
// must be created: what others refer to comes first.
var kinds = [...]Kind{
	{"Namespace", "namespaces", "namespace", "v1", false, []string{"ns"}, SpaceObjects, func() Message { return &balsav1.Namespace{} }},
	{"Node", "nodes", "node", "v1", false, []string{"no"}, SpaceObjects, func() Message { return &balsav1.Node{} }},
	{"ConfigMap", "configmaps", "configmap", "v1", true, []string{"cm"}, SpaceObjects, func() Message { return &balsav1.ConfigMap{} }},
	{"Secret", "secrets", "secret", "v1", true, nil, SpaceObjects, func() Message { return &balsav1.Secret{} }},
	{"StorageClass", "storageclasses", "storageclass", "storage.k8s.io/v1", false, []string{"sc"}, SpaceObjects, func() Message { return &balsav1.StorageClass{} }},
	{"PersistentVolume", "persistentvolumes", "persistentvolume", "v1", false, []string{"pv"}, SpaceObjects, func() Message { return &balsav1.PersistentVolume{} }},
	{"PersistentVolumeClaim", "persistentvolumeclaims", "persistentvolumeclaim", "v1", true, []string{"pvc"}, SpaceObjects, func() Message { return &balsav1.PersistentVolumeClaim{} }},
	{"Service", "services", "service", "v1", true, []string{"svc"}, SpaceObjects, func() Message { return &balsav1.Service{} }},
	{"AddressPool", "addresspools", "addresspool", APIVersionBalsa, false, []string{"pool"}, SpaceObjects, func() Message { return &balsav1.AddressPool{} }},
	{"NetworkPolicy", "networkpolicies", "networkpolicy", "networking.k8s.io/v1", true, []string{"netpol"}, SpaceObjects, func() Message { return &balsav1.NetworkPolicy{} }},
	{"PodDisruptionBudget", "poddisruptionbudgets", "poddisruptionbudget", "policy/v1", true, []string{"pdb"}, SpaceObjects, func() Message { return &balsav1.PodDisruptionBudget{} }},
	{"Deployment", "deployments", "deployment", "apps/v1", true, []string{"deploy"}, SpaceObjects, func() Message { return &balsav1.Deployment{} }},
	{"ReplicaSet", "replicasets", "replicaset", "apps/v1", true, []string{"rs"}, SpaceObjects, func() Message { return &balsav1.ReplicaSet{} }},
	{"Pod", "pods", "pod", "v1", true, []string{"po"}, SpaceObjects, func() Message { return &balsav1.Pod{} }},
	{"EndpointSlice", "endpointslices", "endpointslice", "discovery.k8s.io/v1", true, nil, SpaceObjects, func() Message { return &balsav1.EndpointSlice{} }},
	{"NetworkPolicySlice", "networkpolicyslices", "networkpolicyslice", APIVersionBalsa, true, nil, SpaceObjects, func() Message { return &balsav1.NetworkPolicySlice{} }},
	{"Event", "events", "event", "v1", true, []string{"ev"}, SpaceEvents, func() Message { return &balsav1.Event{} }},
}

// Indexes into kinds.
const (
	kindNamespace = iota
	kindNode
	kindConfigMap
	kindSecret
	kindStorageClass
	kindPersistentVolume
	kindPersistentVolumeClaim
	kindService
	kindAddressPool
	kindNetworkPolicy
	kindPodDisruptionBudget
	kindDeployment
	kindReplicaSet
	kindPod
	kindEndpointSlice
	kindNetworkPolicySlice
	kindEvent
)

// Kinds returns all kinds, in the order in which objects that refer to one
// another should be created.
func Kinds() []Kind { return slices.Clone(kinds[:]) }

// KindOf returns the kind of a message. A message of a type that is no kind is a
// programmer's mistake and panics.
func KindOf(m Message) Kind { return kinds[kindIndex(m)] }

func kindIndex(m Message) int {
	switch m.(type) {
	case *balsav1.Namespace:
		return kindNamespace
	case *balsav1.Node:
		return kindNode
	case *balsav1.ConfigMap:
		return kindConfigMap
	case *balsav1.Secret:
		return kindSecret
	case *balsav1.StorageClass:
		return kindStorageClass
	case *balsav1.PersistentVolume:
		return kindPersistentVolume
	case *balsav1.PersistentVolumeClaim:
		return kindPersistentVolumeClaim
	case *balsav1.Service:
		return kindService
	case *balsav1.AddressPool:
		return kindAddressPool
	case *balsav1.NetworkPolicy:
		return kindNetworkPolicy
	case *balsav1.PodDisruptionBudget:
		return kindPodDisruptionBudget
	case *balsav1.Deployment:
		return kindDeployment
	case *balsav1.ReplicaSet:
		return kindReplicaSet
	case *balsav1.Pod:
		return kindPod
	case *balsav1.EndpointSlice:
		return kindEndpointSlice
	case *balsav1.NetworkPolicySlice:
		return kindNetworkPolicySlice
	case *balsav1.Event:
		return kindEvent
	}
	panic(fmt.Sprintf("object: %T is not a kind", m))
}

// KindByName finds a kind by any of its names, whatever the case: "Pod",
// "pods", "pod", "po".
func KindByName(name string) (Kind, bool) {
	for i := range kinds {
		if kinds[i].is(name) {
			return kinds[i], true
		}
	}
	return Kind{}, false
}

func (k *Kind) is(name string) bool {
	if strings.EqualFold(name, k.Singular) || strings.EqualFold(name, k.Plural) {
		return true
	}
	for _, s := range k.Short {
		if strings.EqualFold(name, s) {
			return true
		}
	}
	return false
}

// KindByPlural finds a kind by the first part of its keys.
func KindByPlural(plural string) (Kind, bool) {
	for i := range kinds {
		if kinds[i].Plural == plural {
			return kinds[i], true
		}
	}
	return Kind{}, false
}

// KindNames lists the kinds' names, for error messages.
func KindNames() []string {
	names := make([]string, len(kinds))
	for i := range kinds {
		names[i] = kinds[i].Name
	}
	return names
}
