package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/internal/revisions"
	"github.com/balsa-run/balsa/object"
)

// annotationRestarted is kubectl's: a template that differs in it alone has all
// pods made anew.
const annotationRestarted = "kubectl.kubernetes.io/restartedAt"

func (a *app) rolloutCommand() *cobra.Command {
	command := &cobra.Command{
		Use: "rollout", Short: "Look at and steer the rollouts of Deployments",
		Long: `A change of a Deployment's template, or of the contents of a ConfigMap or Secret
that it refers to, makes a new revision, and replaces the pods of the one before.
A rollout that makes no progress for progressDeadlineSeconds is taken back, unless
the Deployment says onFailure: pause.`,
	}
	command.AddCommand(a.rolloutStatus(), a.rolloutHistory(), a.rolloutUndo(), a.rolloutPause(), a.rolloutResume(), a.rolloutRestart(), a.rolloutRetry())
	return command
}

// deploymentNamed reads a command line that names one Deployment.
func deploymentNamed(args []string) (string, error) {
	kind, name, err := one(args)
	if err != nil {
		return "", err
	}
	if kind.Name != "Deployment" {
		return "", &usageError{fmt.Errorf("a %s has no rollouts; a Deployment has, for example deployment/hello", strings.ToLower(kind.Name))}
	}
	return name, nil
}

// onDeployment is a command about one Deployment.
func (a *app) onDeployment(command *cobra.Command, do func(ctx context.Context, c *client.Client, name string) error) *cobra.Command {
	command.RunE = func(command *cobra.Command, args []string) error {
		name, err := deploymentNamed(args)
		if err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		return do(command.Context(), c, name)
	}
	return command
}

// editDeployment changes one, and says done of it.
func (a *app) editDeployment(ctx context.Context, c *client.Client, name, done string, change func(*balsav1.Deployment) error) error {
	kind, _ := object.KindByName("Deployment")
	_, err := a.edit(ctx, c, kind, name, false, func(m object.Message) (bool, error) { return true, change(m.(*balsav1.Deployment)) })
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "deployment/%s %s\n", name, done)
	return nil
}

func (a *app) rolloutPause() *cobra.Command {
	return a.onDeployment(&cobra.Command{
		Use: "pause deployment/NAME", Short: "Roll nothing out until balsa rollout resume; scaling goes on", Example: "  balsa rollout pause deployment/hello",
	}, func(ctx context.Context, c *client.Client, name string) error {
		return a.editDeployment(ctx, c, name, "paused", func(d *balsav1.Deployment) error {
			if d.GetSpec().GetPaused() {
				return fmt.Errorf("deployment/%s is paused already", name)
			}
			d.Spec.Paused = proto.Bool(true)
			return nil
		})
	})
}

func (a *app) rolloutResume() *cobra.Command {
	return a.onDeployment(&cobra.Command{
		Use: "resume deployment/NAME", Short: "Go on with what balsa rollout pause has stopped", Example: "  balsa rollout resume deployment/hello",
	}, func(ctx context.Context, c *client.Client, name string) error {
		return a.editDeployment(ctx, c, name, "resumed", func(d *balsav1.Deployment) error {
			if !d.GetSpec().GetPaused() {
				return fmt.Errorf("deployment/%s is not paused", name)
			}
			d.Spec.Paused = nil
			return nil
		})
	})
}

func (a *app) rolloutRestart() *cobra.Command {
	return a.onDeployment(&cobra.Command{
		Use: "restart deployment/NAME", Short: "Replace all pods by new ones of the same kind, as a rollout",
		Long: `Restart replaces all pods, within the bounds of a rolling update, by setting the
annotation ` + annotationRestarted + ` of the pod template: a new revision.`,
		Example: "  balsa rollout restart deployment/hello",
	}, func(ctx context.Context, c *client.Client, name string) error {
		return a.editDeployment(ctx, c, name, "restarted", func(d *balsav1.Deployment) error {
			if d.GetSpec().GetPaused() {
				return fmt.Errorf("deployment/%s is paused, so nothing would restart: balsa rollout resume deployment/%s comes first", name, name)
			}
			template := d.GetSpec().GetTemplate()
			if template.Metadata == nil {
				template.Metadata = &balsav1.ObjectMeta{}
			}
			template.Metadata.Annotations = setKey(template.Metadata.Annotations, annotationRestarted, time.Now().UTC().Format(time.RFC3339))
			return nil
		})
	})
}

