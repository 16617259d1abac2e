// Package endpoints derives the EndpointSlices of each Service from its pods. It
// refuses to judge whether a node is alive: it reads the mark that
// reconciler/nodes leaves on the Node, and takes the endpoints of marked hosts
// away at once.
package endpoints

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

const (
	// MaxEndpoints bounds the endpoints of a Service. Of more, those that are not
	// ready are left out first.
	MaxEndpoints = 1000
	// MaxPortSets bounds the slices of a Service: there is one for each way in
	// which pods resolve the Service's named ports.
	MaxPortSets = 8
)

// View is what a plan is made from.
type View struct {
	Service *balsav1.Service
	// Pods holds those that the Service's selector matches.
	Pods []*balsav1.Pod
	// Unreachable tells whether the host of a node is out of reach.
	Unreachable func(node string) bool
	// Slices holds the EndpointSlices that are there under the Service's label,
	// and the one of its name.
	Slices []*balsav1.EndpointSlice
}

// Actions is the outcome of a plan.
type Actions struct {
	Create, Update, Delete []*balsav1.EndpointSlice
	// LeftOut is how many endpoints a limit kept out.
	LeftOut int
}

// Empty tells whether there is nothing to write.
func (a *Actions) Empty() bool { return len(a.Create)+len(a.Update)+len(a.Delete) == 0 }

// String prints the actions, with an endpoint a line.
func (a *Actions) String() string {
	var b strings.Builder
	list := func(verb string, slices []*balsav1.EndpointSlice) {
		for _, s := range slices {
			fmt.Fprintf(&b, "%s %s", verb, s.GetMetadata().GetName())
			for _, p := range s.GetPorts() {
				fmt.Fprintf(&b, " %s:%d/%s", p.GetName(), p.GetPort(), p.GetProtocol())
			}
			b.WriteByte('\n')
			for _, e := range s.GetEndpoints() {
				c := e.GetConditions()
				fmt.Fprintf(&b, "  %s %s on %s ready=%v serving=%v terminating=%v\n", e.GetAddresses()[0], e.GetTargetRef().GetName(),
					e.GetNodeName(), c.GetReady(), c.GetServing(), c.GetTerminating())
			}
		}
	}
	list("create", a.Create)
	list("update", a.Update)
	for _, s := range a.Delete {
		fmt.Fprintf(&b, "delete %s\n", s.GetMetadata().GetName())
	}
	if a.LeftOut > 0 {
		fmt.Fprintf(&b, "left out %d\n", a.LeftOut)
	}
	return b.String()
}

// Plan decides how the slices of a Service shall be. A Service without a
// selector has none.
func Plan(v View) (a Actions) {
	wanted, leftOut := wantedSlices(v)
	a.LeftOut = leftOut
	for _, s := range v.Slices {
		if wanted[s.GetMetadata().GetName()] == nil {
			a.Delete = append(a.Delete, s)
		}
	}
	for _, name := range sortedNames(wanted) {
		i := slices.IndexFunc(v.Slices, func(s *balsav1.EndpointSlice) bool { return s.GetMetadata().GetName() == name })
		if i < 0 {
			a.Create = append(a.Create, wanted[name])
			continue
		}
		next := object.Clone(v.Slices[i])
		next.AddressType, next.Endpoints, next.Ports = wanted[name].AddressType, wanted[name].Endpoints, wanted[name].Ports
		next.Metadata.Labels, next.Metadata.OwnerReferences = wanted[name].Metadata.Labels, wanted[name].Metadata.OwnerReferences
		if !object.Same(next, v.Slices[i]) {
			object.BumpGeneration(v.Slices[i], next)
			a.Update = append(a.Update, next)
		}
	}
	return a
}

func sortedNames(m map[string]*balsav1.EndpointSlice) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// group is the endpoints whose pods resolve the Service's ports alike.
type group struct {
	ports     []*balsav1.EndpointPort
	signature string
	endpoints []*balsav1.Endpoint
	ready     int
}

// wantedSlices makes the slices by name: the group with most ready endpoints has
// the Service's own name, also when there is no endpoint at all.
func wantedSlices(v View) (wanted map[string]*balsav1.EndpointSlice, leftOut int) {
	wanted = map[string]*balsav1.EndpointSlice{}
	if len(v.Service.GetSpec().GetSelector()) == 0 {
		return wanted, 0
	}
	groups, leftOut := groupsOf(v)
	for i, g := range groups {
		name := v.Service.GetMetadata().GetName()
		if i > 0 {
			sum := sha256.Sum256([]byte(g.signature))
			name += "-" + hex.EncodeToString(sum[:4])
		}
		wanted[name] = newSlice(v.Service, name, g)
	}
	return wanted, leftOut
}

