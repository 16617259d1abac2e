package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/internal/codec"
)

func (a *app) whyCommand() *cobra.Command {
	command := &cobra.Command{Use: "why", Short: "Explain what becomes of something, and who decides"}
	command.AddCommand(a.whyConnectionCommand())
	return command
}

func (a *app) whyConnectionCommand() *cobra.Command {
	var protocol, output string
	command := &cobra.Command{
		Use: "connection FROM TO:PORT", Short: "Explain whether a connection is allowed and where it goes", Args: cobra.ExactArgs(2),
		Long: `Explain whether a connection is allowed, where it goes and why.

FROM and TO are a pod's name, svc/NAME, or an IPv4 address; those of another
namespace are written NAMESPACE/NAME and NAMESPACE/svc/NAME. PORT is a number or a
port's name. What nodes have counted at a policy is shown as packets: the first of
each connection, since the rule was made.

The exit code is 0 if the connection is allowed, 3 if it is refused and 4 if that
depends on what is not known.`,
		Example: "  balsa why connection web-7d9c4 db-0:5432\n  balsa why connection web-7d9c4 svc/db:sql\n  balsa why connection shop/web-7d9c4 data/svc/db:5432\n  balsa why connection 10.244.1.7 10.96.0.10:53 --protocol UDP",
		RunE: func(command *cobra.Command, args []string) error {
			if output != "" && output != "json" {
				return &usageError{fmt.Errorf("--output %q: it can be json", output)}
			}
			request := &balsav1.ExplainConnectionRequest{Protocol: protocol}
			to, port, err := cutPort(args[1])
			if err != nil {
				return err
			}
			request.Port = port
			if request.From, err = a.connectionEnd(args[0]); err != nil {
				return err
			}
			if request.To, err = a.connectionEnd(to); err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			return a.whyConnection(command.Context(), c, request, output)
		},
	}
	command.Flags().StringVar(&protocol, "protocol", "TCP", "TCP or UDP")
	command.Flags().StringVarP(&output, "output", "o", "", "json: the answer for programs")
	return command
}

func cutPort(text string) (to, port string, err error) {
	i := strings.LastIndexByte(text, ':')
	if i < 1 || i == len(text)-1 {
		return "", "", &usageError{fmt.Errorf("%q names no port: write TO:PORT, for example db-0:5432", text)}
	}
	return text[:i], text[i+1:], nil
}

// connectionEnd reads [NAMESPACE/]NAME, [NAMESPACE/]svc/NAME or an address.
func (a *app) connectionEnd(text string) (*balsav1.ConnectionEnd, error) {
	words := strings.Split(text, "/")
	end := &balsav1.ConnectionEnd{Namespace: a.namespace}
	last := words[len(words)-1]
	kind := words[:len(words)-1]
	if len(kind) > 0 && isServiceWord(kind[len(kind)-1]) {
		end.Service, kind = last, kind[:len(kind)-1]
	} else if isAddress(last) {
		end.Namespace, end.Ip = "", last
	} else {
		end.Pod = last
	}
	switch {
	case last == "" || len(kind) > 1 || len(kind) == 1 && (kind[0] == "" || end.Ip != ""):
		return nil, &usageError{fmt.Errorf("%q is no end of a connection: write POD, svc/NAME or an address, with NAMESPACE/ before a name of another namespace", text)}
	case len(kind) == 1:
		end.Namespace = kind[0]
	}
	return end, nil
}

func isAddress(word string) bool {
	_, err := netip.ParseAddr(word)
	return err == nil
}

func isServiceWord(word string) bool {
	return word == "svc" || word == "service" || word == "services"
}

// The exit codes of answers that are not "allowed".
const (
	exitRefused = 3
	exitUnknown = 4
)

func (a *app) whyConnection(ctx context.Context, c *client.Client, request *balsav1.ExplainConnectionRequest, output string) error {
	answer, err := c.Network.ExplainConnection(ctx, request)
	if err != nil {
		return err
	}
	if output == "json" {
		text, err := codec.IndentedJSON(answer)
		if err != nil {
			return err
		}
		fmt.Fprintf(a.out, "%s\n", text)
	} else {
		a.printConnection(answer)
	}
	switch answer.GetVerdict() {
	case "Allowed":
		return nil
	case "Refused":
		return &exitError{code: exitRefused}
	}
	return &exitError{code: exitUnknown}
}

func (a *app) printConnection(answer *balsav1.ExplainConnectionResponse) {
	fmt.Fprintf(a.out, "%s: %s\n", answer.GetVerdict(), answer.GetSummary())
	for i, s := range answer.GetSteps() {
		fmt.Fprintf(a.out, "  %d. %-10s %s\n     %s\n", i+1, strings.ToLower(s.GetOutcome()), s.GetAt(), s.GetMessage())
		if s.Packets != nil {
			fmt.Fprintf(a.out, "     counted there: %d\n", s.GetPackets())
		}
	}
}
