package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/balsa-run/balsa/daemon"
)

// logging are the flags of everything that runs for long.
type logging struct{ level, format string }

func (l *logging) add(command *cobra.Command) {
	command.Flags().StringVar(&l.level, "log-level", "info", "debug, info, warn or error")
	command.Flags().StringVar(&l.format, "log-format", "text", "text or json")
}

func (a *app) logger(l *logging) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return nil, &usageError{fmt.Errorf("--log-level %q: it can be debug, info, warn or error", l.level)}
	}
	options := &slog.HandlerOptions{Level: level}
	switch l.format {
	case "text":
		return slog.New(slog.NewTextHandler(a.errOut, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(a.errOut, options)), nil
	}
	return nil, &usageError{fmt.Errorf("--log-format %q: it can be text or json", l.format)}
}

// joinFlags are how servers and agents enter a cluster.
type joinFlags struct{ token, file string }

func (j *joinFlags) add(command *cobra.Command, servers *[]string) {
	flags := command.Flags()
	flags.StringSliceVar(servers, "join", nil, "addresses of servers, host:port, of the cluster to enter")
	flags.StringVar(&j.token, "token", "", "join token (balsa token create); better in a file, since arguments are everybody's to read")
	flags.StringVar(&j.file, "token-file", "", "file that holds the join token")
}

