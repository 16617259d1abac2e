// Package draining finds out when no node sends new connections to a pod that is
// about to end, and says so by the pod's condition Drained. The pod's node begins
// to stop it only then, so that no request is refused because the pod went before
// the last node had heard of it. See DESIGN.md.
//
// The package refuses to change endpoints, which reconciler/endpoints does, to
// believe that a node has applied what it has not acknowledged in this term, and
// to wait for ever.
package draining

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/reconciler/endpoints"
)

// Reasons of the condition Drained.
const (
	// ReasonAcknowledged: every living node has applied endpoints without the pod.
	ReasonAcknowledged = "Acknowledged"
	// ReasonNotServed: no Service has the pod.
	ReasonNotServed = "NotServed"
	// ReasonTimedOut: the wait is over, whoever has not acknowledged.
	ReasonTimedOut = "TimedOut"
)

// reasonDeadline is the reason in the status of a pod whose active deadline is
// over: its node ends it, and waits as for a deletion.
const reasonDeadline = "DeadlineExceeded"

const (
	// DefaultAcknowledge is how long a pod's end waits for the nodes. The agent's
	// own bound, for when no server says anything, is above it (drainWait of
	// node/pod).
	DefaultAcknowledge = 5 * time.Second
	// maxPerStep bounds the pods that one plan decides; the next goes on.
	maxPerStep = 256
	// maxNamed bounds the nodes and Services that a message names.
	maxNamed = 5
)

// View is what a plan is made from.
type View struct {
	Pods  []Pod
	Nodes []Node
	// Namespaces by name: those of the pods.
	Namespaces map[string]Namespace
}

// Pod is one that ends and is not Drained.
type Pod struct {
	*balsav1.Pod
	// Since is when this leader first saw that it ends.
	Since time.Time
	// Out is the revision at which it was first seen out of all endpoints; 0: it
	// was not, so far.
	Out int64
	// Unreachable: its own host is marked, so it is no endpoint anyway.
	Unreachable bool
}

// Node is what is known of a node's proxy and resolver.
type Node struct {
	Name string
	// Applied is the revision that it has acknowledged in this term; 0: none.
	Applied int64
	// Gone says why the node is not waited for; "": it is.
	Gone string
}

// Namespace holds what may send connections to the pods of a namespace.
type Namespace struct {
	Services []*balsav1.Service
	Slices   []*balsav1.EndpointSlice
	// Closing: the namespace is about to go, and its Services with it.
	Closing bool
}

// Decision is what is said of a pod.
type Decision struct {
	Pod     *balsav1.Pod
	Reason  string
	Message string
	// Took is how long the pod waited.
	Took time.Duration
}

// Actions is the outcome of a plan.
type Actions struct {
	Drained []Decision
	// Out are the revisions at which pods were first seen out of all endpoints, by
	// uid, to be given to the next plan.
	Out map[string]int64
	// Again is when to look again although nothing changes; 0: never.
	Again time.Duration
}

// String prints the actions one a line.
func (a *Actions) String() string {
	var b strings.Builder
	for _, d := range a.Drained {
		fmt.Fprintf(&b, "drained %s %s after %v: %s\n", d.Pod.GetMetadata().GetName(), d.Reason, d.Took, d.Message)
	}
	uids := make([]string, 0, len(a.Out))
	for uid := range a.Out {
		uids = append(uids, uid)
	}
	slices.Sort(uids)
	for _, uid := range uids {
		fmt.Fprintf(&b, "out %s at %d\n", uid, a.Out[uid])
	}
	if a.Again > 0 {
		fmt.Fprintf(&b, "again in %v\n", a.Again)
	}
	return b.String()
}

// Ends tells whether a pod has to be drained: its end was asked for, or its time
// is over, and its node is to stop it in peace.
func Ends(pod *balsav1.Pod) bool {
	if object.PodFinished(pod) || pod.GetSpec().GetNodeName() == "" || object.IsConditionTrue(pod.GetStatus().GetConditions(), object.ConditionDrained) {
		return false
	}
	if object.IsTerminating(pod) {
		return pod.GetMetadata().DeletionGracePeriodSeconds == nil || pod.GetMetadata().GetDeletionGracePeriodSeconds() > 0
	}
	return pod.GetStatus().GetReason() == reasonDeadline
}

// Plan decides which pods are drained at now.
func Plan(v View, now time.Time) Actions {
	p := planner{view: v, now: now, Actions: Actions{Out: map[string]int64{}}}
	pods := slices.SortedFunc(slices.Values(v.Pods), func(a, b Pod) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.GetMetadata().GetUid(), b.GetMetadata().GetUid()))
	})
	for _, pod := range pods {
		if len(p.Drained) == maxPerStep {
			p.Again = time.Nanosecond
			break
		}
		p.judge(pod)
	}
	return p.Actions
}

type planner struct {
	Actions
	view View
	now  time.Time
}

