package client

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/balsa-run/balsa/object"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// GetOptions say how fresh a read is. The zero value reads linearizably.
type GetOptions struct {
	// Stale takes what the nearest server has.
	Stale bool
	// ResourceVersion reads the past, as far as it is kept; empty: now.
	ResourceVersion string
}

func (o GetOptions) read() *balsav1.ReadOptions {
	return &balsav1.ReadOptions{Stale: o.Stale, ResourceVersion: o.ResourceVersion}
}

// ListOptions choose what a list or a watch shows.
type ListOptions struct {
	LabelSelector string // "app=hello,tier in (web,api)"
	FieldSelector string // "spec.nodeName=n1"
	PageSize      int32  // objects fetched at once; 0: the server's choice
	GetOptions
}

// WriteOptions apply to every write.
type WriteOptions struct {
	// DryRun does everything but write.
	DryRun bool
}

// newOf makes an empty message of type T, which may be nil itself.
func newOf[T object.Message]() T {
	var none T
	return none.ProtoReflect().New().Interface().(T)
}

func kindOf[T object.Message]() object.Kind { return object.KindOf(newOf[T]()) }

// errForeign marks an answer that holds something else than was asked for; asking
// again does not change that.
var errForeign = errors.New("client: the answer does not fit the question")

func as[T object.Message](envelope *balsav1.Object) (T, error) {
	var none T
	message, err := object.Unwrap(envelope)
	if err != nil {
		return none, fmt.Errorf("%w: the server sent an empty object: %w", errForeign, err)
	}
	typed, ok := message.(T)
	if !ok {
		return none, fmt.Errorf("%w: asked for a %T, the server sent a %s", errForeign, none, object.KindOf(message).Name)
	}
	return typed, nil
}

// Get reads one object. IsNotFound tells that there is none.
func Get[T object.Message](ctx context.Context, c *Client, namespace, name string, options GetOptions) (T, error) {
	response, err := c.Objects.Get(ctx, &balsav1.GetRequest{Kind: kindOf[T]().Name, Namespace: namespace, Name: name, Read: options.read()})
	if err != nil {
		var none T
		return none, err
	}
	return as[T](response.GetObject())
}

// Listed is a list at one revision.
type Listed[T object.Message] struct {
	Items []T
	// Watch from here to see every change after the list.
	ResourceVersion string
}

// List reads all objects of a kind in a namespace, or in all when it is empty,
// as they were at one revision. It holds them all: use Pages where that is too
// much.
func List[T object.Message](ctx context.Context, c *Client, namespace string, options ListOptions) (Listed[T], error) {
	var all Listed[T]
	for page, err := range Pages[T](ctx, c, namespace, options) {
		if err != nil {
			return Listed[T]{}, err
		}
		all.Items = append(all.Items, page.Items...)
		all.ResourceVersion = page.ResourceVersion
	}
	return all, nil
}

// Pages reads a list page by page, each at the revision of the first. It ends
// after an error.
func Pages[T object.Message](ctx context.Context, c *Client, namespace string, options ListOptions) iter.Seq2[Listed[T], error] {
	return func(yield func(Listed[T], error) bool) {
		request := &balsav1.ListRequest{
			Kind: kindOf[T]().Name, Namespace: namespace, LabelSelector: options.LabelSelector,
			FieldSelector: options.FieldSelector, Limit: options.PageSize, Read: options.read(),
		}
		for {
			page, err := onePage[T](ctx, c, request)
			if !yield(page, err) || err != nil || request.Continue == "" {
				return
			}
		}
	}
}

func onePage[T object.Message](ctx context.Context, c *Client, request *balsav1.ListRequest) (Listed[T], error) {
	response, err := c.Objects.List(ctx, request)
	if err != nil {
		return Listed[T]{}, err
	}
	page := Listed[T]{ResourceVersion: response.GetMetadata().GetResourceVersion()}
	for _, item := range response.GetItems() {
		typed, err := as[T](item)
		if err != nil {
			return Listed[T]{}, err
		}
		page.Items = append(page.Items, typed)
	}
	request.Continue = response.GetMetadata().GetContinue()
	return page, nil
}

// Create makes an object and returns it as it was stored.
func Create[T object.Message](ctx context.Context, c *Client, message T, options WriteOptions) (T, error) {
	response, err := c.Objects.Create(ctx, &balsav1.CreateRequest{Object: object.Wrap(message), DryRun: options.DryRun})
	if err != nil {
		var none T
		return none, err
	}
	return as[T](response.GetObject())
}

// Update replaces an object. With metadata.resourceVersion, as it was read, a
// change in between is refused: IsConflict.
func Update[T object.Message](ctx context.Context, c *Client, message T, options WriteOptions) (T, error) {
	response, err := c.Objects.Update(ctx, &balsav1.UpdateRequest{Object: object.Wrap(message), DryRun: options.DryRun})
	if err != nil {
		var none T
		return none, err
	}
	return as[T](response.GetObject())
}

// Apply merges what message mentions into the object on behalf of manager, and
// tells "created", "configured" or "unchanged".
func Apply[T object.Message](ctx context.Context, c *Client, manager string, message T, options WriteOptions) (stored T, result string, err error) {
	response, err := c.Objects.Apply(ctx, &balsav1.ApplyRequest{Object: object.Wrap(message), Manager: manager, DryRun: options.DryRun})
	if err != nil {
		return stored, "", err
	}
	stored, err = as[T](response.GetObject())
	return stored, response.GetResult(), err
}

// DeleteOptions refine a deletion.
type DeleteOptions struct {
	// Only the object with this UID, and only at this revision; empty: any.
	UID             string
	ResourceVersion string
	// Seconds a pod gets to end; nil: its own.
	GracePeriodSeconds *int64
	// Orphan keeps what the object owns.
	Orphan bool
	WriteOptions
}

// Delete removes an object, or marks it: gone tells which. A marked one goes
// when nothing needs it any more; see Wait.
func Delete[T object.Message](ctx context.Context, c *Client, namespace, name string, options DeleteOptions) (gone bool, err error) {
	request := &balsav1.DeleteRequest{
		Kind: kindOf[T]().Name, Namespace: namespace, Name: name, Uid: options.UID,
		ResourceVersion: options.ResourceVersion, GracePeriodSeconds: options.GracePeriodSeconds, DryRun: options.DryRun,
	}
	if options.Orphan {
		request.PropagationPolicy = "Orphan"
	}
	response, err := c.Objects.Delete(ctx, request)
	return response.GetDeleted(), err
}
