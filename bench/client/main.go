// Client is what `make bench-pods` puts on a host of the lab: it starts pods
// through the API and runs programs in them, or does the same with the runtime
// of a node alone, without servers and agent. Each time is taken in this process
// by one clock; the report is a line of JSON. It is told what to do by
// package bench, and is of no use otherwise.
//
//	client -out FILE -config FILE -image NAME -node NAME -count N -size N pods
//	client -out FILE -config FILE -pod NAME -count N execs PROGRAM [ARG...]
//	client -out FILE -helpers DIR -layer DIR -count N -size N -program FILE starts
//	client -out FILE -helpers DIR -layer DIR -count N direct-execs PROGRAM [ARG...]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/balsa-run/balsa/chaos/load"
	"github.com/balsa-run/balsa/client"
)

type options struct {
	out, config, image, node, pod string
	helpers, layer, dir, cgroup   string
	count, size                   int
	cold                          bool
	what                          string
	args                          []string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, parse()); err != nil {
		fmt.Fprintf(os.Stderr, "bench client: %v\n", err)
		stop()
		os.Exit(1)
	}
}

func parse() options {
	var o options
	flag.StringVar(&o.out, "out", "", "file for the report")
	flag.StringVar(&o.config, "config", "", "client configuration")
	flag.StringVar(&o.image, "image", "", "of the pods")
	flag.StringVar(&o.node, "node", "", "where the pods go")
	flag.StringVar(&o.pod, "pod", "", "in which programs are run")
	flag.StringVar(&o.helpers, "helpers", "", "folder of the helper programs")
	flag.StringVar(&o.layer, "layer", "", "unpacked layer of the containers")
	flag.StringVar(&o.dir, "dir", "", "folder of the runtime")
	flag.StringVar(&o.cgroup, "cgroup", "", "prefix of the runtime")
	flag.IntVar(&o.count, "count", 1, "how often, after one that does not count")
	flag.IntVar(&o.size, "size", 1, "how many at once")
	flag.BoolVar(&o.cold, "cold", false, "no pod comes first, so the node has to bring the image")
	flag.Parse()
	o.what = flag.Arg(0)
	o.args = flag.Args()[min(1, flag.NArg()):]
	return o
}

func run(ctx context.Context, o options) error {
	var result any
	var err error
	switch o.what {
	case "pods":
		result, err = pods(ctx, o)
	case "execs":
		result, err = execs(ctx, o)
	case "starts", "direct-execs":
		result, err = direct(ctx, o)
	default:
		err = errors.New("usage: client FLAGS pods|execs|starts|direct-execs [PROGRAM [ARG...]]")
	}
	if err != nil {
		return err
	}
	text, err := json.Marshal(result)
	if err != nil {
		return err
	}
	return os.WriteFile(o.out, append(text, '\n'), 0o644)
}

func pods(ctx context.Context, o options) (load.BatchReport, error) {
	c, err := client.FromFile(o.config)
	if err != nil {
		return load.BatchReport{}, err
	}
	defer c.Close()
	batches := load.BatchOptions{Size: o.size, PodOptions: load.PodOptions{
		Namespace: "default", Prefix: fmt.Sprintf("b%d", o.size), Image: o.image, Count: o.count,
		Selector: map[string]string{"kubernetes.io/hostname": o.node},
	}}
	if !o.cold {
		batches.Nodes = []string{o.node}
	}
	return load.Batches(ctx, c, batches)
}

func execs(ctx context.Context, o options) (load.ExecReport, error) {
	c, err := client.FromFile(o.config)
	if err != nil {
		return load.ExecReport{}, err
	}
	defer c.Close()
	return load.Execs(ctx, c, load.ExecOptions{Namespace: "default", Pod: o.pod, Command: o.args, Count: o.count})
}
