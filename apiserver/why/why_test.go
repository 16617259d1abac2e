package why_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/balsa-run/balsa/apiserver/why"
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

// rules refuses what it is told to, as "from to port".
type rules struct {
	egress, ingress map[string]bool
	problems        []string
}

func (r rules) Judge(c why.Connection) why.Judgement {
	key := fmt.Sprintf("%s %s %s %d", c.From, c.To, c.Protocol, c.Port)
	decide := func(refuses bool, limited bool) why.Decision {
		d := why.Decision{Allowed: !refuses, Limited: limited, Policies: []string{"shop/p"}}
		if limited && !refuses {
			d.DecidedBy = "networkpolicies/shop/p spec.ingress[0]"
		}
		return d
	}
	limited := len(c.Policies) > 0
	return why.Judgement{Egress: decide(r.egress[key], limited), Ingress: decide(r.ingress[key], limited), Problems: r.problems}
}

// cluster is a store with a Service of three endpoints, one of which is not ready.
func cluster(t *testing.T, more ...object.Message) store.View {
	t.Helper()
	s := store.New(store.Options{Decode: object.Decode, Index: func(key string, m proto.Message) (out []store.IndexEntry) {
		for _, e := range object.Index(key, m) {
			out = append(out, store.IndexEntry(e))
		}
		return out
	}})
	ready := []*balsav1.Condition{{Type: object.ConditionReady, Status: object.ConditionTrue}}
	no := false
	endpoint := func(pod, ip string, ready *bool) *balsav1.Endpoint {
		return &balsav1.Endpoint{Addresses: []string{ip}, Conditions: &balsav1.EndpointConditions{Ready: ready},
			TargetRef: &balsav1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: pod}}
	}
	objects := append([]object.Message{
		&balsav1.Node{Metadata: &balsav1.ObjectMeta{Name: "n1"}, Status: &balsav1.NodeStatus{Conditions: ready}},
		&balsav1.Node{Metadata: &balsav1.ObjectMeta{Name: "n2"}, Status: &balsav1.NodeStatus{Conditions: ready}},
		&balsav1.Node{Metadata: &balsav1.ObjectMeta{Name: "n3"}},
		pod("web", "n1", "10.0.1.1"), pod("db-0", "n2", "10.0.2.1"), pod("db-1", "n1", "10.0.1.2"), pod("db-2", "n3", "10.0.3.1"),
		pod("new", "", ""), pod("lost", "n3", "10.0.3.2"),
		&balsav1.Service{Metadata: &balsav1.ObjectMeta{Namespace: "shop", Name: "db"}, Spec: &balsav1.ServiceSpec{ClusterIp: "10.96.0.9",
			Ports: []*balsav1.ServicePort{{Name: "sql", Port: 5432, Protocol: "TCP"}, {Name: "stats", Port: 9100, Protocol: "UDP"}}}},
		&balsav1.EndpointSlice{Metadata: &balsav1.ObjectMeta{Namespace: "shop", Name: "db", Labels: map[string]string{"kubernetes.io/service-name": "db"}},
			Ports:     []*balsav1.EndpointPort{{Name: "sql", Protocol: "TCP", Port: 15432}},
			Endpoints: []*balsav1.Endpoint{endpoint("db-0", "10.0.2.1", nil), endpoint("db-1", "10.0.1.2", nil), endpoint("db-2", "10.0.3.1", &no)}},
		&balsav1.Service{Metadata: &balsav1.ObjectMeta{Namespace: "shop", Name: "empty"}, Spec: &balsav1.ServiceSpec{ClusterIp: "10.96.0.8", Ports: []*balsav1.ServicePort{{Port: 80, Protocol: "TCP"}}}},
		&balsav1.Service{Metadata: &balsav1.ObjectMeta{Namespace: "shop", Name: "far"}, Spec: &balsav1.ServiceSpec{Type: object.ServiceExternalName, ExternalName: "example.com"}},
	}, more...)
	txn := &internalv1.Txn{}
	for _, m := range objects {
		value, err := object.Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		txn.Success = append(txn.Success, &internalv1.Op{Op: &internalv1.Op_Put{Put: &internalv1.Put{Key: []byte(object.KeyOf(m)), Value: value}}})
	}
	s.Apply(1, 1, []*internalv1.Command{{Space: store.SpaceObjects, Op: &internalv1.Command_Txn{Txn: txn}}})
	return s.Space(store.SpaceObjects).View()
}

