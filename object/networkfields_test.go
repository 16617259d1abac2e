package object_test

import (
	"fmt"
	"testing"
)

const networkFieldsPage = "docs/reference/network-fields.md"

const networkFieldsHead = `# Fields of Services, policies, budgets, pools and Deployments

Every field of Kubernetes 1.36's Service, NetworkPolicy, PodDisruptionBudget and Deployment, of their specs and what these are
made of, and those of Balsa's AddressPool. A field is either

* **honoured**, with the test that shows it, or
* **refused by name**: a manifest with it is not accepted, and the message names the field and says "not supported yet".
  That holds for everything inside of such a field. Nothing is accepted and ignored.

A field that the object's other fields leave without meaning, for example a nodePort with type ClusterIP, is refused as well,
and says of what it has a meaning. Kubernetes takes some of these. The exception is Kubernetes' own: a Service of type
ExternalName may keep its selector and ports.

What a pod's template may say is in [pod-spec.md](pod-spec.md). "pending" is what no test shows yet. This page is made from
the code by

    go test ./object -run TestNetworkFields -update

and a test fails when it is out of date. It takes Kubernetes' fields from ` + "`object/testdata/kubernetes.txt`" + ` and the tests'
names from ` + "`object/testdata/networkfields.txt`" + `; each refusal was tried.
`

// TestNetworkFields is TestPodSpec for the kinds of the network and of rollouts.
func TestNetworkFields(t *testing.T) {
	p := newFieldPage(t, "networkfields.txt")
	seen := map[string]bool{"PodTemplateSpec": true} // a page of its own
	for _, kind := range []string{"Service", "NetworkPolicy", "PodDisruptionBudget", "AddressPool", "Deployment"} {
		for _, of := range typesOf(p.types, specOf(kind), seen) {
			p.table(t, of)
		}
	}
	p.finish(t)
	if p.honoured < 55 || p.refused < 2 {
		t.Errorf("%d fields honoured, %d refused: the search is broken", p.honoured, p.refused)
	}
	count := fmt.Sprintf("\n%d fields are honoured, %d of them with a test pending; %d are refused by name.\n", p.honoured, p.pending, p.refused)
	comparePage(t, networkFieldsPage, "TestNetworkFields", networkFieldsHead+count+p.text.String())
}
