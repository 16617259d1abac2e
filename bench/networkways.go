package bench

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/balsa-run/balsa/chaos/stage"
	"github.com/balsa-run/balsa/chaos/world/host"
)

const (
	// Of the load of requests.
	requestClients = 8
	requestRound   = 2000
	podPort        = "8080"
)

// Pods "near", on the first node, and "far", on the second one, and one more: the
// service "flip" selects one of the first two, "web" always the far one.
const wayPods = `apiVersion: v1
kind: Service
metadata: {name: flip, namespace: default}
spec:
  selector: {at: near}
  ports: [{name: udp, protocol: UDP, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  selector: {at: far}
  ports: [{name: http, port: 80, targetPort: 8080}]
`

const wayPod = `---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: default, labels: {app: flip, at: %[1]s}}
spec:
  nodeSelector: {kubernetes.io/hostname: %[2]s}
  containers:
  - name: main
    image: balsa/echo:1
    env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
`

// wayCluster lends a cluster with those pods and services, and says where the far
// pod is.
func (g *NetworkGround) wayCluster(ctx context.Context, use func(s *stage.Stage, far string) error) error {
	return g.cluster(ctx, clusterServers, clusterAgents, func(s *stage.Stage) error {
		if _, err := s.Balsa(ctx, "image", "import", g.Programs.Echo); err != nil {
			return err
		}
		manifest, near, far := wayPods, s.Agents[0].Host.Name, s.Agents[1].Host.Name
		for i, pod := range []string{"near", "far", "third"} {
			manifest += fmt.Sprintf(wayPod, pod, []string{near, far, far}[i])
		}
		if err := writeManifest(ctx, s, "ways", manifest); err != nil {
			return err
		}
		pods, err := s.WaitReady(ctx, "default", endpointsEach, rolloutFor)
		if err != nil {
			return err
		}
		for _, pod := range pods {
			if pod.Metadata.Name == "far" {
				return use(s, pod.Status.PodIP)
			}
		}
		return fmt.Errorf("there is no pod far among %d", len(pods))
	})
}

// ways are how long a change is on its way to a packet, and what the way through a
// service costs.
func (g *NetworkGround) ways(flips, rounds int) []Measure {
	t := newTrial(func(ctx context.Context, t *takings) error {
		return g.wayCluster(ctx, func(s *stage.Stage, far string) error {
			if err := g.flips(ctx, s, t, "api-to-packet", flips); err != nil {
				return err
			}
			web, err := serviceIP(ctx, s, "web")
			if err != nil {
				return err
			}
			h := s.Agents[0].Host
			for round := range rounds {
				err := inTurn(round, func() error { return g.requests(ctx, h, t, "clusterip", web+":80") },
					func() error { return g.requests(ctx, h, t, "pod-address", far+":"+podPort) })
				if err != nil {
					return err
				}
			}
			for _, what := range []string{"requests", "latency"} {
				t.compare("clusterip-"+what, "pod-address-"+what)
			}
			return nil
		})
	})
	asked := fmt.Sprintf("%d clients on one node, each over a new connection each time, a web server in a pod of another node", requestClients)
	return []Measure{
		part{t, "api-to-packet", flipQuestion("three servers and two nodes"), milliseconds(), []Target{{Of: P99, Under: 50}}},
		part{t, "clusterip-requests", "How many requests a second do " + asked + " answer that they ask by the address of a service? A value is a round of " + strconv.Itoa(requestRound) + ", in turns with pod-address-requests.", requestsPerSecond(), nil},
		part{t, "pod-address-requests", "How many do they answer that they ask by the pod's own address?", requestsPerSecond(), nil},
		part{t, "clusterip-latency", "How long does each of those requests by the service's address take, with its connection?", fineMilliseconds(), nil},
		part{t, "pod-address-latency", "How long does each of those requests by the pod's own address take?", fineMilliseconds(), nil},
	}
}

func flipQuestion(where string) string {
	return "On " + where + ": how long from sending the write that lets a service select a pod of another node, in place of one of this node, until the first answer of that pod is here? " +
		"Datagrams are sent every 2 ms, each from a new socket; the write goes through API, raft, the reconciler of endpoints and both agents."
}

func requestsPerSecond() Unit { return Unit{Name: "requests/s"} }
func queriesPerSecond() Unit  { return Unit{Name: "queries/s"} }

// flips plays the client on the first node.
func (g *NetworkGround) flips(ctx context.Context, s *stage.Stage, t *takings, name string, count int) error {
	var report struct {
		FirstMS        []float64 `json:"firstMS"`
		AcknowledgedMS []float64 `json:"acknowledgedMS"`
	}
	if err := g.ask(ctx, s.Agents[0].Host, &report, "-config", s.Admin(), "-service", "flip", "-count", strconv.Itoa(count), "flips"); err != nil {
		return err
	}
	t.add(name, report.FirstMS...)
	if len(report.AcknowledgedMS) > 0 {
		t.note(name, "p99 %.1f ms; of this, the median write was acknowledged after %.1f ms", P99.Of(report.FirstMS), Median.Of(report.AcknowledgedMS))
	}
	return nil
}

// serviceIP is the address of a service.
func serviceIP(ctx context.Context, s *stage.Stage, name string) (string, error) {
	var service struct {
		Spec struct {
			ClusterIP string `json:"clusterIP"`
		} `json:"spec"`
	}
	if err := s.Decode(ctx, &service, "get", "service", name, "-n", "default"); err != nil {
		return "", err
	}
	if strings.Count(service.Spec.ClusterIP, ".") != 3 {
		return "", fmt.Errorf("service %s has address %q", name, service.Spec.ClusterIP)
	}
	return service.Spec.ClusterIP, nil
}

// load is what the client reports of requests and queries.
type answered struct {
	TookMS  []float64 `json:"tookMS"`
	Seconds float64   `json:"seconds"`
}

func (a answered) rate() float64 { return float64(len(a.TookMS)) / a.Seconds }

func (g *NetworkGround) requests(ctx context.Context, h *host.Host, t *takings, name, address string) error {
	var report answered
	if err := g.ask(ctx, h, &report, "-address", address, "-count", strconv.Itoa(requestRound), "-size", strconv.Itoa(requestClients), "requests"); err != nil {
		return err
	}
	t.add(name+"-requests", report.rate())
	t.add(name+"-latency", report.TookMS...)
	return nil
}
