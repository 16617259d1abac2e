package apiserver

import (
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/pki"
)

func (w *world) agent(name string) *clients { return w.as(pki.RoleAgent, name) }

func (w *world) register(name string) *balsav1.RegisterResponse {
	w.t.Helper()
	res, err := w.agent(name).nodes.Register(w.t.Context(), &balsav1.RegisterRequest{Node: newNode(name)})
	must(w.t, err)
	return res
}

func newNode(name string) *balsav1.Node {
	return &balsav1.Node{
		Metadata: &balsav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name}},
		Status: &balsav1.NodeStatus{
			Addresses:   []*balsav1.NodeAddress{{Type: "InternalIP", Address: "10.0.0.9"}},
			Allocatable: map[string]*balsav1.Quantity{"cpu": {String_: "2"}, "memory": {String_: "4Gi"}, "pods": {String_: "110"}},
		},
	}
}
