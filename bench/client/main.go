// Client is what `make bench-pods` and `make bench-network` put on a host of the
// lab. For pods it starts them through the API and runs programs in them, or does
// the same with the runtime of a node alone, without servers and agent. For the
// network it programs the rules of many services, asks services and resolvers, and
// looks when a change of the API has reached a packet. Each time is taken in this
// process by one clock; the report is a line of JSON. It is told what to do by
// package bench, and is of no use otherwise.
//
//	client -out FILE -config FILE -image NAME -node NAME -count N -size N pods
//	client -out FILE -config FILE -pod NAME -count N execs PROGRAM [ARG...]
//	client -out FILE -helpers DIR -layer DIR -count N -size N -program FILE starts
//	client -out FILE -helpers DIR -layer DIR -count N direct-execs PROGRAM [ARG...]
//	client -out FILE -address IP -services N -endpoints N -count N -changes N rules
//	client -out FILE -config FILE -service NAME -count N flips
//	client -out FILE -config FILE -services N -endpoints N create
//	client -out FILE -config FILE -service NAME mark
//	client -out FILE -address IP await
//	client -out FILE -address IP -count N deletions
//	client -out FILE -address IP:PORT -count N -size N requests
//	client -out FILE -address IP:PORT -services N -count N -size N queries
//	client -out PREFIX -services N zone-files
//	client -address IP:PORT -services N -endpoints N resolver
//	client -out FILE -address URL,URL -ca FILE -cert FILE -key FILE etcd-writes
//	client -out FILE -address URL -ca FILE -cert FILE -key FILE answer
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/balsa-run/balsa/chaos/load"
	"github.com/balsa-run/balsa/client"
)

type options struct {
	out, config, image, node, pod string
	helpers, layer, dir, cgroup   string
	address, service              string
	count, size                   int
	services, endpoints, changes  int
	cold                          bool
	ca, cert, key                 string
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
	flag.StringVar(&o.address, "address", "", "of this host, a service or a server")
	flag.StringVar(&o.ca, "ca", "", "whose certificates are trusted")
	flag.StringVar(&o.cert, "cert", "", "certificate to show")
	flag.StringVar(&o.key, "key", "", "its key")
	flag.StringVar(&o.service, "service", "", "that is changed")
	flag.IntVar(&o.services, "services", 0, "how many there are")
	flag.IntVar(&o.endpoints, "endpoints", 3, "of each service")
	flag.IntVar(&o.changes, "changes", 0, "endpoints to replace, one after the other")
	flag.Parse()
	o.what = flag.Arg(0)
	o.args = flag.Args()[min(1, flag.NArg()):]
	return o
}

func run(ctx context.Context, o options) error {
	work, known := works()[o.what]
	if !known {
		return fmt.Errorf("usage: client FLAGS WHAT [PROGRAM [ARG...]]; what is one of %v", slices.Sorted(maps.Keys(works())))
	}
	result, err := work(ctx, o)
	if err != nil {
		return err
	}
	if result == nil {
		return nil
	}
	text, err := json.Marshal(result)
	if err != nil {
		return err
	}
	return os.WriteFile(o.out, append(text, '\n'), 0o644)
}

// works are what the client can do. What it returns is the report; nil: there is
// none.
func works() map[string]func(context.Context, options) (any, error) {
	return map[string]func(context.Context, options) (any, error){
		"pods":         reported(pods),
		"execs":        reported(execs),
		"starts":       reported(direct),
		"direct-execs": reported(direct),
		"rules":        reported(rules),
		"flips":        reported(flips),
		"create":       reported(create),
		"mark":         reported(mark),
		"await":        await,
		"deletions":    reported(deletions),
		"requests":     reported(requests),
		"queries":      reported(queries),
		"etcd-writes":  reported(etcdWrites),
		"answer":       reported(answer),
		"zone-files":   func(_ context.Context, o options) (any, error) { return nil, zoneFiles(o) },
		"resolver":     func(ctx context.Context, o options) (any, error) { return nil, resolve(ctx, o) },
	}
}

func reported[R any](work func(context.Context, options) (R, error)) func(context.Context, options) (any, error) {
	return func(ctx context.Context, o options) (any, error) { return work(ctx, o) }
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
