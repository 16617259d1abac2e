package netproxy_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/netproxy"
	"github.com/balsa-run/balsa/object"
)

func TestFromObjects(t *testing.T) {
	yes, no := true, false
	services := []*balsav1.Service{
		{Metadata: &balsav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: &balsav1.ServiceSpec{ClusterIp: "10.96.0.10", Ports: []*balsav1.ServicePort{
			{Name: "http", Port: 80}, {Name: "quic", Port: 443, Protocol: "UDP"}, {Name: "odd", Port: 1, Protocol: "SCTP"}, {Name: "zero"}}}},
		{Metadata: &balsav1.ObjectMeta{Namespace: "shop", Name: "headless"}, Spec: &balsav1.ServiceSpec{ClusterIp: "None", Ports: []*balsav1.ServicePort{{Port: 80}}}},
		{Metadata: &balsav1.ObjectMeta{Namespace: "shop", Name: "broken"}, Spec: &balsav1.ServiceSpec{ClusterIp: "ten"}},
	}
	slices := []*balsav1.EndpointSlice{
		{Metadata: &balsav1.ObjectMeta{Namespace: "shop", Name: "web-1", Labels: map[string]string{object.LabelServiceName: "web"}},
			Ports: []*balsav1.EndpointPort{{Name: "http", Port: 8080}, {Name: "quic", Protocol: "UDP", Port: 8443}, {Name: "http", Port: 70000}},
			Endpoints: []*balsav1.Endpoint{
				{Addresses: []string{"10.244.1.5", "10.244.9.9"}, NodeName: "n1"},
				{Addresses: []string{"10.244.1.6"}, Conditions: &balsav1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}},
				{Addresses: []string{"10.244.1.7"}, Conditions: &balsav1.EndpointConditions{Ready: &no, Serving: &yes}},
				{},
			}},
		{Metadata: &balsav1.ObjectMeta{Namespace: "shop", Name: "web-2", OwnerReferences: []*balsav1.OwnerReference{{Kind: "Service", Name: "web"}}},
			Ports:     []*balsav1.EndpointPort{{Name: "quic", Protocol: "UDP", Port: 8444}},
			Endpoints: []*balsav1.Endpoint{{Addresses: []string{"10.244.2.5"}}, {Addresses: []string{"nonsense"}}}},
		{Metadata: &balsav1.ObjectMeta{Namespace: "other", Name: "web-1", Labels: map[string]string{object.LabelServiceName: "web"}},
			Ports: []*balsav1.EndpointPort{{Name: "http", Port: 8080}}, Endpoints: []*balsav1.Endpoint{{Addresses: []string{"10.244.7.7"}}}},
	}
	params := netproxy.NodeParams{PodCIDR: netip.MustParsePrefix("10.244.1.0/24"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/12"), NodeIP: netip.MustParseAddr("192.168.77.1")}
	got := netproxy.FromObjects(7, params, netproxy.Objects{Services: services, Slices: slices})
	ip := netip.MustParseAddr
	want := netproxy.View{Revision: 7, PodCIDR: params.PodCIDR, ServiceCIDR: params.ServiceCIDR, NodeIP: params.NodeIP, Services: []netproxy.ServicePort{
		{Namespace: "shop", Name: "web", PortName: "http", VIP: ip("10.96.0.10"), Protocol: netproxy.TCP, Port: 80, Endpoints: []netproxy.Endpoint{
			{IP: ip("10.244.1.5"), Port: 8080, Ready: true, Node: "n1"}, {IP: ip("10.244.1.6"), Port: 8080, Serving: true}, {IP: ip("10.244.1.7"), Port: 8080}}},
		{Namespace: "shop", Name: "web", PortName: "quic", VIP: ip("10.96.0.10"), Protocol: netproxy.UDP, Port: 443, Endpoints: []netproxy.Endpoint{
			{IP: ip("10.244.1.5"), Port: 8443, Ready: true, Node: "n1"}, {IP: ip("10.244.1.6"), Port: 8443, Serving: true}, {IP: ip("10.244.1.7"), Port: 8443},
			{IP: ip("10.244.2.5"), Port: 8444, Ready: true}}},
	}}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.IgnoreFields(netproxy.View{}, "Problems")); d != "" {
		t.Error(d)
	}
	if len(got.Problems) != 5 {
		t.Errorf("problems %v, want 5", got.Problems)
	}
}
