// Sdk lists the pods of a cluster and what they wait for: a small program on
// Balsa's Go SDK, in a module of its own as yours would be.
//
//	go run . -config ../../balsa-dev/admin.yaml
//	go run . -config admin.yaml -namespace hello -watch
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"github.com/balsa-run/balsa/client"
	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

func main() {
	config := flag.String("config", "admin.yaml", "client configuration, from balsa dev, balsa server --init or balsa user create")
	namespace := flag.String("namespace", "", "only its pods; empty: all")
	watch := flag.Bool("watch", false, "go on with changes until ctrl-C")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *config, *namespace, *watch); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, config, namespace string, watch bool) error {
	c, err := client.FromFile(config)
	if err != nil {
		return err
	}
	defer c.Close()
	pods, err := client.List[*balsav1.Pod](ctx, c, namespace, client.ListOptions{})
	if err != nil {
		return err
	}
	for _, pod := range pods.Items {
		show("", pod)
	}
	if !watch {
		return nil
	}
	// From the list's revision on: nothing is missed and nothing told twice, also
	// when a server goes away.
	for event, err := range client.Watch[*balsav1.Pod](ctx, c, namespace, client.WatchOptions{ResourceVersion: pods.ResourceVersion}) {
		if err != nil {
			return err
		}
		show(string(event.Type)+" ", event.Object)
	}
	return nil
}

func show(prefix string, pod *balsav1.Pod) {
	fmt.Printf("%s%s/%s %s%s\n", prefix, pod.GetMetadata().GetNamespace(), pod.GetMetadata().GetName(), pod.GetStatus().GetPhase(), waitsFor(pod))
}

// waitsFor is why a pod does not run yet, if its conditions tell.
func waitsFor(pod *balsav1.Pod) string {
	for _, condition := range pod.GetStatus().GetConditions() {
		if condition.GetType() == "PodScheduled" && condition.GetStatus() == "False" {
			return ": " + condition.GetMessage()
		}
	}
	return ""
}
