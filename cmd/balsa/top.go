package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/object"
)

func (a *app) topCommand() *cobra.Command {
	command := &cobra.Command{Use: "top", Short: "Show what nodes and pods use now"}
	command.AddCommand(a.topNodesCommand(), a.topPodsCommand())
	return command
}

func sortFlag(command *cobra.Command, by *string) {
	command.Flags().StringVar(by, "sort-by", "", "cpu or memory: who uses most comes first")
}

func checkSort(by string) error {
	if by != "" && by != "cpu" && by != "memory" {
		return &usageError{fmt.Errorf("--sort-by %q: it can be cpu or memory", by)}
	}
	return nil
}

func (a *app) topNodesCommand() *cobra.Command {
	var by string
	command := &cobra.Command{
		Use: "nodes [NAME]", Aliases: []string{"node", "no"}, Short: "Show what nodes use", Args: cobra.MaximumNArgs(1),
		Example: "  balsa top nodes\n  balsa top nodes --sort-by memory",
		RunE: func(command *cobra.Command, args []string) error {
			if err := checkSort(by); err != nil {
				return err
			}
			request := &balsav1.StatsRequest{NodesOnly: true}
			if len(args) == 1 {
				request.Node = args[0]
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			return a.topNodes(command.Context(), c, request, by)
		},
	}
	sortFlag(command, &by)
	return command
}

func (a *app) topNodes(ctx context.Context, c *client.Client, request *balsav1.StatsRequest, by string) error {
	stats, err := a.stats(ctx, c, request)
	if err != nil {
		return err
	}
	nodes, err := client.List[*balsav1.Node](ctx, c, "", client.ListOptions{})
	if err != nil {
		return err
	}
	room := map[string]map[string]*balsav1.Quantity{}
	for _, node := range nodes.Items {
		room[node.GetMetadata().GetName()] = node.GetStatus().GetAllocatable()
	}
	order(stats.Nodes, by, func(n *balsav1.NodeStats) (int64, int64) { return n.GetCpuNanoCores(), n.GetMemoryWorkingSetBytes() })
	w := tabwriter.NewWriter(a.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tCPU(cores)\tCPU(%)\tMEMORY(bytes)\tMEMORY(%)\tDISK(bytes)")
	for _, n := range stats.Nodes {
		cpu, _ := object.MilliCPU(room[n.GetNode()]["cpu"])
		memory, _ := object.Bytes(room[n.GetNode()]["memory"])
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", n.GetNode(), cores(n.GetCpuNanoCores()), percent(n.GetCpuNanoCores()/1e6, cpu),
			mebibytes(n.GetMemoryWorkingSetBytes()), percent(n.GetMemoryWorkingSetBytes(), memory), mebibytes(n.GetDiskUsedBytes()))
	}
	return w.Flush()
}

func percent(part, whole int64) string {
	if whole <= 0 {
		return "-"
	}
	return fmt.Sprintf("%d%%", part*100/whole)
}

func (a *app) topPodsCommand() *cobra.Command {
	var by string
	var all, containers bool
	request := &balsav1.StatsRequest{}
	command := &cobra.Command{
		Use: "pods [NAME]", Aliases: []string{"pod", "po"}, Short: "Show what pods use", Args: cobra.MaximumNArgs(1),
		Example: "  balsa top pods\n  balsa top pods -A --sort-by memory\n  balsa top pods -l app=hello --containers",
		RunE: func(command *cobra.Command, args []string) error {
			if err := checkSort(by); err != nil {
				return err
			}
			if request.Namespace = a.namespace; all {
				request.Namespace = ""
			}
			if len(args) == 1 {
				request.Name = args[0]
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			return a.topPods(command.Context(), c, request, by, containers, all)
		},
	}
	flags := command.Flags()
	flags.BoolVarP(&all, "all-namespaces", "A", false, "of all namespaces")
	flags.StringVarP(&request.LabelSelector, "selector", "l", "", "only pods with these labels")
	flags.BoolVar(&containers, "containers", false, "each container by itself")
	sortFlag(command, &by)
	return command
}

// usage is one row.
type usage struct {
	namespace, pod, container string
	cpu, memory               int64
}

func (a *app) topPods(ctx context.Context, c *client.Client, request *balsav1.StatsRequest, by string, containers, namespaces bool) error {
	stats, err := a.stats(ctx, c, request)
	if err != nil {
		return err
	}
	var rows []usage
	for _, node := range stats.GetNodes() {
		for _, pod := range node.GetPods() {
			rows = append(rows, usages(pod, containers)...)
		}
	}
	slices.SortFunc(rows, func(x, y usage) int {
		return cmp.Or(cmp.Compare(x.namespace, y.namespace), cmp.Compare(x.pod, y.pod), cmp.Compare(x.container, y.container))
	})
	order(rows, by, func(u usage) (int64, int64) { return u.cpu, u.memory })
	w := tabwriter.NewWriter(a.out, 0, 0, 3, ' ', 0)
	if namespaces {
		fmt.Fprint(w, "NAMESPACE\t")
	}
	if containers {
		fmt.Fprintln(w, "POD\tNAME\tCPU(cores)\tMEMORY(bytes)")
	} else {
		fmt.Fprintln(w, "NAME\tCPU(cores)\tMEMORY(bytes)")
	}
	for _, row := range rows {
		if namespaces {
			fmt.Fprintf(w, "%s\t", row.namespace)
		}
		fmt.Fprintf(w, "%s\t", row.pod)
		if containers {
			fmt.Fprintf(w, "%s\t", row.container)
		}
		fmt.Fprintf(w, "%s\t%s\n", cores(row.cpu), mebibytes(row.memory))
	}
	return w.Flush()
}

func usages(pod *balsav1.PodStats, containers bool) []usage {
	sum := usage{namespace: pod.GetNamespace(), pod: pod.GetName()}
	var each []usage
	for _, c := range pod.GetContainers() {
		sum.cpu += c.GetCpuNanoCores()
		sum.memory += c.GetMemoryWorkingSetBytes()
		each = append(each, usage{pod.GetNamespace(), pod.GetName(), c.GetName(), c.GetCpuNanoCores(), c.GetMemoryWorkingSetBytes()})
	}
	if containers {
		return each
	}
	return []usage{sum}
}

// stats asks, and says who did not answer.
func (a *app) stats(ctx context.Context, c *client.Client, request *balsav1.StatsRequest) (*balsav1.StatsResponse, error) {
	stats, err := c.Pods.Stats(ctx, request)
	if err != nil {
		return nil, err
	}
	for _, node := range stats.GetUnavailable() {
		fmt.Fprintf(a.errOut, "nothing is known of node %s: %s\n", node.GetNode(), node.GetReason())
	}
	if len(stats.GetNodes()) == 0 && len(stats.GetUnavailable()) > 0 {
		return nil, errors.New("no node has answered")
	}
	return stats, nil
}

// order puts who uses most first.
func order[T any](rows []T, by string, of func(T) (cpu, memory int64)) {
	if by == "" {
		return
	}
	slices.SortStableFunc(rows, func(x, y T) int {
		cx, mx := of(x)
		cy, my := of(y)
		if by == "cpu" {
			return cmp.Compare(cy, cx)
		}
		return cmp.Compare(my, mx)
	})
}

func cores(nano int64) string { return fmt.Sprintf("%dm", (nano+999_999)/1_000_000) }

func mebibytes(n int64) string { return fmt.Sprintf("%dMi", n>>20) }
