package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/internal/codec"
	"github.com/balsa-run/balsa/object"
)

func (a *app) describeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "describe (KIND NAME | KIND/NAME)", Short: "Show an object and what happened to it",
		Example: "  balsa describe pod/hello-7d9f-x2k4j\n  balsa describe node n1",
		RunE: func(command *cobra.Command, args []string) error {
			kind, name, err := one(args)
			if err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			return a.describe(command.Context(), c, kind, name)
		},
	}
}

// describe prints the object itself, then its events: what it is and why.
func (a *app) describe(ctx context.Context, c *client.Client, kind object.Kind, name string) error {
	response, err := c.Objects.Get(ctx, &balsav1.GetRequest{Kind: kind.Name, Namespace: a.namespaceOf(kind), Name: name})
	if err != nil {
		return err
	}
	message, err := object.Unwrap(response.GetObject())
	if err != nil {
		return err
	}
	meta := message.GetMetadata()
	if err := a.describeObject(ctx, c, object.Clone(message)); err != nil {
		return err
	}
	events, err := client.List[*balsav1.Event](ctx, c, meta.GetNamespace(), client.ListOptions{FieldSelector: "involvedObject.uid=" + meta.GetUid()})
	if err != nil {
		return err
	}
	fmt.Fprintln(a.out, "\nEvents:")
	if len(events.Items) == 0 {
		fmt.Fprintln(a.out, "  none are kept")
		return nil
	}
	a.printEvents(events.Items, "  ")
	return nil
}

// describeObject prints pods, nodes, storage and network as kubectl does; of other kinds
// the manifest says it all.
func (a *app) describeObject(ctx context.Context, c *client.Client, message object.Message) error {
	s := newSheet(a.out)
	switch m := message.(type) {
	case *balsav1.Pod:
		s.pod(m, time.Now())
	case *balsav1.Node:
		pods, err := client.List[*balsav1.Pod](ctx, c, "", client.ListOptions{FieldSelector: "spec.nodeName=" + m.GetMetadata().GetName()})
		if err != nil {
			return err
		}
		s.node(m, pods.Items, time.Now())
	case *balsav1.PersistentVolumeClaim:
		pods, err := client.List[*balsav1.Pod](ctx, c, m.GetMetadata().GetNamespace(), client.ListOptions{})
		if err != nil {
			return err
		}
		s.claim(m, slices.DeleteFunc(pods.Items, func(p *balsav1.Pod) bool {
			return !slices.Contains(object.ClaimNames(p.GetSpec()), m.GetMetadata().GetName())
		}))
	case *balsav1.PersistentVolume:
		s.volume(m)
	case *balsav1.Service:
		list, err := client.List[*balsav1.EndpointSlice](ctx, c, m.GetMetadata().GetNamespace(), client.ListOptions{LabelSelector: object.LabelServiceName + "=" + m.GetMetadata().GetName()})
		if err != nil {
			return err
		}
		s.service(m, list.Items)
	case *balsav1.NetworkPolicy:
		s.policy(m)
	case *balsav1.PodDisruptionBudget:
		s.budget(m)
	case *balsav1.AddressPool:
		s.pool(m)
	default:
		return a.describePlain(message)
	}
	return s.flush()
}

func (a *app) describePlain(message object.Message) error {
	message.GetMetadata().ManagedFields = nil
	if secret, ok := message.(*balsav1.Secret); ok {
		hideValues(secret)
	}
	text, err := codec.MarshalYAML(message)
	if err != nil {
		return err
	}
	_, err = a.out.Write(text)
	return err
}

// hideValues leaves the names of a Secret's values, and their sizes.
func hideValues(secret *balsav1.Secret) {
	for key, value := range secret.GetData() {
		secret.StringData = setKey(secret.StringData, key, fmt.Sprintf("<%d bytes>", len(value)))
	}
	secret.Data = nil
}

func setKey(m map[string]string, key, value string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	return m
}

func (a *app) printEvents(events []*balsav1.Event, indent string) {
	slices.SortStableFunc(events, func(x, y *balsav1.Event) int {
		return x.GetLastTimestamp().AsTime().Compare(y.GetLastTimestamp().AsTime())
	})
	writer := tabwriter.NewWriter(a.out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(writer, indent+"LAST\tTYPE\tREASON\tOBJECT\tMESSAGE")
	for _, event := range events {
		last := age(event.GetLastTimestamp(), time.Now())
		if event.GetCount() > 1 {
			last = fmt.Sprintf("%s (x%d)", last, event.GetCount())
		}
		about := event.GetInvolvedObject()
		fmt.Fprintf(writer, "%s%s\t%s\t%s\t%s/%s\t%s\n", indent, last, event.GetType(), event.GetReason(),
			strings.ToLower(about.GetKind()), about.GetName(), event.GetMessage())
	}
	_ = writer.Flush() // its errors are those of a.out, which the next print meets
}

func (a *app) eventsCommand() *cobra.Command {
	var all, watch bool
	var about string
	command := &cobra.Command{
		Use: "events", Short: "Show what happened, the latest last", Args: cobra.NoArgs,
		Example: "  balsa events -A\n  balsa events --for pod/hello-7d9f-x2k4j\n  balsa events -w",
		RunE: func(command *cobra.Command, _ []string) error {
			if all {
				a.namespace = ""
			}
			fields, err := eventFields(about)
			if err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			if watch {
				kind, _ := object.KindByName("Event")
				return a.watch(command.Context(), c, target{kind: kind}, &query{all: all, fields: fields})
			}
			events, err := client.List[*balsav1.Event](command.Context(), c, a.namespace, client.ListOptions{FieldSelector: fields})
			if err != nil {
				return err
			}
			a.printEvents(events.Items, "")
			return nil
		},
	}
	flags := command.Flags()
	flags.BoolVarP(&all, "all-namespaces", "A", false, "of all namespaces")
	flags.BoolVarP(&watch, "watch", "w", false, "go on with new ones")
	flags.StringVar(&about, "for", "", "only of one object, as KIND/NAME")
	return command
}

func eventFields(about string) (string, error) {
	if about == "" {
		return "", nil
	}
	kind, name, err := one([]string{about})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("involvedObject.kind=%s,involvedObject.name=%s", kind.Name, name), nil
}
