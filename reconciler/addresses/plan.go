// Package addresses gives Services of type LoadBalancer an address of an
// AddressPool and says which node answers for it. It refuses to touch Services
// with a load balancer class: a controller outside has those.
package addresses

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/nodes"
)

// ConditionAddressAssigned of a Service tells whether it has an address of a pool,
// and why not; ConditionAvailable of an AddressPool whether one is left.
const ConditionAddressAssigned = "AddressAssigned"

// Reasons of conditions.
const (
	ReasonAssigned  = "Assigned"
	ReasonNoPool    = "NoPool"
	ReasonNotInPool = "NotInPool"
	ReasonTaken     = "Taken"
	ReasonExhausted = "Exhausted"
	ReasonFree      = "AddressesFree"
)

// labelExclude keeps a node from announcing, as in Kubernetes.
const labelExclude = "node.kubernetes.io/exclude-from-external-load-balancers"

// View is what a plan is made from.
type View struct {
	// Pools, Services and Nodes are all, by name; of the Services only those that
	// want an address of a pool count.
	Pools    []*balsav1.AddressPool
	Services []*balsav1.Service
	Nodes    []*balsav1.Node
	// Claimed is the key of the object that has an address; empty: nobody.
	Claimed func(netip.Addr) string
	// Serves tells whether a node has a ready endpoint of a Service.
	Serves func(svc *balsav1.Service, node string) bool
}

// Actions is the outcome of a plan.
type Actions struct {
	// Assign holds Services whose address changes.
	Assign []Assignment
	// Pools holds AddressPools whose status changes, changed clones.
	Pools []*balsav1.AddressPool
}

// Assignment is a Service as it shall be, with the addresses that it gets and those
// that it gives back.
type Assignment struct {
	Service          *balsav1.Service
	Claim, Release   []netip.Addr
	Reason, Message  string
	Pool             *balsav1.AddressPool // that the claimed address is of
	ConditionChanged bool
}

// Empty tells whether there is nothing to write.
func (a *Actions) Empty() bool { return len(a.Assign)+len(a.Pools) == 0 }

// String prints the actions, an address a line.
func (a *Actions) String() string {
	var b strings.Builder
	for _, s := range a.Assign {
		fmt.Fprintf(&b, "service %s %s claim=%v release=%v: %s\n", s.Service.GetMetadata().GetName(), s.Reason, s.Claim, s.Release, s.Message)
	}
	for _, p := range a.Pools {
		st := p.GetStatus()
		fmt.Fprintf(&b, "pool %s %d of %d\n", p.GetMetadata().GetName(), st.GetInUse(), st.GetCapacity())
		for _, x := range st.GetAnnounced() {
			fmt.Fprintf(&b, "  %s %s/%s on %q %s\n", x.GetIp(), x.GetNamespace(), x.GetService(), x.GetNodeName(), x.GetMessage())
		}
	}
	return b.String()
}

// Plan decides who has which address and which node answers for it at now.
func Plan(v View, now time.Time) (Actions, error) {
	p := planner{View: v, now: now, taken: map[netip.Addr]*balsav1.Service{}}
	for _, pool := range v.Pools {
		ranges, err := object.PoolRanges(pool)
		if err != nil {
			return Actions{}, err
		}
		p.pools = append(p.pools, poolOf{pool, ranges})
	}
	wanting := slices.DeleteFunc(slices.Clone(v.Services), func(s *balsav1.Service) bool { return !object.WantsPoolAddress(s) || object.IsTerminating(s) })
	// Those that have an address keep it; only then is there one for the others.
	for _, s := range wanting {
		if ip := p.holds(s); ip.IsValid() {
			p.taken[ip] = s
		}
	}
	for _, s := range wanting {
		p.assign(s)
	}
	for _, pool := range p.pools {
		p.announce(pool)
	}
	return p.Actions, nil
}

type poolOf struct {
	*balsav1.AddressPool
	ranges []object.AddressRange
}

func (p poolOf) has(ip netip.Addr) bool {
	return slices.ContainsFunc(p.ranges, func(r object.AddressRange) bool { return r.Contains(ip) })
}

