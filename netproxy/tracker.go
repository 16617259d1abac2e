package netproxy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// Tracker keeps the ruleset of a node while its objects change one by one. What
// an update costs depends on the service, or the namespace's policies, that it
// touches, not on how many others there are. FromObjects and Plan are its naive
// model: after the same objects, both make the same ruleset.
//
// One difference is meant: where a slice has no copy of its policy, a Tracker keeps
// what was in force before until policy and slice fit together, so that an edit
// refuses nobody in between.
//
// A Tracker is for one goroutine. The rulesets it returns are for any.
type Tracker struct {
	node     NodeParams
	services map[objectName]*trackedService
	// owners names the service that each slice was last counted for.
	owners map[objectName]objectName
	pods   map[netip.Addr]*LocalPod
	// spaces hold policies and what is planned of them, by namespace.
	spaces map[string]*space

	dirtyServices map[objectName]bool
	dirtySpaces   map[string]bool
	dirtyPods     map[netip.Addr]bool

	// claims holds the fronts of each unit's ID, the winner first.
	claims   map[string][]*front
	built    map[string]built
	chains   map[string]int
	hairpins map[netip.Addr]int
	podPorts map[netip.Addr][]front

	content *content
	edit    *edit // of the update under way
	// problems of each owner: "s" service, "p" pod, "n" namespace, "c" claim.
	problems map[string][]Problem
	told     []Problem // all problems, sorted; nil: to be made
	gone     map[netip.Addr]bool
}

type trackedService struct {
	service *balsav1.Service
	slices  map[string]*balsav1.EndpointSlice
	ports   []ServicePort
	fronts  []front
}

// NewTracker makes a tracker that knows no objects.
func NewTracker(node NodeParams) *Tracker {
	t := &Tracker{services: map[objectName]*trackedService{}, owners: map[objectName]objectName{}, pods: map[netip.Addr]*LocalPod{}, spaces: map[string]*space{}, gone: map[netip.Addr]bool{}}
	t.SetNode(node)
	return t
}

// SetNode changes what is known of the node; everything is planned again.
func (t *Tracker) SetNode(node NodeParams) {
	if t.claims != nil && t.node == node {
		return
	}
	t.node = node
	t.node.PodCIDR, t.node.ClusterCIDR, t.node.ServiceCIDR = node.PodCIDR.Masked(), node.ClusterCIDR.Masked(), node.ServiceCIDR.Masked()
	t.dirtyServices, t.dirtySpaces, t.dirtyPods = map[objectName]bool{}, map[string]bool{}, map[netip.Addr]bool{}
	t.claims, t.built, t.chains, t.hairpins, t.podPorts = map[string][]*front{}, map[string]built{}, map[string]int{}, map[netip.Addr]int{}, map[netip.Addr][]front{}
	t.content, t.problems, t.told = nil, map[string][]Problem{}, nil
	for name, s := range t.services {
		s.fronts = nil
		t.dirtyServices[name] = true
	}
	for name, s := range t.spaces {
		s.units = nil
		t.dirtySpaces[name] = true
	}
	for ip := range t.pods {
		t.dirtyPods[ip] = true
	}
}

// SetService adds or changes a service. The object is kept, and only read.
func (t *Tracker) SetService(s *balsav1.Service) {
	name := nameOf(s.GetMetadata())
	t.service(name).service = s
	t.dirtyServices[name] = true
}

// DeleteService forgets a service; its slices may outlive it.
func (t *Tracker) DeleteService(namespace, name string) {
	n := objectName{namespace, name}
	t.service(n).service = nil
	t.dirtyServices[n] = true
}

// SetSlice adds or changes an EndpointSlice. The object is kept, and only read.
func (t *Tracker) SetSlice(s *balsav1.EndpointSlice) {
	name := nameOf(s.GetMetadata())
	owner := objectName{name.namespace, object.OwningService(s)}
	if before, found := t.owners[name]; found && before != owner {
		t.DeleteSlice(name.namespace, name.name)
	}
	if owner.name == "" {
		return
	}
	t.owners[name] = owner
	t.noteGone(t.service(owner).slices[name.name], s)
	t.service(owner).slices[name.name] = s
	t.dirtyServices[owner] = true
}

// DeleteSlice forgets an EndpointSlice.
func (t *Tracker) DeleteSlice(namespace, name string) {
	n := objectName{namespace, name}
	owner, found := t.owners[n]
	if !found {
		return
	}
	delete(t.owners, n)
	t.noteGone(t.service(owner).slices[name], nil)
	delete(t.service(owner).slices, name)
	t.dirtyServices[owner] = true
}

// noteGone remembers the addresses that a slice no longer has, ready or not.
func (t *Tracker) noteGone(before, now *balsav1.EndpointSlice) {
	if before == nil {
		return
	}
	stays := make(map[string]bool, len(now.GetEndpoints()))
	for _, e := range now.GetEndpoints() {
		for _, a := range e.GetAddresses() {
			stays[a] = true
		}
	}
	for _, e := range before.GetEndpoints() {
		for _, a := range e.GetAddresses() {
			if ip, err := netip.ParseAddr(a); err == nil && !stays[a] {
				t.gone[ip] = true
			}
		}
	}
}