func groupsOf(v View) (groups []*group, leftOut int) {
	pods, leftOut := fit(v)
	for _, pod := range pods {
		ports := resolve(v.Service, pod)
		signature := signatureOf(ports)
		i := slices.IndexFunc(groups, func(g *group) bool { return g.signature == signature })
		if i < 0 {
			i = len(groups)
			groups = append(groups, &group{ports: ports, signature: signature})
		}
		e := endpointOf(v.Service, pod)
		groups[i].endpoints = append(groups[i].endpoints, e)
		if e.GetConditions().GetReady() {
			groups[i].ready++
		}
	}
	slices.SortFunc(groups, func(a, b *group) int {
		return cmp.Or(cmp.Compare(b.ready, a.ready), cmp.Compare(len(b.endpoints), len(a.endpoints)), strings.Compare(a.signature, b.signature))
	})
	if len(groups) == 0 {
		groups = []*group{{ports: resolve(v.Service, nil)}}
	}
	for _, g := range groups[min(len(groups), MaxPortSets):] {
		leftOut += len(g.endpoints)
	}
	return groups[:min(len(groups), MaxPortSets)], leftOut
}

// fit are the pods that are endpoints, by name, and how many the limit keeps out.
func fit(v View) (pods []*balsav1.Pod, leftOut int) {
	for _, pod := range v.Pods {
		if pod.GetStatus().GetPodIp() != "" && !object.PodFinished(pod) && !v.Unreachable(pod.GetSpec().GetNodeName()) {
			pods = append(pods, pod)
		}
	}
	byName := func(a, b *balsav1.Pod) int {
		return strings.Compare(a.GetMetadata().GetName(), b.GetMetadata().GetName())
	}
	slices.SortFunc(pods, byName)
	if len(pods) > MaxEndpoints {
		slices.SortStableFunc(pods, func(a, b *balsav1.Pod) int { return cmp.Compare(notReady(a), notReady(b)) })
		leftOut = len(pods) - MaxEndpoints
		pods = pods[:MaxEndpoints]
		slices.SortFunc(pods, byName)
	}
	return pods, leftOut
}

func notReady(pod *balsav1.Pod) int {
	if object.PodReady(pod) && !object.IsTerminating(pod) {
		return 0
	}
	return 1
}

// endpointOf is a pod as an endpoint. Serving is readiness alone; ready also
// means that the pod is not about to go, or that the Service does not care, as in
// Kubernetes.
func endpointOf(svc *balsav1.Service, pod *balsav1.Pod) *balsav1.Endpoint {
	serving, terminating := object.PodReady(pod), object.IsTerminating(pod)
	ready := serving && !terminating || svc.GetSpec().GetPublishNotReadyAddresses()
	ref := object.Reference(pod)
	ref.ResourceVersion = "" // would change the slice with each status of the pod
	return &balsav1.Endpoint{
		Addresses: []string{pod.GetStatus().GetPodIp()},
		Conditions: &balsav1.EndpointConditions{
			Ready: proto.Bool(ready), Serving: proto.Bool(serving), Terminating: proto.Bool(terminating),
		},
		Hostname: hostnameIn(svc, pod), NodeName: pod.GetSpec().GetNodeName(), TargetRef: ref,
	}
}

// hostnameIn is the name that a pod has below a Service's: only where the pod says
// that it belongs there.
func hostnameIn(svc *balsav1.Service, pod *balsav1.Pod) string {
	if pod.GetSpec().GetSubdomain() != svc.GetMetadata().GetName() {
		return ""
	}
	return pod.GetSpec().GetHostname()
}

func newSlice(svc *balsav1.Service, name string, g *group) *balsav1.EndpointSlice {
	return &balsav1.EndpointSlice{
		Metadata: &balsav1.ObjectMeta{
			Name: name, Namespace: svc.GetMetadata().GetNamespace(),
			Labels:          map[string]string{object.LabelServiceName: svc.GetMetadata().GetName()},
			OwnerReferences: []*balsav1.OwnerReference{object.NewControllerRef(svc)},
		},
		AddressType: object.AddressIPv4, Endpoints: g.endpoints, Ports: g.ports,
	}
}
