package main

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/object"
)

// updateAttempts bounds how often a whole object is offered anew because its
// status has moved meanwhile.
const updateAttempts = 10

// withheld marks a Secret that was read by somebody who may not see its values.
const withheld = "balsa.run/values-withheld"

// isWhole tells whether a manifest is what `balsa get -o yaml` printed, maybe
// edited: only an object that was read from a cluster has a uid. It says all
// there is to say about its object, so it replaces it instead of being merged.
func isWhole(m object.Message) bool { return m.GetMetadata().GetUid() != "" }

// leaveOut drops what only servers write. The generation stays: it tells whether
// the object has changed since it was read.
func leaveOut(m object.Message) {
	meta := object.EnsureMetadata(m)
	meta.CreationTimestamp, meta.DeletionTimestamp, meta.DeletionGracePeriodSeconds, meta.ManagedFields = nil, nil, nil, nil
	object.SetStatus(m, object.KindOf(m).New())
}

// update replaces an object by the manifest that was once read from it, unless
// somebody has changed more than its status since.
func (a *app) update(ctx context.Context, c *client.Client, m object.Message, dryRun bool) (result string, err error) {
	m = object.Clone(m)
	meta, kind := m.GetMetadata(), object.KindOf(m)
	if _, hidden := meta.GetAnnotations()[withheld]; hidden {
		return "", fmt.Errorf("the values of this secret were withheld from who read it, and applying it would empty them; read it as an admin")
	}
	read := meta.GetGeneration()
	meta.Generation = 0
	for attempt := 1; ; attempt++ {
		live, err := a.live(ctx, c, kind, m)
		if err != nil {
			return "", err
		}
		at := live.GetMetadata()
		if at.GetUid() == meta.GetUid() && read != 0 && read != at.GetGeneration() {
			return "", fmt.Errorf("it was changed after this manifest was read (generation %d then, %d now), and applying would undo that; read it again with balsa get %s -o yaml and make the change to that", read, at.GetGeneration(), short(m))
		}
		if read != 0 {
			meta.ResourceVersion = at.GetResourceVersion()
		}
		response, err := c.Objects.Update(ctx, &balsav1.UpdateRequest{Object: object.Wrap(m), DryRun: dryRun})
		switch {
		case err == nil:
			return outcome(live, response.GetObject())
		case !client.IsConflict(err) || read == 0 || at.GetUid() != meta.GetUid() || attempt == updateAttempts:
			return "", err
		}
	}
}

// live is the object that a manifest was read from, as it is now.
func (a *app) live(ctx context.Context, c *client.Client, kind object.Kind, m object.Message) (object.Message, error) {
	meta := m.GetMetadata()
	response, err := c.Objects.Get(ctx, &balsav1.GetRequest{Kind: kind.Name, Namespace: meta.GetNamespace(), Name: meta.GetName()})
	if client.IsNotFound(err) {
		var failure *connect.Error
		if errors.As(err, &failure) {
			err = errors.New(failure.Message())
		}
		return nil, fmt.Errorf("%w; this manifest was read from an object (it has metadata.uid): to make another one like it, remove metadata.uid, metadata.resourceVersion and metadata.generation", err)
	}
	if err != nil {
		return nil, err
	}
	return object.Unwrap(response.GetObject())
}

func outcome(before object.Message, stored *balsav1.Object) (string, error) {
	after, err := object.Unwrap(stored)
	if err != nil {
		return "", err
	}
	if object.Same(before, after) {
		return "unchanged", nil
	}
	return "configured", nil
}
