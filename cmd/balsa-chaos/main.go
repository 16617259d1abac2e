// Balsa-chaos plays on a cluster: the demo, and the loads that fault tests and
// benchmarks put on it. It makes its clusters on this machine, in network
// namespaces of its own, and needs root. Its commands sim, sweep, campaign, replay, history,
// check, shrink and matrix
// are about simulated clusters instead, and need nothing but a Go toolchain and a checkout.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/balsa-run/balsa/chaos/demo"
	"github.com/balsa-run/balsa/chaos/load"
	"github.com/balsa-run/balsa/chaos/world/host"
	"github.com/balsa-run/balsa/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{Use: "balsa-chaos", Short: "Play on a Balsa cluster", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(demoCommand(), zeroDropCommand(), cleanCommand(), loadCommand(),
		simCommand(), campaignCommand(), replayCommand(), historyCommand(), checkCommand(), sweepCommand(), shrinkCommand(), matrixCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "balsa-chaos: %v\n", err)
		stop()
		os.Exit(code(err))
	}
}

func demoCommand() *cobra.Command {
	var options demo.Options
	command := &cobra.Command{
		Use: "demo", Short: "Three servers, two agents, one app; a leader and an agent are killed", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			program, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			options.Chaos, options.Out = program, command.OutOrStdout()
			return demo.Run(command.Context(), options)
		},
	}
	flags := command.Flags()
	flags.StringVar(&options.Binary, "balsa", "bin/balsa", "the program to play on")
	flags.StringVar(&options.Archive, "image", "bin/echo.tar", "archive of the echo image")
	flags.StringVar(&options.Manifest, "manifest", "examples/hello.yaml", "manifest of the app")
	flags.StringVar(&options.Dir, "dir", "/tmp/balsa-demo", "folder for everything that the demo writes")
	flags.IntVar(&options.Slow, "slow", 1, "multiply the deadlines, for a machine whose processor is emulated")
	flags.BoolVar(&options.Keep, "keep", false, "leave the cluster up")
	return command
}

func cleanCommand() *cobra.Command {
	var prefix, dir string
	command := &cobra.Command{
		Use: "clean", Short: "Remove what a demo or a test left behind", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			lab, err := host.New(prefix, dir)
			if err != nil {
				return err
			}
			return errors.Join(lab.Close(), os.RemoveAll(dir))
		},
	}
	command.Flags().StringVar(&prefix, "prefix", "demo", "of the names to remove")
	command.Flags().StringVar(&dir, "dir", "/tmp/balsa-demo", "folder to remove")
	return command
}

func loadCommand() *cobra.Command {
	command := &cobra.Command{Use: "load", Short: "Put a load on a cluster, then report"}
	command.AddCommand(httpCommand(), flowsCommand(), writesCommand(), putsCommand(), podsCommand())
	return command
}

func httpCommand() *cobra.Command {
	var url, out string
	var interval time.Duration
	command := &cobra.Command{
		Use: "http", Short: "Ask a URL again and again until SIGTERM", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return report(out, load.HTTP(command.Context(), url, interval))
		},
	}
	command.Flags().StringVar(&url, "url", "", "what to ask for")
	command.Flags().StringVar(&out, "out", "", "file for the report")
	command.Flags().DurationVar(&interval, "interval", 5*time.Millisecond, "between two requests")
	return command
}

func flowsCommand() *cobra.Command {
	var options load.FlowOptions
	var out string
	command := &cobra.Command{
		Use: "flows", Short: "Ask a service over new and kept-alive connections and by UDP until SIGTERM", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			service, err := addressOf(options.URL)
			if err != nil {
				return err
			}
			options.Witness = func() string { return load.Tracked(service) }
			return report(out, load.Flows(command.Context(), options))
		},
	}
	flags := command.Flags()
	flags.StringVar(&options.URL, "url", "", "what HTTP clients ask for")
	flags.IntVar(&options.Fresh, "fresh", 4, "clients that make a connection for each request")
	flags.IntVar(&options.Kept, "kept", 4, "clients that keep their connection")
	flags.StringVar(&options.UDP, "udp", "", "host:port of an echo of datagrams")
	flags.IntVar(&options.UDPClients, "udp-clients", 4, "clients with one socket each")
	flags.DurationVar(&options.Interval, "interval", 10*time.Millisecond, "between two requests of a client")
	flags.StringVar(&out, "out", "", "file for the report")
	return command
}

// addressOf is the IP:port that a URL leads to.
func addressOf(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "80")), nil
}

func writesCommand() *cobra.Command {
	var config, servers, namespace, prefix, out string
	command := &cobra.Command{
		Use: "writes", Short: "Make one ConfigMap after the other until SIGTERM, then look whether they are there", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := client.FromFile(config)
			if err != nil {
				return err
			}
			if servers != "" {
				c.SetServers(strings.Split(servers, ","))
			}
			result, err := load.Writes(command.Context(), c, namespace, prefix, time.Minute)
			return errors.Join(err, report(out, result))
		},
	}
	command.Flags().StringVar(&config, "config", "", "client configuration")
	command.Flags().StringVar(&servers, "servers", "", "addresses to use instead of the configuration's")
	command.Flags().StringVar(&namespace, "namespace", "default", "where to write")
	command.Flags().StringVar(&prefix, "prefix", "load", "of the ConfigMaps' names")
	command.Flags().StringVar(&out, "out", "", "file for the report")
	return command
}

func report(path string, result any) error {
	text, err := json.Marshal(result)
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