func (p *planner) judge(pod Pod) {
	use := p.view.Namespaces[pod.GetMetadata().GetNamespace()].use(pod)
	reason := ReasonAcknowledged
	if !use.served {
		reason = ReasonNotServed
	}
	switch {
	case len(use.in) > 0:
		p.wait(pod, "still an endpoint of "+named("service", use.in))
		return
	case use.revision == 0:
		p.say(pod, reason, "no service of the namespace sends it connections")
		return
	case pod.Out == 0:
		pod.Out = use.revision
	}
	p.Out[pod.GetMetadata().GetUid()] = pod.Out
	missing, gone := p.missing(pod.Out)
	if len(missing) > 0 {
		p.wait(pod, fmt.Sprintf("not acknowledged by %s (revision %d)", named("node", missing), pod.Out))
		return
	}
	text := fmt.Sprintf("%s applied revision %d", control.Counted(len(p.view.Nodes)-len(gone), "node"), pod.Out)
	if len(gone) > 0 {
		text += "; not waited for: " + strings.Join(short(gone), ", ")
	}
	p.say(pod, reason, text)
}

// missing are the nodes that have not acknowledged a revision, and those that
// nobody waits for, with the reason.
func (p *planner) missing(revision int64) (missing, gone []string) {
	for _, n := range p.view.Nodes {
		switch {
		case n.Gone != "":
			gone = append(gone, n.Name+" ("+n.Gone+")")
		case n.Applied < revision:
			missing = append(missing, n.Name)
		}
	}
	slices.Sort(missing)
	slices.Sort(gone)
	return missing, gone
}

func (p *planner) say(pod Pod, reason, message string) {
	p.Drained = append(p.Drained, Decision{Pod: pod.Pod, Reason: reason, Message: message, Took: max(0, p.now.Sub(pod.Since))})
}

// wait gives the pod its time, and says what was missing when that is over.
func (p *planner) wait(pod Pod, missing string) {
	left := pod.Since.Add(DefaultAcknowledge).Sub(p.now)
	if left <= 0 {
		p.say(pod, ReasonTimedOut, fmt.Sprintf("after %v %s; requests may meet the pod while it stops", DefaultAcknowledge, missing))
		return
	}
	if p.Again == 0 || left < p.Again {
		p.Again = left
	}
}

func named(thing string, names []string) string {
	if len(names) > 1 {
		thing += "s"
	}
	return thing + " " + strings.Join(short(names), ", ")
}

func short(names []string) []string {
	if len(names) <= maxNamed {
		return names
	}
	return append(slices.Clone(names[:maxNamed]), fmt.Sprintf("%d more", len(names)-maxNamed))
}

// use is what the Services of a namespace make of a pod.
type use struct {
	// served: a Service has the pod, ready or not.
	served bool
	// in are the Services that may still send it connections.
	in []string
	// revision is that of the newest slice of the namespace: whatever any of them
	// had said of the pod before is gone once it is applied. 0: there is none.
	revision int64
}

func (n Namespace) use(pod Pod) (u use) {
	services := map[string]*balsav1.Service{}
	for _, s := range n.Services {
		services[s.GetMetadata().GetName()] = s
	}
	of := map[string][]*balsav1.EndpointSlice{}
	for _, s := range n.Slices {
		u.revision = max(u.revision, control.ModRevision(s))
		name := s.GetMetadata().GetLabels()[object.LabelServiceName]
		of[name] = append(of[name], s)
	}
	if n.Closing || pod.GetStatus().GetPodIp() == "" {
		u.revision = 0
		return u
	}
	names := make([]string, 0, len(services))
	for name := range services {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		served, in := serves(services[name], of[name], pod)
		u.served = u.served || served
		if in {
			u.in = append(u.in, name)
		}
	}
	return u
}

// serves tells whether a Service has a pod, and whether it may send it new
// connections. A Service that publishes addresses that are not ready goes on
// naming the pod until it has gone, as it was asked to: nobody waits for it. Nor
// for one that is about to go.
func serves(svc *balsav1.Service, of []*balsav1.EndpointSlice, pod Pod) (served, in bool) {
	if svc.GetSpec().GetPublishNotReadyAddresses() || object.IsTerminating(svc) {
		return false, false
	}
	selects := len(svc.GetSpec().GetSelector()) > 0 && object.ServiceSelector(svc).Matches(pod.GetMetadata().GetLabels())
	is, ready, count := false, false, 0
	for _, slice := range of {
		count += len(slice.GetEndpoints())
		for _, e := range slice.GetEndpoints() {
			if e.GetTargetRef().GetUid() == pod.GetMetadata().GetUid() || slices.Contains(e.GetAddresses(), pod.GetStatus().GetPodIp()) && e.GetTargetRef() == nil {
				is = true
				ready = ready || !out(e, pod)
			}
		}
	}
	if !is && selects && !pod.Unreachable && count < endpoints.MaxEndpoints && len(of) < endpoints.MaxPortSets {
		// The endpoints are older than the pod, or than its end: what is being
		// written may have it as ready.
		return true, true
	}
	return is || selects, ready
}

// out tells whether an endpoint shows the pod as not to be sent anything. Of one
// that was deleted it must say that it is terminating: else it was made before,
// and another like it may be on its way.
func out(e *balsav1.Endpoint, pod Pod) bool {
	c := e.GetConditions()
	if c == nil || c.Ready == nil || *c.Ready {
		return false
	}
	return c.GetTerminating() || !object.IsTerminating(pod)
}
