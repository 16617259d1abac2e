package scheduler

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/balsa-run/balsa/object"
)

// View is what a plan is made from. Plan does not change it.
type View struct {
	Nodes []Node
	// Placed holds the pods that are bound to a node and not finished; a pod that
	// is being deleted still uses its node.
	Placed []Pod
	// Pending holds the pods to place.
	Pending []Pod
}

// Resources is what a pod asks for, or a node offers.
type Resources struct {
	MilliCPU int64
	// Memory and Storage, which is ephemeral, are in bytes.
	Memory  int64
	Storage int64
	Pods    int64
}

// Add returns the sum.
func (r Resources) Add(o Resources) Resources {
	return Resources{r.MilliCPU + o.MilliCPU, r.Memory + o.Memory, r.Storage + o.Storage, r.Pods + o.Pods}
}

// Node is a node as placement sees it.
type Node struct {
	Name   string
	Labels map[string]string
	Ready  bool
	// Cordoned is spec.unschedulable: no new pods.
	Cordoned    bool
	Taints      []Taint
	Allocatable Resources
}

// Taint is one of a node's taints.
type Taint struct{ Key, Value, Effect string }

// Hard taints keep pods away; of the others a node without is preferred.
func (t Taint) Hard() bool { return t.Effect != object.TaintPreferNoSchedule }

// String is the taint as people write it.
func (t Taint) String() string {
	if t.Value == "" {
		return t.Key + ":" + t.Effect
	}
	return t.Key + "=" + t.Value + ":" + t.Effect
}

// Pod is a pod as placement sees it.
type Pod struct {
	Namespace string
	Name      string
	UID       string
	// Owner is the UID of the controlling owner; pods of one owner are spread.
	Owner  string
	Labels map[string]string
	// Node is where the pod is bound; empty for a pending one.
	Node string
	// Terminating pods use their node but do not count for spreading.
	Terminating  bool
	Requests     Resources
	NodeSelector map[string]string
	Spread       []Constraint
	// Tolerates tells whether the pod may be where a taint is; nil: nowhere.
	// Tolerations identifies it: pods of one text tolerate the same.
	Tolerates   func(Taint) bool
	Tolerations string
	// Volumes names the nodes that the pod's persistent volumes lie on: it can
	// only be where all of them are.
	Volumes []string
	// HostPorts are the ports of the node that the pod takes; two pods of a node
	// cannot have the same.
	HostPorts []object.HostPort
	// Blocked says why no node could take the pod; empty: one could.
	Blocked string
	// Priority: pods with more are placed first.
	Priority int32
	Created  time.Time
}

// Key is namespace/name.
func (p *Pod) Key() string { return p.Namespace + "/" + p.Name }

// Constraint is one of a pod's topologySpreadConstraints.
type Constraint struct {
	// MaxSkew is how many matching pods the pod's domain may hold beyond the
	// emptiest domain.
	MaxSkew int64
	// TopologyKey is a label of nodes; nodes of one value are one domain.
	TopologyKey string
	// Hard is DoNotSchedule; otherwise a smaller skew is only preferred.
	Hard     bool
	Selector Selector
}

// Selector chooses pods by label. String identifies it: two selectors with the
// same string match the same pods.
type Selector interface {
	Matches(labels map[string]string) bool
	String() string
}

// Decisions is the outcome: each pending pod is in exactly one of the lists.
type Decisions struct {
	// Bindings stand in the order in which they were decided; each was made with
	// those before it in place.
	Bindings []Binding
	// Unplaced stand by the order of Pending. No one of them fits any node once
	// all Bindings are in place.
	Unplaced []Unplaced
}

// Binding puts a pod on a node.
type Binding struct {
	Namespace, Name, UID string
	Node                 string
}

// Unplaced is a pod that fits nowhere, and why. Pods that ask for the same share
// one Explanation.
type Unplaced struct {
	Namespace, Name, UID string
	Why                  *Explanation
}

// String prints the decisions one a line, for golden tests and logs.
func (d Decisions) String() string {
	var b strings.Builder
	for _, x := range d.Bindings {
		b.WriteString("bind " + x.Namespace + "/" + x.Name + " to " + x.Node + "\n")
	}
	for _, x := range d.Unplaced {
		b.WriteString("wait " + x.Namespace + "/" + x.Name + ": " + x.Why.Message() + "\n")
	}
	return b.String()
}

// inOrder gives the indices of pods by priority, the highest first; then the
// oldest first; then by name.
func inOrder(pods []Pod) []int {
	order := make([]int, len(pods))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		x, y := &pods[a], &pods[b]
		if c := cmp.Compare(y.Priority, x.Priority); c != 0 {
			return c
		}
		if c := x.Created.Compare(y.Created); c != 0 {
			return c
		}
		if c := strings.Compare(x.Namespace, y.Namespace); c != 0 {
			return c
		}
		return strings.Compare(x.Name, y.Name)
	})
	return order
}

// signature is equal for pods that every node treats alike, so that a plan
// judges the nodes once for all of them.
func signature(p *Pod) string {
	var b strings.Builder
	number := func(n int64) { b.WriteString(strconv.FormatInt(n, 10)); b.WriteByte(0) }
	b.WriteString(p.Namespace + "\x00" + p.Owner + "\x00")
	number(p.Requests.MilliCPU)
	number(p.Requests.Memory)
	number(p.Requests.Storage)
	number(p.Requests.Pods)
	b.WriteString(p.Tolerations + "\x00" + p.Blocked + "\x00" + strings.Join(p.Volumes, ",") + "\x00")
	for _, port := range p.HostPorts {
		b.WriteString(port.String() + ",")
	}
	b.WriteByte(0)
	for _, k := range sortedKeys(p.NodeSelector) {
		b.WriteString(k + "=" + p.NodeSelector[k] + "\x00")
	}
	for _, c := range p.Spread {
		b.WriteString(c.TopologyKey + "\x00" + c.Selector.String() + "\x00")
		number(c.MaxSkew)
		b.WriteString(strconv.FormatBool(c.Hard) + strconv.FormatBool(c.Selector.Matches(p.Labels)) + "\x00")
	}
	return b.String()
}

func sortedKeys(m map[string]string) []string {
	if len(m) == 0 {
		return nil
	}
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