// TakeGone returns the addresses that slices had and have no longer since it was last
// called, sorted: connections to them are at their end (Kernel.Forget). One of them
// may be another slice's.
func (t *Tracker) TakeGone() []netip.Addr {
	gone := slices.SortedFunc(maps.Keys(t.gone), netip.Addr.Compare)
	clear(t.gone)
	return gone
}

func (t *Tracker) service(name objectName) *trackedService {
	s := t.services[name]
	if s == nil {
		s = &trackedService{slices: map[string]*balsav1.EndpointSlice{}}
		t.services[name] = s
	}
	return s
}

// SetPod adds or changes a pod of this node, by its address: the newest pod
// with an address has it.
func (t *Tracker) SetPod(p LocalPod) {
	if before := t.pods[p.IP]; before != nil {
		t.dirtySpaces[before.Namespace] = true
	}
	t.pods[p.IP] = &p
	t.dirtyPods[p.IP] = true
	t.dirtySpaces[p.Namespace] = true
}

// DeletePod forgets the pod with an address, unless another pod has it by now.
func (t *Tracker) DeletePod(ip netip.Addr, namespace, name string) {
	p := t.pods[ip]
	if p == nil || p.Namespace != namespace || p.Name != name {
		return
	}
	delete(t.pods, ip)
	t.dirtyPods[ip] = true
	t.dirtySpaces[namespace] = true
}

// Set makes the tracker know exactly these objects, as after a stream of
// assignments has begun anew. Objects that are the very same cost little.
func (t *Tracker) Set(o Objects) {
	services := map[objectName]bool{}
	for _, s := range o.Services {
		name := nameOf(s.GetMetadata())
		services[name] = true
		if t.service(name).service != s {
			t.SetService(s)
		}
	}
	for name, s := range t.services {
		if s.service != nil && !services[name] {
			t.DeleteService(name.namespace, name.name)
		}
	}
	t.setSlices(o.Slices)
	t.setPolicies(o.Policies, o.PolicySlices)
	t.setPods(o.Pods)
}

func (t *Tracker) setSlices(list []*balsav1.EndpointSlice) {
	kept := map[objectName]bool{}
	for _, s := range list {
		name := nameOf(s.GetMetadata())
		kept[name] = true
		if owner, found := t.owners[name]; !found || t.service(owner).slices[name.name] != s {
			t.SetSlice(s)
		}
	}
	for name := range t.owners {
		if !kept[name] {
			t.DeleteSlice(name.namespace, name.name)
		}
	}
}

func (t *Tracker) setPods(pods []LocalPod) {
	kept := map[netip.Addr]bool{}
	for _, p := range currentPods(pods) {
		kept[p.IP] = true
		if before := t.pods[p.IP]; before == nil || !before.equal(p) {
			t.SetPod(*p)
		}
	}
	for ip, p := range t.pods {
		if !kept[ip] {
			t.DeletePod(ip, p.Namespace, p.Name)
		}
	}
}

func (pod *LocalPod) equal(o *LocalPod) bool {
	return pod.IP == o.IP && pod.Namespace == o.Namespace && pod.Name == o.Name && maps.Equal(pod.Labels, o.Labels) &&
		slices.Equal(pod.Ports, o.Ports) && slices.Equal(pod.HostPorts, o.HostPorts)
}

// Ruleset plans what has changed and returns the ruleset at a revision.
func (t *Tracker) Ruleset(revision int64) Ruleset {
	t.edit = newEdit(t.content)
	for name := range t.dirtyServices {
		t.planService(name)
	}
	for ip := range t.dirtyPods {
		t.planPod(ip)
	}
	for name := range t.dirtySpaces {
		t.planSpace(name)
	}
	clear(t.dirtyServices)
	clear(t.dirtyPods)
	clear(t.dirtySpaces)
	t.content, t.edit = t.edit.next, nil
	if len(t.claims) > MaxServicePorts {
		// Which fronts are left out depends on all of them.
		return Plan(t.view(revision))
	}
	v := t.emptyView(revision)
	return Ruleset{Revision: revision, Params: v.params(), Problems: t.allProblems(), content: t.content}
}

func (t *Tracker) emptyView(revision int64) View {
	return View{Revision: revision, NodeName: t.node.Name, PodCIDR: t.node.PodCIDR, ClusterCIDR: t.node.ClusterCIDR, ServiceCIDR: t.node.ServiceCIDR, NodeIP: t.node.NodeIP}
}

// view is what FromObjects would make.
func (t *Tracker) view(revision int64) View {
	v := t.emptyView(revision)
	for _, s := range t.services {
		v.Services = append(v.Services, s.ports...)
	}
	for _, s := range t.spaces {
		for _, p := range s.policies() {
			v.Policies = append(v.Policies, *p)
		}
	}
	for _, p := range t.pods {
		v.Pods = append(v.Pods, *p)
	}
	v.Problems = t.allProblems()
	return v
}

