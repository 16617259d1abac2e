package faults

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/balsa-run/balsa/chaos/stage"
	"github.com/balsa-run/balsa/chaos/world/host"
)

// network is a cluster whose services are asked from everywhere.
type network struct {
	*testing.T
	s *stage.Stage
}

func (n *network) balsa(args ...string) string {
	n.Helper()
	out, err := n.s.Balsa(n.Context(), args...)
	must(n.T, err)
	return strings.TrimSpace(out)
}

// pods are those of a namespace whose names begin so, ready and with an address.
func (n *network) pod(namespace, prefix string) (found stage.Pod) {
	n.Helper()
	must(n.T, n.s.Until(n.Context(), converge, "pod "+prefix, func(ctx context.Context) error {
		pods, err := n.s.Pods(ctx, namespace)
		if err != nil {
			return err
		}
		for _, p := range pods {
			if strings.HasPrefix(p.Metadata.Name, prefix) && p.Ready() {
				found = p
				return nil
			}
		}
		return errors.New("none is ready")
	}))
	return found
}

func (n *network) hostOf(p stage.Pod) *host.Host {
	for _, a := range n.s.Agents {
		if a.Host.Name == p.Spec.NodeName {
			return a.Host
		}
	}
	n.Fatalf("pod %s runs nowhere", p.Metadata.Name)
	return nil
}

func get(ctx context.Context, from *host.Host, url string) (string, error) {
	return from.Run(ctx, "curl", "--silent", "--show-error", "--fail", "--max-time", "3", url)
}

// answers waits until a URL answers from a host.
func (n *network) answers(what string, from *host.Host, url string) string {
	n.Helper()
	var text string
	must(n.T, n.s.Until(n.Context(), converge, what+" "+url, func(ctx context.Context) (err error) {
		text, err = get(ctx, from, url)
		return err
	}))
	return text
}

// asks is what a pod sees at a URL.
func (n *network) asks(p stage.Pod, url string) (string, error) {
	return get(n.Context(), n.hostOf(p), "http://"+p.Status.PodIP+":8080/fetch?u="+url)
}

func withNetwork(t *testing.T) *network {
	t.Helper()
	s, programs := up(t, "nw", 1, 2)
	n := &network{t, s}
	n.balsa("image", "import", programs.Echo)
	n.balsa("apply", "-f", "testdata/network/app.yaml")
	_, err := s.WaitReady(t.Context(), "shop", 3, converge)
	must(t, err)
	n.pod("lab", "stranger")
	return n
}

// serviceSpec is what the test needs of a Service.
type serviceSpec struct {
	Spec struct {
		ClusterIP string `json:"clusterIP"`
	} `json:"spec"`
	Status struct {
		LoadBalancer struct {
			Ingress []struct {
				IP string `json:"ip"`
			} `json:"ingress"`
		} `json:"loadBalancer"`
	} `json:"status"`
}

func (n *network) service(name string) (clusterIP, address string) {
	n.Helper()
	var svc serviceSpec
	must(n.T, n.s.Until(n.Context(), converge, "service "+name, func(ctx context.Context) error {
		svc = serviceSpec{}
		if err := n.s.Decode(ctx, &svc, "get", "service", name, "-n", "shop"); err != nil {
			return err
		}
		if strings.HasPrefix(name, "sticky") || len(svc.Status.LoadBalancer.Ingress) > 0 {
			return nil
		}
		return errors.New("it has no address of a pool")
	}))
	if len(svc.Status.LoadBalancer.Ingress) > 0 {
		address = svc.Status.LoadBalancer.Ingress[0].IP
	}
	return svc.Spec.ClusterIP, address
}

