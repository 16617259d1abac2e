package main

import (
	"context"
	"fmt"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/object"
)

// podNamed is the pod that "NAME", "pod/NAME", "deploy/NAME", "rs/NAME" or
// "svc/NAME" means: of several the first that is ready.
func (a *app) podNamed(ctx context.Context, c *client.Client, arg string) (string, error) {
	if !strings.Contains(arg, "/") {
		return arg, nil
	}
	kind, name, err := one([]string{arg})
	if err != nil {
		return "", err
	}
	if kind.Name == "Pod" {
		return name, nil
	}
	selector, err := a.selectorOf(ctx, c, kind, name)
	if err != nil {
		return "", err
	}
	pod, err := a.readyPod(ctx, c, selector)
	if err != nil {
		return "", fmt.Errorf("%s: %w", arg, err)
	}
	return pod.GetMetadata().GetName(), nil
}

// selectorOf is how an object chooses its pods.
func (a *app) selectorOf(ctx context.Context, c *client.Client, kind object.Kind, name string) (string, error) {
	var labels map[string]string
	switch kind.Name {
	case "Deployment":
		d, err := client.Get[*balsav1.Deployment](ctx, c, a.namespace, name, client.GetOptions{})
		if err != nil {
			return "", err
		}
		labels = d.GetSpec().GetSelector().GetMatchLabels()
	case "ReplicaSet":
		r, err := client.Get[*balsav1.ReplicaSet](ctx, c, a.namespace, name, client.GetOptions{})
		if err != nil {
			return "", err
		}
		labels = r.GetSpec().GetSelector().GetMatchLabels()
	case "Service":
		s, err := client.Get[*balsav1.Service](ctx, c, a.namespace, name, client.GetOptions{})
		if err != nil {
			return "", err
		}
		labels = s.GetSpec().GetSelector()
	default:
		return "", &usageError{fmt.Errorf("%s/%s has no pods: name a pod, deployment, replicaset or service", kind.Singular, name)}
	}
	if len(labels) == 0 {
		return "", fmt.Errorf("%s/%s chooses no pods by labels: name a pod", kind.Singular, name)
	}
	return labelText(labels), nil
}

func labelText(labels map[string]string) string {
	var parts []string
	for key, value := range labels {
		parts = append(parts, key+"="+value)
	}
	return strings.Join(parts, ",")
}

// readyPod is the first pod that is ready, else the first that runs.
func (a *app) readyPod(ctx context.Context, c *client.Client, selector string) (*balsav1.Pod, error) {
	pods, err := client.List[*balsav1.Pod](ctx, c, a.namespace, client.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, err
	}
	var running *balsav1.Pod
	for _, pod := range pods.Items {
		if pod.GetMetadata().GetDeletionTimestamp() != nil {
			continue
		}
		if object.PodReady(pod) {
			return pod, nil
		}
		if running == nil && pod.GetStatus().GetPhase() == object.PodRunning {
			running = pod
		}
	}
	if running == nil {
		return nil, fmt.Errorf("none of its %d pods runs (selector %s)", len(pods.Items), selector)
	}
	return running, nil
}
