package apiserver

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/balsa-run/balsa/apiserver/why"
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
)

// policiesFake limits every pod and refuses whatever comes in.
type policiesFake struct{}

func (policiesFake) Judge(why.Connection) why.Judgement {
	return why.Judgement{
		Egress:  why.Decision{Allowed: true, Limited: true, DecidedBy: "networkpolicies/default/p spec.egress[0]"},
		Ingress: why.Decision{Limited: true, Policies: []string{"default/p"}},
	}
}

func (a *agentFake) PolicyCounters(_ context.Context, req *internalv1.PolicyCountersRequest) (*internalv1.PolicyCountersResponse, error) {
	return &internalv1.PolicyCountersResponse{Counters: []*internalv1.PolicyCounter{
		{PodIp: req.GetPodIp(), Direction: "Egress", Allowed: 7, Refused: 1}, {PodIp: req.GetPodIp(), Direction: "Ingress", Allowed: 2, Refused: 5},
	}}, nil
}

// TestExplainConnection: what the nodes counted stands at the step where they did,
// and a silent node costs its figures only.
func TestExplainConnection(t *testing.T) {
	withAgent(t, func(t *testing.T, w *world, a *agentFake, pod *balsav1.Pod) {
		kv, _ := w.objects().Get(object.KeyOf(pod))
		bound := object.Clone(kv.Object.(*balsav1.Pod))
		bound.Status = &balsav1.PodStatus{Phase: object.PodRunning, PodIp: "10.244.1.5"}
		w.direct(bound)
		end := &balsav1.ConnectionEnd{Pod: pod.GetMetadata().GetName()}
		ask := &balsav1.ExplainConnectionRequest{From: end, To: end, Port: "80"}
		res, err := w.reader().network.ExplainConnection(t.Context(), ask)
		must(t, err)
		if steps := res.GetSteps(); res.GetVerdict() != why.Refused || len(steps) != 3 || steps[0].GetPackets() != 7 || steps[2].GetPackets() != 5 {
			t.Errorf("got %v", res)
		}
		a.silent = "n1"
		res, err = w.reader().network.ExplainConnection(t.Context(), ask)
		must(t, err)
		if len(res.GetSteps()) != 3 || res.GetSteps()[0].Packets != nil {
			t.Errorf("with a silent node %v", res)
		}
		_, err = w.reader().network.ExplainConnection(t.Context(), &balsav1.ExplainConnectionRequest{From: end, To: &balsav1.ConnectionEnd{Pod: "absent"}, Port: "80"})
		refused(t, err, connect.CodeNotFound, "NotFound")
		_, err = w.reader().network.ExplainConnection(t.Context(), &balsav1.ExplainConnectionRequest{From: end, To: end, Port: "none"})
		refused(t, err, connect.CodeInvalidArgument, "Invalid")
		_, err = w.as(pki.RoleAgent, "n1").network.ExplainConnection(t.Context(), ask)
		refused(t, err, connect.CodePermissionDenied, "Forbidden")
		<-time.NewTimer(2 * time.Minute).C // until the last dial is given up
	})
}