type planner struct {
	View
	Actions
	now   time.Time
	pools []poolOf
	// taken says which Service has an address once the plan is carried out.
	taken map[netip.Addr]*balsav1.Service
}

// holds is the address that a Service has, if it may go on having it: one of a
// pool, claimed by nobody else.
func (p *planner) holds(s *balsav1.Service) netip.Addr {
	has := object.PoolAddresses(s)
	if len(has) != 1 || p.poolOf(has[0]) == nil || p.Claimed(has[0]) != object.KeyOf(s) {
		return netip.Addr{}
	}
	return has[0]
}

func (p *planner) poolOf(ip netip.Addr) *poolOf {
	for i := range p.pools {
		if p.pools[i].has(ip) {
			return &p.pools[i]
		}
	}
	return nil
}

// assign keeps what a Service has until it has what it wants.
func (p *planner) assign(s *balsav1.Service) {
	a, held := Assignment{Service: object.Clone(s), Reason: ReasonAssigned}, p.holds(s)
	ip := held
	if want := s.GetSpec().GetLoadBalancerIp(); !held.IsValid() || want != "" && want != held.String() {
		ip, a.Reason, a.Message = p.find(s)
	}
	switch {
	case !ip.IsValid() && held.IsValid():
		ip = held
		a.Message += "; it keeps " + held.String()
	case ip.IsValid():
		pool := p.poolOf(ip)
		a.Reason, a.Message = ReasonAssigned, "of AddressPool "+pool.GetMetadata().GetName()
		if ip != held {
			a.Claim, a.Pool = []netip.Addr{ip}, pool.AddressPool
			delete(p.taken, held)
			p.taken[ip] = s
		}
	}
	for _, old := range object.PoolAddresses(s) {
		if old != ip && p.Claimed(old) == object.KeyOf(s) {
			a.Release = append(a.Release, old)
		}
	}
	p.setStatus(&a, ip)
	if len(a.Claim)+len(a.Release) > 0 || !object.Same(s, a.Service) {
		p.Assign = append(p.Assign, a)
	}
}

func (p *planner) setStatus(a *Assignment, ip netip.Addr) {
	st := a.Service.GetStatus()
	if st == nil {
		st = &balsav1.ServiceStatus{}
		a.Service.Status = st
	}
	c := &balsav1.Condition{Type: ConditionAddressAssigned, Status: object.ConditionFalse, Reason: a.Reason, Message: a.Message}
	if a.Reason == ReasonAssigned {
		c.Status = object.ConditionTrue
	}
	st.Conditions, a.ConditionChanged = object.SetCondition(st.GetConditions(), c, p.now)
	st.LoadBalancer = nil
	if ip.IsValid() {
		st.LoadBalancer = &balsav1.LoadBalancerStatus{Ingress: []*balsav1.LoadBalancerIngress{{Ip: ip.String(), IpMode: proto.String(object.IPModeVIP)}}}
	}
}

// find chooses an address for a Service that has none, or says why there is none.
// One that is given back in the same plan is free in the next.
func (p *planner) find(s *balsav1.Service) (ip netip.Addr, reason, message string) {
	if want := s.GetSpec().GetLoadBalancerIp(); want != "" {
		return p.wanted(s, want)
	}
	var auto []poolOf
	for _, pool := range p.pools {
		if pool.GetSpec().AutoAssign == nil || pool.GetSpec().GetAutoAssign() {
			auto = append(auto, pool)
		}
	}
	if len(auto) == 0 {
		return ip, ReasonNoPool, "there is no AddressPool that assigns by itself: make one, or name an address of another with spec.loadBalancerIP"
	}
	names := make([]string, len(auto))
	for i, pool := range auto {
		// The lowest free one: nobody else chooses, and people find their way.
		if ip, ok := object.ChooseAddress(pool.ranges, p.isTaken, func(int64) int64 { return 0 }); ok {
			return ip, "", ""
		}
		names[i] = pool.GetMetadata().GetName()
	}
	return netip.Addr{}, ReasonExhausted, fmt.Sprintf("every address of %s is taken: add addresses, or remove Services of type LoadBalancer", strings.Join(names, ", "))
}

