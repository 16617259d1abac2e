package dns

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// Tracker makes zones of the API's objects, each of the one before and what has
// changed since: a service costs as much among ten thousand as among ten. Objects
// are read only. It is not safe for use by several goroutines; its zones are.
type Tracker struct {
	zone     *Zone
	services map[serviceName]*tracked
	owners   map[serviceName]serviceName // of slices
	problems map[serviceName][]string
	// What has changed since the last zone.
	changed    map[serviceName]bool
	namespaces map[string]bool
}

type serviceName struct{ namespace, name string }

// tracked is a service with its slices by name. The slices may be there first.
type tracked struct {
	service *balsav1.Service
	slices  map[string]*balsav1.EndpointSlice
}

// NewTracker begins without objects.
func NewTracker(p ZoneParams) *Tracker {
	return &Tracker{zone: NewZone(p), services: map[serviceName]*tracked{}, owners: map[serviceName]serviceName{},
		problems: map[serviceName][]string{}, changed: map[serviceName]bool{}, namespaces: map[string]bool{}}
}

// Upsert takes a Service, an EndpointSlice or a Namespace as it is now. Objects of
// other kinds have no names.
func (t *Tracker) Upsert(m proto.Message) {
	switch m := m.(type) {
	case *balsav1.Namespace:
		t.namespaces[m.GetMetadata().GetName()] = true
	case *balsav1.Service:
		n := nameOf(m)
		t.at(n).service, t.changed[n] = m, true
	case *balsav1.EndpointSlice:
		t.setSlice(nameOf(m), m)
	}
}

// Delete takes away the object of a kind.
func (t *Tracker) Delete(kind, namespace, name string) {
	n := serviceName{namespace, name}
	switch kind {
	case "Namespace":
		t.namespaces[name] = false
	case "Service":
		if s, found := t.services[n]; found {
			s.service, t.changed[n] = nil, true
			t.drop(n)
		}
	case "EndpointSlice":
		t.setSlice(n, nil)
	}
}

func nameOf(m interface{ GetMetadata() *balsav1.ObjectMeta }) serviceName {
	return serviceName{m.GetMetadata().GetNamespace(), m.GetMetadata().GetName()}
}

func (t *Tracker) at(n serviceName) *tracked {
	s, found := t.services[n]
	if !found {
		s = &tracked{slices: map[string]*balsav1.EndpointSlice{}}
		t.services[n] = s
	}
	return s
}

// drop forgets a service of which nothing is left.
func (t *Tracker) drop(n serviceName) {
	if s := t.services[n]; s != nil && s.service == nil && len(s.slices) == 0 {
		delete(t.services, n)
	}
}

// setSlice moves a slice to the service that it names now; nil: it is gone.
func (t *Tracker) setSlice(slice serviceName, m *balsav1.EndpointSlice) {
	if owner, found := t.owners[slice]; found {
		s := t.at(owner)
		delete(s.slices, slice.name)
		t.touch(owner, s)
		t.drop(owner)
		delete(t.owners, slice)
	}
	name := object.OwningService(m)
	if name == "" {
		return
	}
	owner := serviceName{slice.namespace, name}
	s := t.at(owner)
	s.slices[slice.name], t.owners[slice] = m, owner
	t.touch(owner, s)
}

// touch: the endpoints of a service with an address are the proxy's business.
func (t *Tracker) touch(n serviceName, s *tracked) {
	if s.service.GetSpec().GetClusterIp() == object.ClusterIPNone {
		t.changed[n] = true
	}
}

// Zone is the zone of all objects, as of a revision. changed is false if it is the
// former one, whose revision is then older.
func (t *Tracker) Zone(revision int64) (z *Zone, changed bool) {
	if len(t.changed) == 0 && len(t.namespaces) == 0 {
		return t.zone, false
	}
	c := t.zone.change()
	for name, exists := range t.namespaces {
		c.namespace(name, exists)
	}
	for n := range t.changed {
		c.service(n.namespace, n.name, t.compile(n, c.domain))
	}
	clear(t.changed)
	clear(t.namespaces)
	t.zone = c.done(revision)
	return t.zone, true
}