// TestServicesAndPolicies asks one app in every way that there is, from inside and
// outside, then limits who may.
func TestServicesAndPolicies(t *testing.T) {
	n := withNetwork(t)
	outside, node := n.s.Operator, n.s.Agents[0].Host
	clusterIP, address := n.service("web")
	n.answers("the cluster IP from a node", node, "http://"+clusterIP+"/")
	for _, a := range n.s.Agents {
		n.answers("the node port of "+a.Host.Name+" from outside", outside, "http://"+a.Host.Address+":30080/")
	}
	n.answers("the pool's address from outside", outside, "http://"+address+"/")
	n.answers("the pool's address from a node", node, "http://"+address+"/")
	friend, stranger := n.pod("shop", "friend"), n.pod("lab", "stranger")
	n.answers("the port of the node that leads to a pod", outside, "http://"+n.hostOf(friend).Address+":8099/healthz")
	for _, url := range []string{"http://web/", "http://web.shop/", "http://alias.shop/", "http://" + address + "/"} {
		if out, err := n.asks(friend, url); err != nil {
			t.Errorf("a pod asks %s: %v %s", url, err, out)
		}
	}
	n.sticks()
	n.keepsTheSource(outside)
	n.limits(friend, stranger, node)
}

// sticks: a client of a sticky service is always led to the same pod.
func (n *network) sticks() {
	n.Helper()
	clusterIP, _ := n.service("sticky")
	from := n.s.Agents[1].Host
	first := n.answers("the sticky service", from, "http://"+clusterIP+"/")
	for range 20 {
		if again, err := get(n.Context(), from, "http://"+clusterIP+"/"); err != nil || again != first {
			n.Errorf("the sticky service answers %q, then %q %v", first, again, err)
		}
	}
}

// keepsTheSource: with the policy Local a pod sees who asks.
func (n *network) keepsTheSource(outside *host.Host) {
	n.Helper()
	_, address := n.service("local")
	n.answers("the address with the policy Local", outside, "http://"+address+"/")
	must(n.T, n.s.Until(n.Context(), converge, "a pod to tell who asked", func(ctx context.Context) error {
		logs, err := n.s.Balsa(ctx, "logs", "-n", "shop", "-l", "app=web", "--tail", "200")
		if err == nil && !strings.Contains(logs, "from "+outside.Address+":") {
			err = fmt.Errorf("nobody was asked by %s", outside.Address)
		}
		return err
	}))
}

// limits: a policy lets in whom it names, on the port that it names, and `why`
// tells the same.
func (n *network) limits(friend, stranger stage.Pod, node *host.Host) {
	n.Helper()
	if out, err := n.asks(stranger, "http://web.shop/"); err != nil {
		n.Fatalf("without a policy: %v %s", err, out)
	}
	n.balsa("apply", "-f", "testdata/network/policy.yaml")
	must(n.T, n.s.Until(n.Context(), converge, "the stranger to be kept out", func(context.Context) error {
		if out, err := n.asks(stranger, "http://web.shop/"); err == nil {
			return fmt.Errorf("it was answered %q", out)
		}
		return nil
	}))
	if out, err := n.asks(friend, "http://web.shop/"); err != nil {
		n.Errorf("the friend is kept out as well: %v %s", err, out)
	}
	web := n.pod("shop", "web-")
	if out, err := get(n.Context(), n.hostOf(web), "http://"+web.Status.PodIP+":8080/healthz"); err != nil {
		n.Errorf("a node cannot reach its own pod: %v %s", err, out)
	}
	n.why(3, "Refused: ", "lab/stranger", "shop/svc/web:http", "limited by shop/web", "counted there: ")
	n.why(0, "Allowed: ", "shop/friend", "shop/svc/web:80", "networkpolicies/shop/web spec.ingress[0]")
	n.why(3, "Refused: ", "shop/friend", "shop/"+web.Metadata.Name+":9090", "limited by shop/web")
	n.balsa("delete", "-f", "testdata/network/policy.yaml")
	must(n.T, n.s.Until(n.Context(), converge, "the stranger to be let in again", func(context.Context) error {
		_, err := n.asks(stranger, "http://web.shop/")
		return err
	}))
}

func (n *network) why(code int, verdict, from, to string, says ...string) {
	n.Helper()
	out, err := n.s.Balsa(n.Context(), "why", "connection", from, to)
	var ended *exec.ExitError
	if code != 0 && (!errors.As(err, &ended) || ended.ExitCode() != code) || code == 0 && err != nil {
		n.Errorf("why connection %s %s: ended with %v, want %d", from, to, err, code)
	}
	for _, text := range append(says, verdict) {
		if !strings.Contains(out+fmt.Sprint(err), text) {
			n.Errorf("why connection %s %s says\n%s%v\nwithout %q", from, to, out, err, text)
		}
	}
}
