package main

import (
	"errors"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/balsa-run/balsa/chaos/load"
	"github.com/balsa-run/balsa/client"
)

func putsCommand() *cobra.Command {
	var config, out string
	var first int
	var options load.PutOptions
	command := &cobra.Command{
		Use: "puts", Short: "Have clients make ConfigMaps for some rounds, and count", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			options.Connect = func(number int) (*client.Client, error) {
				return client.FromFile(config, func(c *client.Config) { c.Servers = from(c.Servers, first+number) })
			}
			result, err := load.Puts(command.Context(), options)
			return errors.Join(err, report(out, result))
		},
	}
	flags := command.Flags()
	flags.StringVar(&config, "config", "", "client configuration; the clients spread over its servers")
	flags.IntVar(&first, "first", 0, "number of the server, in the configuration, that the first client begins with")
	flags.StringVar(&options.Namespace, "namespace", "default", "where to write")
	flags.StringVar(&options.Prefix, "prefix", "put", "of the ConfigMaps' names")
	flags.IntVar(&options.Clients, "clients", 1, "how many, each with a connection of its own")
	flags.IntVar(&options.Bytes, "bytes", 256, "of each value")
	flags.IntVar(&options.Rounds, "rounds", 5, "that count, after one that does not")
	flags.DurationVar(&options.Round, "round", 2*time.Second, "length of a round")
	flags.StringVar(&out, "out", "", "file for the report")
	return command
}

// from is a list that begins with its element of that number.
func from(all []string, number int) []string {
	at := number % len(all)
	return append(slices.Clone(all[at:]), all[:at]...)
}

func podsCommand() *cobra.Command {
	var config, out string
	var options load.PodOptions
	command := &cobra.Command{
		Use: "pods", Short: "Start one pod after the other, and time each", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := client.FromFile(config)
			if err != nil {
				return err
			}
			result, err := load.Pods(command.Context(), c, options)
			return errors.Join(err, report(out, result))
		},
	}
	flags := command.Flags()
	flags.StringVar(&config, "config", "", "client configuration")
	flags.StringVar(&options.Namespace, "namespace", "default", "where the pods are")
	flags.StringVar(&options.Prefix, "prefix", "start", "of the pods' names")
	flags.StringVar(&options.Image, "image", "balsa/echo:1", "of the pods")
	flags.IntVar(&options.Count, "count", 100, "how many pods")
	flags.StringSliceVar(&options.Nodes, "nodes", nil, "nodes that get a pod first, so that they have the image")
	flags.StringVar(&out, "out", "", "file for the report")
	return command
}
