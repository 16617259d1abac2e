package scheduler

import (
	"fmt"
	"strconv"

	"github.com/balsa-run/balsa/object"
)

// Filter is a reason for which a node refuses a pod.
type Filter uint8

// The filters, in the order in which a node that fails several is counted: by
// the first.
const (
	NotReady Filter = iota
	Cordoned
	Tainted
	NodeSelector
	Volume
	CPU
	Memory
	Storage
	PodSlots
	HostPort
	Spread
	filters
)

// word is the filter's name in the compact form.
func (f Filter) word() string {
	return [filters]string{"notready", "cordoned", "taint", "selector", "volume", "cpu", "memory", "storage", "pods", "hostport", "spread"}[f]
}

// phrase is how a sentence counts the nodes that fail the filter.
func (f Filter) phrase() string {
	return [filters]string{
		"not ready", "cordoned", "tainted", "not matching nodeSelector", "without the pod's volume", "too little cpu",
		"too little memory", "too little ephemeral storage", "no free pod slot", "with the pod's hostPort taken", "breaking topologySpreadConstraints",
	}[f]
}

// Reason is one filter that a node fails.
type Reason struct {
	Filter Filter
	// Short is by how much: milli-cpus, bytes, pods, or matching pods beyond
	// maxSkew. 0 for filters without a measure.
	Short int64
	// Detail names the label, the domain, the taint, the volume's node, or the port
	// and who has it, where there is one.
	Detail string
}

// amount prints Short in the filter's unit.
func (r Reason) amount() string {
	switch r.Filter {
	case CPU:
		return formatMilliCPU(r.Short)
	case Memory, Storage:
		return formatBytes(r.Short)
	default:
		return strconv.FormatInt(r.Short, 10)
	}
}

// String says what is wrong, and so what would help.
func (r Reason) String() string {
	switch r.Filter {
	case NodeSelector:
		return "label " + r.Detail + " missing"
	case Tainted:
		return "taint " + r.Detail + " not tolerated"
	case Volume:
		return "the volume is on " + r.Detail
	case CPU, Memory, Storage:
		return r.amount() + " " + r.Filter.word() + " short"
	case PodSlots:
		return "pod slots short by " + r.amount()
	case HostPort:
		return "port " + r.Detail
	case Spread:
		if r.Short == 0 {
			return "label " + r.Detail + " missing"
		}
		return fmt.Sprintf("%s %d over maxSkew", r.Detail, r.Short)
	default:
		return r.Filter.phrase()
	}
}

func (r Reason) compact() string {
	if r.Short > 0 {
		return r.Filter.word() + "-" + r.amount()
	}
	return r.Filter.word()
}

// refusals lists what the node itself fails: all but spreading, which depends on
// the other nodes. It appends to reasons.
func refusals(reasons []Reason, n *Node, used Resources, ports []heldPort, p *Pod) []Reason {
	if !n.Ready {
		reasons = append(reasons, Reason{Filter: NotReady})
	}
	if n.Cordoned {
		reasons = append(reasons, Reason{Filter: Cordoned})
	}
	for _, t := range n.Taints {
		if t.Hard() && !p.tolerates(t) {
			reasons = append(reasons, Reason{Filter: Tainted, Detail: t.String()})
		}
	}
	for _, k := range sortedKeys(p.NodeSelector) {
		if got, ok := n.Labels[k]; !ok || got != p.NodeSelector[k] {
			reasons = append(reasons, Reason{Filter: NodeSelector, Detail: k + "=" + p.NodeSelector[k]})
		}
	}
	for _, node := range p.Volumes {
		if node != n.Name {
			reasons = append(reasons, Reason{Filter: Volume, Detail: node})
		}
	}
	short := func(f Filter, want, used, have int64) {
		if want > 0 && used+want > have {
			reasons = append(reasons, Reason{Filter: f, Short: used + want - have})
		}
	}
	short(CPU, p.Requests.MilliCPU, used.MilliCPU, n.Allocatable.MilliCPU)
	short(Memory, p.Requests.Memory, used.Memory, n.Allocatable.Memory)
	short(Storage, p.Requests.Storage, used.Storage, n.Allocatable.Storage)
	short(PodSlots, p.Requests.Pods, used.Pods, n.Allocatable.Pods)
	for _, port := range p.HostPorts {
		if holder, taken := holderOf(ports, port); taken {
			reasons = append(reasons, Reason{Filter: HostPort, Detail: port.String() + " taken by " + holder})
		}
	}
	return reasons
}

// heldPort is a port of a node that a pod has.
type heldPort struct {
	port object.HostPort
	pod  string
}

// holderOf names the first by name of the pods that have the port: several may,
// each at another address.
func holderOf(ports []heldPort, port object.HostPort) (pod string, taken bool) {
	for _, held := range ports {
		if held.port.Clashes(port) && (!taken || held.pod < pod) {
			pod, taken = held.pod, true
		}
	}
	return pod, taken
}

func portsFree(ports []heldPort, p *Pod) bool {
	for _, port := range p.HostPorts {
		if _, taken := holderOf(ports, port); taken {
			return false
		}
	}
	return true
}

// fits is refusals for the hot path: the answer only.
func fits(n *Node, used Resources, p *Pod) bool {
	if !eligible(n, p) {
		return false
	}
	room := func(want, used, have int64) bool { return want <= 0 || used+want <= have }
	return room(p.Requests.MilliCPU, used.MilliCPU, n.Allocatable.MilliCPU) &&
		room(p.Requests.Memory, used.Memory, n.Allocatable.Memory) &&
		room(p.Requests.Storage, used.Storage, n.Allocatable.Storage) &&
		room(p.Requests.Pods, used.Pods, n.Allocatable.Pods)
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// eligible nodes make the domains of a pod's spread constraints. A node that
// could not take the pod anyway, because it is not ready, cordoned, tainted, not
// selected or without its volume, must not hold the skew of the others down: its
// domain would stay the emptiest for ever.
func eligible(n *Node, p *Pod) bool {
	if p.Blocked != "" || !n.Ready || n.Cordoned || !selects(p.NodeSelector, n.Labels) {
		return false
	}
	for _, t := range n.Taints {
		if t.Hard() && !p.tolerates(t) {
			return false
		}
	}
	for _, node := range p.Volumes {
		if node != n.Name {
			return false
		}
	}
	return true
}

func (p *Pod) tolerates(t Taint) bool { return p.Tolerates != nil && p.Tolerates(t) }

// unwanted counts the taints that the pod would rather be without.
func unwanted(n *Node, p *Pod) (count int) {
	for _, t := range n.Taints {
		if !t.Hard() && !p.tolerates(t) {
			count++
		}
	}
	return count
}

func formatMilliCPU(m int64) string {
	if m%1000 == 0 {
		return strconv.FormatInt(m/1000, 10)
	}
	return strconv.FormatInt(m, 10) + "m"
}

// formatBytes rounds up, so that a shortage it prints is always enough.
func formatBytes(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 30, "Gi"}, {1 << 20, "Mi"}, {1 << 10, "Ki"}} {
		if n%u.size == 0 || (n >= u.size && u.size < 1<<30) {
			return strconv.FormatInt((n+u.size-1)/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}