func (p *planner) wanted(s *balsav1.Service, want string) (ip netip.Addr, reason, message string) {
	ip, err := netip.ParseAddr(want)
	if err != nil || p.poolOf(ip) == nil {
		return netip.Addr{}, ReasonNotInPool, fmt.Sprintf("spec.loadBalancerIP %s is of no AddressPool", want)
	}
	owner := p.Claimed(ip)
	if other := p.taken[ip]; other != nil {
		owner = object.KeyOf(other)
	}
	if owner != "" && owner != object.KeyOf(s) {
		return netip.Addr{}, ReasonTaken, fmt.Sprintf("spec.loadBalancerIP %s belongs to %s", want, owner)
	}
	return ip, "", ""
}

func (p *planner) isTaken(ip netip.Addr) bool { return p.taken[ip] != nil || p.Claimed(ip) != "" }

// announce makes the status of a pool.
func (p *planner) announce(pool poolOf) {
	next := object.Clone(pool.AddressPool)
	before := map[string]string{}
	for _, a := range pool.GetStatus().GetAnnounced() {
		before[a.GetIp()] = a.GetNodeName()
	}
	st := &balsav1.AddressPoolStatus{
		ObservedGeneration: pool.GetMetadata().GetGeneration(), Capacity: int32(object.PoolSize(pool.ranges)), Conditions: next.GetStatus().GetConditions(),
	}
	for ip, svc := range p.taken {
		if !pool.has(ip) {
			continue
		}
		a := &balsav1.AnnouncedAddress{Ip: ip.String(), Namespace: svc.GetMetadata().GetNamespace(), Service: svc.GetMetadata().GetName()}
		a.NodeName, a.Message = p.node(pool, ip, svc, before[ip.String()])
		st.Announced = append(st.Announced, a)
	}
	slices.SortFunc(st.Announced, func(a, b *balsav1.AnnouncedAddress) int {
		x, _ := netip.ParseAddr(a.GetIp())
		y, _ := netip.ParseAddr(b.GetIp())
		return x.Compare(y)
	})
	st.InUse = int32(len(st.Announced))
	c := &balsav1.Condition{Type: object.ConditionAvailable, Status: object.ConditionTrue, Reason: ReasonFree}
	if st.InUse >= st.Capacity {
		c.Status, c.Reason, c.Message = object.ConditionFalse, ReasonExhausted, "every address is taken"
	}
	st.Conditions, _ = object.SetCondition(st.Conditions, c, p.now)
	next.Status = st
	if !object.Same(next, pool.AddressPool) {
		p.Actions.Pools = append(p.Actions.Pools, next)
	}
}

// node chooses who answers for an address. Who does goes on as long as it can: a
// move breaks the connections that are open. Else it is the node that a hash of
// address and node puts first, so that addresses spread, and few move when nodes
// come and go (rendezvous hashing, Thaler and Ravishankar 1998).
func (p *planner) node(pool poolOf, ip netip.Addr, svc *balsav1.Service, before string) (name, message string) {
	local := svc.GetSpec().GetExternalTrafficPolicy() == object.TrafficLocal
	selector := object.SelectorFromLabels(pool.GetSpec().GetNodeSelector())
	var able []string
	matching := 0
	for _, n := range p.Nodes {
		name := n.GetMetadata().GetName()
		if _, excluded := n.GetMetadata().GetLabels()[labelExclude]; excluded || !selector.Matches(n.GetMetadata().GetLabels()) {
			continue
		}
		matching++
		if object.NodeReady(n) && !nodes.HostUnreachable(n) && !object.IsTerminating(n) && (!local || p.Serves(svc, name)) {
			able = append(able, name)
		}
	}
	switch {
	case slices.Contains(able, before):
		return before, ""
	case len(able) > 0:
		return slices.MaxFunc(able, func(a, b string) int { return cmp.Compare(weight(ip, a), weight(ip, b)) }), ""
	case matching == 0:
		return "", "no node matches spec.nodeSelector"
	case local:
		return "", "no node that is Ready has a ready endpoint, which externalTrafficPolicy Local asks for"
	}
	return "", "no node is Ready"
}

func weight(ip netip.Addr, node string) uint64 {
	sum := sha256.Sum256([]byte(ip.String() + "/" + node))
	return binary.BigEndian.Uint64(sum[:8])
}
