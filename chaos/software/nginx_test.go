package software

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/balsa-run/balsa/chaos/stage"
)

// pages are what is asked for: a short one, and one that takes more than a second,
// so that whatever ends a pod meets an answer that is under way.
func pages() map[string]string { return map[string]string{"short": "", "long": "slow"} }

// nginx is asked all the time, over the service and from both nodes, while its
// pages and its configuration change, a pod is deleted and it is scaled. No
// request may fail.
func nginx(t *testing.T, c *cluster) {
	c.apply(t, "nginx.yaml")
	pods, err := c.WaitReady(t.Context(), "web", 3, patience)
	must(t, err)
	var service struct {
		Spec struct {
			ClusterIP string `json:"clusterIP"`
		} `json:"spec"`
	}
	must(t, c.Decode(t.Context(), &service, "get", "service", "nginx", "-n", "web"))
	url := "http://" + service.Spec.ClusterIP + "/"
	loads := map[string]*stage.Requests{}
	for _, agent := range c.Agents {
		for page, path := range pages() {
			name := "nginx-" + page + "-" + agent.Host.Name
			loads[name], err = c.StartRequests(agent.Host, c.programs.Chaos, url+path, name)
			must(t, err)
		}
	}
	c.replaceNginx(t, c.newPage(t, pods))
	for _, count := range []string{"5", "2"} {
		c.balsa(t, "scale", "deployment/nginx", "-n", "web", "--replicas", count)
		c.until(t, count+" pods to be ready", func(ctx context.Context) error {
			all, err := c.Pods(ctx, "web")
			if err != nil || fmt.Sprint(len(all)) != count {
				return fmt.Errorf("%d are there: %w", len(all), err)
			}
			_, err = c.WaitReady(ctx, "web", len(all), time.Second)
			return err
		})
	}
	for name, load := range loads {
		report, err := load.Stop()
		must(t, err)
		t.Logf("%s: %d requests, %d failed, longest gap %d ms", name, report.Requests, report.Failed, report.LongestGapMS)
		if report.Failed > 0 {
			t.Errorf("%s: requests failed: %v", name, report.Errors)
		}
	}
	c.noRestarts(t, "web")
	c.balsa(t, "delete", "namespace", "web")
}

// newPage changes the ConfigMap, which is a rollout: what the pods of a revision
// see stays as it is. It waits until all pods are others, with the new page and the
// new configuration.
func (c *cluster) newPage(t *testing.T, before []stage.Pod) (pods []stage.Pod) {
	t.Helper()
	started := time.Now()
	c.apply(t, "nginx.yaml", "page 1", "page 2", `Configuration "1"`, `Configuration "2"`)
	c.until(t, "every pod to be of the new revision", func(ctx context.Context) error {
		var err error
		if pods, err = c.Pods(ctx, "web"); err != nil || len(pods) != len(before) {
			return fmt.Errorf("%d pods are there: %w", len(pods), err)
		}
		for _, p := range pods {
			if !p.Ready() || slices.ContainsFunc(before, func(o stage.Pod) bool { return o.Metadata.UID == p.Metadata.UID }) {
				return fmt.Errorf("pod %s is of the old one, or not ready", p.Metadata.Name)
			}
		}
		return nil
	})
	c.eachServes(t, pods, "page 2")
	t.Logf("a change of the ConfigMap was served by all pods after %v", time.Since(started).Round(time.Millisecond))
	c.eachServes(t, pods, "Configuration: 2")
	return pods
}

func (c *cluster) eachServes(t *testing.T, pods []stage.Pod, want string) {
	t.Helper()
	for _, pod := range pods {
		c.until(t, pod.Metadata.Name+" to serve "+want, func(ctx context.Context) error {
			out, err := c.Agents[0].Host.Run(ctx, "curl", "-sSi", "--max-time", "10", "http://"+pod.Status.PodIP+":8080/")
			if err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("it answered %q", out)
			}
			return err
		})
	}
}

// replaceNginx deletes a pod and waits for another in its place.
func (c *cluster) replaceNginx(t *testing.T, pods []stage.Pod) {
	t.Helper()
	c.balsa(t, "delete", "pod", pods[0].Metadata.Name, "-n", "web")
	now, err := c.WaitReady(t.Context(), "web", 3, patience)
	must(t, err)
	for _, pod := range now {
		if pod.Metadata.UID == pods[0].Metadata.UID {
			t.Errorf("the deleted pod %s is there", pod.Metadata.Name)
		}
	}
	c.eachServes(t, now, "Configuration: 2")
}

// noRestarts: the probes found nothing wrong with what was well.
func (c *cluster) noRestarts(t *testing.T, namespace string) {
	t.Helper()
	pods, err := c.Pods(t.Context(), namespace)
	must(t, err)
	for _, pod := range pods {
		for _, status := range pod.Status.ContainerStatuses {
			if status.RestartCount > 0 {
				t.Errorf("pod %s was restarted %d times\n%s", pod.Metadata.Name, status.RestartCount, c.balsa(t, "describe", "pod", pod.Metadata.Name, "-n", namespace))
			}
		}
	}
}