func (t *Tracker) setProblems(owner string, problems []Problem) {
	if len(problems) == 0 && len(t.problems[owner]) == 0 {
		return
	}
	t.told = nil
	if len(problems) == 0 {
		delete(t.problems, owner)
		return
	}
	t.problems[owner] = problems
}

func (t *Tracker) allProblems() []Problem {
	if t.told == nil && len(t.problems) > 0 {
		for _, p := range t.problems {
			t.told = append(t.told, p...)
		}
		slices.SortFunc(t.told, Problem.Compare)
		t.told = slices.Compact(t.told)
	}
	return t.told
}

func (t *Tracker) planService(name objectName) {
	s := t.services[name]
	var problems []Problem
	s.ports = nil
	if s.service != nil {
		list := slices.SortedFunc(maps.Values(s.slices), func(a, b *balsav1.EndpointSlice) int {
			return strings.Compare(a.GetMetadata().GetName(), b.GetMetadata().GetName())
		})
		s.ports, problems = servicePorts(s.service, list)
	}
	var fronts []front
	for i := range s.ports {
		f, complaints := servicePortFronts(&t.node, &s.ports[i])
		fronts, problems = append(fronts, f...), append(problems, complaints...)
	}
	t.replace(s.fronts, fronts)
	s.fronts = fronts
	t.setProblems("s"+name.namespace+"/"+name.name, problems)
	if s.service == nil && len(s.slices) == 0 {
		delete(t.services, name)
	}
}

func (t *Tracker) planPod(ip netip.Addr) {
	var fronts []front
	var problems []Problem
	if p := t.pods[ip]; p != nil && ip.Is4() {
		fronts, problems = podFronts(p)
	}
	t.replace(t.podPorts[ip], fronts)
	t.podPorts[ip] = fronts
	if len(fronts) == 0 {
		delete(t.podPorts, ip)
	}
	t.setProblems("p"+ip.String(), problems)
}

// replace lets fronts claim their keys in place of others of the same owner.
func (t *Tracker) replace(old, next []front) {
	touched := make([]string, 0, len(old)+len(next))
	for i := range old {
		id := frontID(old[i].key)
		touched = append(touched, id)
		t.claims[id] = slices.DeleteFunc(t.claims[id], func(f *front) bool { return f == &old[i] })
	}
	for i := range next {
		id := frontID(next[i].key)
		if !slices.Contains(touched, id) {
			touched = append(touched, id)
		}
		claims := t.claims[id]
		at := len(claims)
		for at > 0 && claim(&next[i], claims[at-1]) < 0 { // after its equals, as in a stable sort
			at--
		}
		t.claims[id] = slices.Insert(claims, at, &next[i])
	}
	slices.Sort(touched)
	for _, id := range slices.Compact(touched) {
		t.settle(id)
	}
}

// settle makes the unit of a key that of the first front that claims it.
func (t *Tracker) settle(id string) {
	claims := t.claims[id]
	var lost []Problem
	for i, f := range claims {
		if i > 0 {
			lost = append(lost, f.lost(claims[0]))
		}
	}
	if len(lost) > 0 || len(t.problems) > 0 {
		t.setProblems("c"+id, lost)
	}
	before := t.built[id]
	if len(claims) == 0 {
		delete(t.claims, id)
		delete(t.built, id)
		t.edit.remove(id)
		t.release(before)
		return
	}
	now := claims[0].build()
	claims[0].hairpins(&t.node, func(a netip.Addr) { now.hairpins = append(now.hairpins, a) })
	if before.unit != nil && same(before.unit, now.unit) {
		now.unit = before.unit
	}
	t.built[id] = now
	t.edit.set(now.unit)
	t.hold(now)
	t.release(before)
}

// hold counts what a front needs besides its elements. A chain with affinity is
// written again, since it changes under its name.
func (t *Tracker) hold(b built) {
	for _, c := range b.chains {
		if t.chains[c.Name]++; t.chains[c.Name] == 1 || c.Kind == ChainAffinity {
			t.edit.set(&Unit{ID: chainID(c.Name), Chain: &c})
		}
	}
	for _, a := range b.hairpins {
		if t.hairpins[a]++; t.hairpins[a] == 1 {
			t.edit.set(hairpinUnit(a))
		}
	}
}

func (t *Tracker) release(b built) {
	for _, c := range b.chains {
		if t.chains[c.Name]--; t.chains[c.Name] == 0 {
			delete(t.chains, c.Name)
			t.edit.remove(chainID(c.Name))
		}
	}
	for _, a := range b.hairpins {
		if t.hairpins[a]--; t.hairpins[a] == 0 {
			delete(t.hairpins, a)
			t.edit.remove(sortHairpin + addrBytes(a))
		}
	}
}