func (a *app) rolloutRetry() *cobra.Command {
	return a.onDeployment(&cobra.Command{
		Use: "retry deployment/NAME", Short: "Roll out again what failed, with a new deadline",
		Long: `Retry rolls the revision out again that failed: after its cause was mended
outside of the Deployment, for example when the image is there now.`,
		Example: "  balsa rollout retry deployment/hello && balsa rollout status deployment/hello",
	}, func(ctx context.Context, c *client.Client, name string) error {
		return a.editDeployment(ctx, c, name, "is rolled out again", func(d *balsav1.Deployment) error {
			failed := d.GetStatus().GetFailedRollout()
			if failed == nil {
				return fmt.Errorf("deployment/%s has no failed rollout", name)
			}
			meta := object.EnsureMetadata(d)
			meta.Annotations = setKey(meta.Annotations, revisions.AnnotationRetry, revisions.Failure(failed))
			return nil
		})
	})
}

// rollout is a Deployment with its ReplicaSets, the oldest revision first.
type rollout struct {
	deployment *balsav1.Deployment
	sets       []*balsav1.ReplicaSet
}

func (a *app) readRollout(ctx context.Context, c *client.Client, name string) (rollout, error) {
	d, err := client.Get[*balsav1.Deployment](ctx, c, a.namespace, name, client.GetOptions{})
	if err != nil {
		return rollout{}, err
	}
	listed, err := client.List[*balsav1.ReplicaSet](ctx, c, a.namespace, client.ListOptions{})
	if err != nil {
		return rollout{}, err
	}
	return rollout{d, setsOf(d, listed.Items)}, nil
}

func setsOf(d *balsav1.Deployment, all []*balsav1.ReplicaSet) (sets []*balsav1.ReplicaSet) {
	for _, rs := range all {
		if object.IsControlledBy(rs, d) {
			sets = append(sets, rs)
		}
	}
	slices.SortFunc(sets, func(x, y *balsav1.ReplicaSet) int { return int(revisions.Of(x) - revisions.Of(y)) })
	return sets
}

// find is the ReplicaSet of a revision.
func (r rollout) find(revision int64) (*balsav1.ReplicaSet, error) {
	var have []string
	for _, rs := range r.sets {
		if revisions.Of(rs) == revision {
			return rs, nil
		}
		have = append(have, fmt.Sprint(revisions.Of(rs)))
	}
	if len(have) == 0 {
		return nil, fmt.Errorf("deployment/%s has no revisions yet", r.deployment.GetMetadata().GetName())
	}
	return nil, fmt.Errorf("deployment/%s has no revision %d; it has %s (spec.revisionHistoryLimit says how many are kept)",
		r.deployment.GetMetadata().GetName(), revision, strings.Join(have, ", "))
}

// before is the revision that undo goes to unless told: what runs in the place of
// a failed one, or else the newest before the current one.
func (r rollout) before() (*balsav1.ReplicaSet, error) {
	if running := r.deployment.GetStatus().GetFailedRollout().GetRunningRevision(); running > 0 {
		return r.find(running)
	}
	current := revisions.Of(r.deployment)
	for _, rs := range slices.Backward(r.sets) {
		if revisions.Of(rs) < current {
			return rs, nil
		}
	}
	return nil, fmt.Errorf("deployment/%s has no revision before %d to go back to", r.deployment.GetMetadata().GetName(), current)
}

// errWithheld is told to readers.
var errWithheld = errors.New("the values of Secrets were withheld, so that they cannot be compared: use an admin's configuration")
