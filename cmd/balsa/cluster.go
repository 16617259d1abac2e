package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/internal/codec"
	"github.com/balsa-run/balsa/internal/version"
)

func (a *app) clusterCommand() *cobra.Command {
	command := &cobra.Command{Use: "cluster", Short: "Look at the servers, and change who they are"}
	command.AddCommand(a.clusterStatus(), a.clusterTransfer(), a.clusterRemove())
	return command
}

func (a *app) clusterStatus() *cobra.Command {
	var output string
	command := &cobra.Command{
		Use: "status", Short: "Show the servers, who leads, and whether they agree", Args: cobra.NoArgs,
		Example: "  balsa cluster status\n  balsa cluster status -o json",
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			status, err := c.Cluster.GetStatus(command.Context(), &balsav1.GetStatusRequest{})
			if err != nil {
				return err
			}
			switch output {
			case "json":
				text, err := codec.IndentedJSON(status)
				fmt.Fprintf(a.out, "%s\n", bytes.TrimSpace(text))
				return err
			case "":
				return a.printStatus(status)
			}
			return &usageError{fmt.Errorf("-o %q: it can be json", output)}
		},
	}
	command.Flags().StringVarP(&output, "output", "o", "", "json")
	return command
}

func (a *app) printStatus(status *balsav1.GetStatusResponse) error {
	fmt.Fprintf(a.out, "cluster %s, term %d, feature level %d, CA good until %s\n\n", status.GetClusterId(), status.GetTerm(),
		status.GetFeatureLevel(), status.GetCaNotAfter().AsTime().Format(time.DateOnly))
	writer := tabwriter.NewWriter(a.out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(writer, "NAME\tID\tADDRESS\tSTATE\tAPPLIED\tREVISION\tHASH\tVERSION\tPROBLEM")
	for _, member := range status.GetMembers() {
		revision, hash := "", ""
		for _, space := range member.GetSpaces() {
			if space.GetSpace() == "objects" {
				revision, hash = count(space.GetRevision()), space.GetHash()
			}
		}
		fmt.Fprintf(writer, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", member.GetName(), member.GetId(), member.GetAddress(), member.GetState(),
			member.GetAppliedIndex(), revision, hash, member.GetVersion(), member.GetProblem())
	}
	if err := writer.Flush(); err != nil {
		return err
	}
	for _, divergence := range status.GetDiverged() {
		fmt.Fprintf(a.out, "\nNOT THE SAME EVERYWHERE: %s\n", divergence)
	}
	return nil
}

func (a *app) clusterTransfer() *cobra.Command {
	return &cobra.Command{
		Use: "transfer [MEMBER]", Short: "Hand leadership to a member, or to the one that is furthest", Args: cobra.MaximumNArgs(1),
		Example: "  balsa cluster transfer\n  balsa cluster transfer s2-1f0c9b7e",
		RunE: func(command *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			response, err := c.Cluster.TransferLeadership(command.Context(), &balsav1.TransferLeadershipRequest{MemberId: strings.Join(args, "")})
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s leads\n", response.GetLeaderId())
			return nil
		},
	}
}

func (a *app) clusterRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove MEMBER", Short: "Take a server out of the group for good", Args: cobra.ExactArgs(1),
		Example: "  balsa cluster remove s3-77aa01c2",
		RunE: func(command *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			if _, err := c.Cluster.RemoveMember(command.Context(), &balsav1.RemoveMemberRequest{MemberId: args[0]}); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "member %s removed\n", args[0])
			return nil
		},
	}
}

func (a *app) versionCommand() *cobra.Command {
	var local bool
	command := &cobra.Command{
		Use: "version", Short: "Show the versions of this program and of the server", Args: cobra.NoArgs,
		Example: "  balsa version\n  balsa version --client",
		RunE: func(command *cobra.Command, _ []string) error {
			fmt.Fprintf(a.out, "client: %s (%s, %s)\n", version.Version(), version.Commit(), version.Go())
			if local {
				return nil
			}
			if _, err := a.configFile(); err != nil && a.configPath == "" && os.Getenv("BALSA_CONFIG") == "" {
				return nil
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			response, err := c.Cluster.GetVersion(command.Context(), &balsav1.GetVersionRequest{})
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "server: %s (%s, %s)\n", response.GetVersion(), response.GetCommit(), response.GetGoVersion())
			return nil
		},
	}
	command.Flags().BoolVar(&local, "client", false, "do not ask the server")
	return command
}