func (j *joinFlags) read() (string, error) {
	if j.file == "" {
		return j.token, nil
	}
	if j.token != "" {
		return "", &usageError{errors.New("give --token or --token-file, not both")}
	}
	text, err := os.ReadFile(j.file)
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

func (a *app) serverCommand() *cobra.Command {
	var options daemon.ServerOptions
	var join joinFlags
	var log logging
	command := &cobra.Command{
		Use: "server", Short: "Run a server of the control plane", Args: cobra.NoArgs,
		Long: `A server keeps the cluster's state in a raft group with the others and serves the
API. The first is started with --init, which writes admin.yaml into its data
directory; the others with --join and a token. After that, only --data-dir,
--name and --listen matter.`,
		Example: `  balsa server --init --name s1 --data-dir /var/lib/balsa --listen 10.0.0.1:7443
  balsa server --join 10.0.0.1:7443 --token-file token --name s2 --data-dir /var/lib/balsa --listen 10.0.0.2:7443`,
		RunE: func(command *cobra.Command, _ []string) (err error) {
			if options.Token, err = join.read(); err != nil {
				return err
			}
			if options.Logger, err = a.logger(&log); err != nil {
				return err
			}
			return daemon.RunServer(command.Context(), options)
		},
	}
	flags := command.Flags()
	flags.StringVar(&options.Name, "name", "", "of this server, unique in the cluster (default: the host's name)")
	flags.StringVar(&options.DataDir, "data-dir", "/var/lib/balsa", "folder of everything that the server keeps")
	flags.StringVar(&options.Listen, "listen", "127.0.0.1:"+daemon.DefaultAPIPort, "address of the API, of joins and of raft")
	flags.StringVar(&options.Advertise, "advertise", "", "address that others use for this server (default: --listen)")
	flags.StringVar(&options.Gossip, "gossip-listen", "", "address of the gossip, TCP and UDP (default: --listen's with port "+daemon.DefaultGossipPort+")")
	etcdFlags(command, &options.Etcd)
	flags.BoolVar(&options.Init, "init", false, "make a new cluster")
	flags.StringVar(&options.PodCIDR, "pod-cidr", "", "addresses of pods of a new cluster (default 10.244.0.0/16)")
	flags.StringVar(&options.ServiceCIDR, "service-cidr", "", "addresses of Services of a new cluster (default 10.96.0.0/12)")
	flags.StringVar(&options.DNSDomain, "dns-domain", "", "DNS domain of a new cluster (default cluster.local)")
	flags.DurationVar(&options.ScrubEvery, "scrub-every", 0, "how often all that the server holds is looked through for damage (default 1h)")
	join.add(command, &options.Join)
	log.add(command)
	return command
}

func (a *app) agentCommand() *cobra.Command {
	var options daemon.AgentOptions
	var join joinFlags
	var log logging
	command := &cobra.Command{
		Use: "agent", Short: "Run the agent of a node", Args: cobra.NoArgs,
		Long: `The agent runs the pods of its node, routes service traffic and answers DNS. It
needs root. Killed or upgraded, it leaves its containers running and finds them
again.`,
		Example: "  balsa agent --join 10.0.0.1:7443,10.0.0.2:7443 --token-file token --name n1 --data-dir /var/lib/balsa",
		RunE: func(command *cobra.Command, _ []string) (err error) {
			if options.Token, err = join.read(); err != nil {
				return err
			}
			if options.Logger, err = a.logger(&log); err != nil {
				return err
			}
			return daemon.RunAgent(command.Context(), options)
		},
	}
	flags := command.Flags()
	flags.StringVar(&options.Name, "name", "", "of the node (default: the host's name)")
	flags.StringVar(&options.DataDir, "data-dir", "/var/lib/balsa", "folder of everything that the agent keeps")
	flags.StringVar(&options.RunDir, "run-dir", "", "folder of what need not survive a reboot (default: DATA-DIR/run)")
	flags.StringVar(&options.NodeIP, "node-ip", "", "address that servers and other nodes reach (default: the one that leads to the servers)")
	flags.StringVar(&options.Port, "port", daemon.DefaultAgentPort, "where servers reach the agent")
	flags.StringVar(&options.Gossip, "gossip-port", daemon.DefaultGossipPort, "of the gossip, TCP and UDP")
	flags.StringVar(&options.CgroupPrefix, "cgroup-prefix", "/balsa", "cgroup of all pods; two agents on one machine need two")
	flags.StringVar(&options.Registries, "registries", "", "YAML file with mirrors, certificates and passwords of registries (docs/pods.md)")
	flags.StringSliceVar(&options.NoMasquerade, "no-masquerade", nil,
		"IPv4 networks outside the cluster that pods reach with their own addresses instead of the node's, for example 10.20.0.0/16; they must know the way back")
	flags.StringToStringVar(&options.Labels, "labels", nil, "labels of the node, for example zone=a,disk=ssd")
	resourceFlags(command, &options.ResourceOptions)
	join.add(command, &options.Join)
	log.add(command)
	return command
}

// resourceFlags are named as the kubelet's where there is one.
func resourceFlags(command *cobra.Command, o *daemon.ResourceOptions) {
	flags := command.Flags()
	flags.StringSliceVar(&o.Taints, "taints", nil, "taints of a node that is new to the cluster, for example dedicated=db:NoSchedule")
	flags.StringVar(&o.ReservedCPU, "reserved-cpu", "", "kept from pods, for example 500m")
	flags.StringVar(&o.ReservedMemory, "reserved-memory", "", "kept from pods, for example 1Gi")
	flags.StringVar(&o.ReservedEphemeralStorage, "reserved-ephemeral-storage", "", "kept from pods, for example 10Gi")
	flags.IntVar(&o.MaxPods, "max-pods", daemon.DefaultMaxPods, "that the node takes")
	flags.StringToStringVar(&o.Eviction, "eviction-hard", nil,
		"what has to stay available, else pods are evicted (default memory.available=100Mi,nodefs.available=10%,nodefs.inodesFree=5%,pid.available=5%)")
	flags.Int64Var(&o.ImageGCHigh, "image-gc-high-threshold", 85, "percent of the disk, above which unused images go")
	flags.Int64Var(&o.ImageGCLow, "image-gc-low-threshold", 80, "percent of the disk, down to which they go")
}

func (a *app) devCommand() *cobra.Command {
	options := daemon.DevOptions{}
	var log logging
	command := &cobra.Command{
		Use: "dev", Short: "Run a cluster of one: server and agent in one process", Args: cobra.NoArgs,
		Long: `Dev runs a server and an agent for trying things. Its state is in --data-dir, with
an admin.yaml that the other commands find by themselves when they are run from
the same folder. Stop it with ctrl-C; its containers run on until the next
balsa dev, or until their pods are deleted.`,
		Example: "  balsa dev\n  balsa apply -f examples/hello.yaml && balsa get pods -w",
		RunE: func(command *cobra.Command, _ []string) (err error) {
			if options.Logger, err = a.logger(&log); err != nil {
				return err
			}
			options.Out = a.out
			return daemon.RunDev(command.Context(), options)
		},
	}
	flags := command.Flags()
	flags.StringVar(&options.DataDir, "data-dir", "balsa-dev", "folder of everything that dev keeps")
	flags.StringVar(&options.Listen, "listen", "127.0.0.1:"+daemon.DefaultAPIPort, "address of the API")
	etcdFlags(command, &options.Etcd)
	flags.StringVar(&options.CgroupPrefix, "cgroup-prefix", "", "cgroup of all pods (default: one of the data directory's own)")
	log.add(command)
	return command
}

// etcdFlags are what a server has for etcd's clients.
func etcdFlags(command *cobra.Command, o *daemon.EtcdOptions) {
	flags := command.Flags()
	flags.StringVar(&o.Listen, "etcd-listen", "", "address of etcd's API, for example 10.0.0.1:"+daemon.DefaultEtcdPort+" (default: it is not served)")
	flags.StringVar(&o.Advertise, "etcd-advertise", "", "address that etcd's clients use for this server (default: --etcd-listen)")
	flags.DurationVar(&o.ProgressEvery, "etcd-progress-every", 0, "how often a quiet watch of etcd's API that asks for it is told how far it is (default 10m)")
}