func (t *Tracker) compile(n serviceName, domain string) *records {
	delete(t.problems, n)
	entry := t.services[n]
	if entry == nil || entry.service == nil {
		return nil
	}
	s, named, problems := serviceOf(entry.service, entry.sorted())
	if len(problems) > 0 {
		t.problems[n] = problems
	}
	if !named {
		return nil
	}
	return compile(&s, domain)
}

func (t *tracked) sorted() []*balsav1.EndpointSlice {
	out := make([]*balsav1.EndpointSlice, 0, len(t.slices))
	for _, name := range slices.Sorted(maps.Keys(t.slices)) {
		out = append(out, t.slices[name])
	}
	return out
}

// Problems names what could not be used of the objects in the last zone, sorted.
func (t *Tracker) Problems() []string {
	return slices.Sorted(func(yield func(string) bool) {
		for _, problems := range t.problems {
			for _, p := range problems {
				if !yield(p) {
					return
				}
			}
		}
	})
}

// FromObjects builds a view at a revision. Objects are read only. What it
// cannot use is left out and named in problems. A service that has no address
// yet does not exist yet.
func FromObjects(revision int64, p ZoneParams, services []*balsav1.Service, endpoints []*balsav1.EndpointSlice) (v View, problems []string) {
	v = View{Revision: revision, ZoneParams: p, Services: make([]Service, 0, len(services))}
	byService := map[serviceName][]*balsav1.EndpointSlice{}
	for _, s := range endpoints {
		n := serviceName{s.GetMetadata().GetNamespace(), object.OwningService(s)}
		byService[n] = append(byService[n], s)
	}
	for _, svc := range services {
		s, named, wrong := serviceOf(svc, byService[nameOf(svc)])
		problems = append(problems, wrong...)
		if named {
			v.Services = append(v.Services, s)
		}
	}
	return v, problems
}

// serviceOf is a service as the zone sees it; named is false if it has no name.
func serviceOf(svc *balsav1.Service, endpoints []*balsav1.EndpointSlice) (s Service, named bool, problems []string) {
	s = Service{Namespace: svc.GetMetadata().GetNamespace(), Name: svc.GetMetadata().GetName()}
	spec := svc.GetSpec()
	switch ip := spec.GetClusterIp(); {
	case spec.GetType() == object.ServiceExternalName:
		s.External = spec.GetExternalName()
		return s, s.External != "", nil
	case ip == "":
		return s, false, nil
	case ip == object.ClusterIPNone:
		for _, slice := range endpoints {
			problems = append(problems, addEndpoints(&s, slice)...)
		}
		return s, true, problems
	default:
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			return s, false, []string{fmt.Sprintf("services/%s/%s: spec.clusterIP %q is not an address", s.Namespace, s.Name, ip)}
		}
		s.ClusterIP = addr
		for _, port := range spec.GetPorts() {
			s.Ports = appendPort(s.Ports, port.GetName(), port.GetProtocol(), port.GetPort())
		}
		return s, true, nil
	}
}

func addEndpoints(s *Service, slice *balsav1.EndpointSlice) (problems []string) {
	var ports []Port
	for _, p := range slice.GetPorts() {
		ports = appendPort(ports, p.GetName(), p.GetProtocol(), p.GetPort())
	}
	for _, e := range slice.GetEndpoints() {
		c := e.GetConditions()
		ready := c == nil || c.Ready == nil || *c.Ready
		for _, a := range e.GetAddresses() {
			ip, err := netip.ParseAddr(a)
			if err != nil {
				problems = append(problems, fmt.Sprintf("endpointslices/%s/%s: endpoint address %q is not an address",
					slice.GetMetadata().GetNamespace(), slice.GetMetadata().GetName(), a))
				continue
			}
			s.Endpoints = append(s.Endpoints, Endpoint{IP: ip, Hostname: e.GetHostname(), Ready: ready, Ports: ports})
		}
	}
	return problems
}

// appendPort leaves out what cannot be a port; the proxy reports those.
func appendPort(ports []Port, name, protocol string, port int32) []Port {
	if protocol == "" {
		protocol = "TCP"
	}
	if port < 1 || port > 65535 {
		return ports
	}
	return append(ports, Port{Name: name, Protocol: strings.ToLower(protocol), Port: uint16(port)})
}