func pod(name, node, ip string) *balsav1.Pod {
	return &balsav1.Pod{
		Metadata: &balsav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec:     &balsav1.PodSpec{NodeName: node, Containers: []*balsav1.Container{{Name: "c", Ports: []*balsav1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}},
		Status:   &balsav1.PodStatus{Phase: object.PodRunning, PodIp: ip},
	}
}

func policy() *balsav1.NetworkPolicy {
	return &balsav1.NetworkPolicy{Metadata: &balsav1.ObjectMeta{Namespace: "shop", Name: "p"}, Spec: &balsav1.NetworkPolicySpec{}}
}

func ask(t *testing.T, v store.View, r rules, from, to *balsav1.ConnectionEnd, port string) string {
	t.Helper()
	e, err := why.Explain(v, r, &balsav1.ExplainConnectionRequest{From: from, To: to, Port: port})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", e.GetVerdict(), e.GetSummary())
	for _, s := range e.GetSteps() {
		fmt.Fprintf(&b, "%s %s: %s\n", s.GetOutcome(), s.GetAt(), s.GetMessage())
	}
	for _, c := range e.Counts {
		fmt.Fprintf(&b, "count step %d on %s of %s %s allowed=%v\n", c.Step, c.Node, c.PodIP, c.Direction, c.Allowed)
	}
	return b.String()
}

func podEnd(name string) *balsav1.ConnectionEnd {
	return &balsav1.ConnectionEnd{Namespace: "shop", Pod: name}
}
func svcEnd(name string) *balsav1.ConnectionEnd {
	return &balsav1.ConnectionEnd{Namespace: "shop", Service: name}
}
func ipEnd(ip string) *balsav1.ConnectionEnd { return &balsav1.ConnectionEnd{Ip: ip} }

func TestExplain(t *testing.T) {
	const unknowable = "; whether a program listens there, the store does not know\n"
	free := "Passes egress of pod shop/web: no NetworkPolicy limits the egress of pod shop/web\n"
	for name, test := range map[string]struct {
		rules    rules
		more     []object.Message
		from, to *balsav1.ConnectionEnd
		port     string
		want     string
	}{
		"a pod on another node": {from: podEnd("web"), to: podEnd("db-0"), port: "http",
			want: "Allowed: nothing between pod shop/web and pod shop/db-0 refuses it" + unknowable + free +
				"Passes nodes n1 and n2: both are Ready\nPasses ingress of pod shop/db-0: no NetworkPolicy limits the ingress of pod shop/db-0\n"},
		"a pod of the same node, by address": {from: podEnd("web"), to: ipEnd("10.0.1.2"), port: "80",
			want: "Allowed: nothing between pod shop/web and pod shop/db-1 refuses it" + unknowable + free +
				"Passes node n1: both pods are on it\nPasses ingress of pod shop/db-1: no NetworkPolicy limits the ingress of pod shop/db-1\n"},
		"a node that is not Ready": {from: podEnd("web"), to: podEnd("lost"), port: "80",
			want: "Unknown: node n3 is not Ready: balsa describe node n3 says why\n" + free +
				"Unknown nodes n1 and n3: node n3 is not Ready: balsa describe node n3 says why\nPasses ingress of pod shop/lost: no NetworkPolicy limits the ingress of pod shop/lost\n"},
		"a pod without an address": {from: podEnd("web"), to: podEnd("new"), port: "80",
			want: "Refused: pod shop/new is not placed on a node yet: balsa describe says why\nRefuses pod shop/new: pod shop/new is not placed on a node yet: balsa describe says why\n"},
		"a policy that has not begun": {rules: rules{problems: []string{"networkpolicies/shop/p: generation 2 has not begun"}}, from: podEnd("web"), to: podEnd("db-0"), port: "http",
			want: "Allowed: nothing between pod shop/web and pod shop/db-0 refuses it" + unknowable + "Passes policies: networkpolicies/shop/p: generation 2 has not begun\n" + free +
				"Passes nodes n1 and n2: both are Ready\nPasses ingress of pod shop/db-0: no NetworkPolicy limits the ingress of pod shop/db-0\n"},
		"a policy that refuses": {more: []object.Message{policy()}, rules: rules{ingress: map[string]bool{"10.0.1.1 10.0.2.1 TCP 80": true}}, from: podEnd("web"), to: podEnd("db-0"), port: "80",
			want: "Refused: pod shop/db-0 is limited by shop/p, none of whose rules allows this connection\n" +
				"Passes egress of pod shop/web: allowed by networkpolicies/shop/p spec.ingress[0]\nPasses nodes n1 and n2: both are Ready\n" +
				"Refuses ingress of pod shop/db-0: pod shop/db-0 is limited by shop/p, none of whose rules allows this connection\n" +
				"count step 0 on n1 of 10.0.1.1 Egress allowed=true\ncount step 2 on n2 of 10.0.2.1 Ingress allowed=false\n"},
		"egress comes first": {more: []object.Message{policy()}, rules: rules{egress: map[string]bool{"10.0.1.1 192.0.2.5 TCP 443": true}}, from: podEnd("web"), to: ipEnd("192.0.2.5"), port: "443",
			want: "Refused: pod shop/web is limited by shop/p, none of whose rules allows this connection\n" +
				"Refuses egress of pod shop/web: pod shop/web is limited by shop/p, none of whose rules allows this connection\ncount step 0 on n1 of 10.0.1.1 Egress allowed=false\n"},
		"a service": {from: podEnd("web"), to: svcEnd("db"), port: "sql",
			want: "Allowed: nothing between pod shop/web and the 2 endpoints of service shop/db refuses it" + unknowable +
				"Translates service shop/db: 10.96.0.9 port 5432 leads to one of 2 endpoints; 1 more are not ready\n" + free +
				"Passes nodes n1 and n2: both are Ready\nPasses ingress of pod shop/db-0: no NetworkPolicy limits the ingress of pod shop/db-0\n"},
		"a service by its address, some of whose endpoints refuse": {more: []object.Message{policy()}, rules: rules{ingress: map[string]bool{"10.0.1.1 10.0.2.1 TCP 15432": true}},
			from: podEnd("web"), to: ipEnd("10.96.0.9"), port: "5432",
			want: "Unknown: it depends on the endpoint: 1 of 2 may be connected to; for example: pod shop/db-0 is limited by shop/p, none of whose rules allows this connection\n" +
				"Translates service shop/db: 10.96.0.9 port 5432 leads to one of 2 endpoints; 1 more are not ready\n" +
				"Passes egress of pod shop/web: allowed by networkpolicies/shop/p spec.ingress[0]\nPasses node n1: both pods are on it\n" +
				"Passes ingress of pod shop/db-1: allowed by networkpolicies/shop/p spec.ingress[0]\n" +
				"Passes egress of pod shop/web: allowed by networkpolicies/shop/p spec.ingress[0]\nPasses nodes n1 and n2: both are Ready\n" +
				"Refuses ingress of pod shop/db-0: pod shop/db-0 is limited by shop/p, none of whose rules allows this connection\n" +
				"count step 1 on n1 of 10.0.1.1 Egress allowed=true\ncount step 3 on n1 of 10.0.1.2 Ingress allowed=true\n" +
				"count step 4 on n1 of 10.0.1.1 Egress allowed=true\ncount step 6 on n2 of 10.0.2.1 Ingress allowed=false\n"},
		"a service without endpoints": {from: podEnd("web"), to: svcEnd("empty"), port: "80",
			want: "Refused: service shop/empty: no endpoint is ready\nRefuses service shop/empty: no endpoint is ready\n"},
		"another name": {from: podEnd("web"), to: svcEnd("far"), port: "80",
			want: "Unknown: the name stands for example.com, which is not of this cluster: nothing here decides about it\n" +
				"Unknown service shop/far: the name stands for example.com, which is not of this cluster: nothing here decides about it\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, ask(t, cluster(t, test.more...), test.rules, test.from, test.to, test.port)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestBadQuestions(t *testing.T) {
	v := cluster(t)
	for want, q := range map[string]*balsav1.ExplainConnectionRequest{
		"from: give":              {},
		"from.service":            {From: svcEnd("db"), To: podEnd("web"), Port: "80"},
		"to.pod":                  {From: podEnd("web"), To: podEnd("none"), Port: "80"},
		"to.service":              {From: podEnd("web"), To: svcEnd("none"), Port: "80"},
		"to.ip":                   {From: podEnd("web"), To: ipEnd("2001:db8::1"), Port: "80"},
		"to: found":               {From: podEnd("web"), To: &balsav1.ConnectionEnd{Pod: "a", Service: "b"}, Port: "80"},
		"protocol: found":         {From: podEnd("web"), To: podEnd("db-0"), Port: "80", Protocol: "SCTP"},
		"port: found \"0\"":       {From: podEnd("web"), To: podEnd("db-0"), Port: "0"},
		"named TCP ports: [http]": {From: podEnd("web"), To: podEnd("db-0"), Port: "metrics"},
		"has no TCP port \"stats\"; it has sql 5432": {From: podEnd("web"), To: svcEnd("db"), Port: "stats"},
	} {
		_, err := why.Explain(v, rules{}, q)
		var asked *why.Error
		if !errors.As(err, &asked) || asked.Hint == "" {
			t.Errorf("%v: %v", q, err)
			continue
		}
		if want = strings.TrimSuffix(want, " give"); !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", q, err, want)
		}
	}
}

func TestNobodyKnowsNamesOfAddresses(t *testing.T) {
	v := cluster(t)
	_, err := why.Explain(v, rules{}, &balsav1.ExplainConnectionRequest{From: ipEnd(netip.MustParseAddr("192.0.2.1").String()), To: ipEnd("192.0.2.2"), Port: "http"})
	if err == nil || !strings.Contains(err.Error(), "port") {
		t.Errorf("got %v", err)
	}
	got := ask(t, v, rules{}, ipEnd("192.0.2.1"), ipEnd("192.0.2.2"), "80")
	if !strings.HasPrefix(got, "Unknown") {
		t.Errorf("two addresses of nobody: %s", got)
	}
}
