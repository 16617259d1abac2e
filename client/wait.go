package client

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/balsa-run/balsa/object"
)

func protoMessage(m proto.Message) protoreflect.Value {
	return protoreflect.ValueOfMessage(m.ProtoReflect())
}

// Condition judges an object that is being waited for; it is absent when exists
// is false. It returns a few words about what is still missing.
type Condition[T object.Message] func(message T, exists bool) (done bool, missing string)

// Wait returns when the condition holds, with the object as it was then. When
// ctx ends first, the error tells what was still missing.
func Wait[T object.Message](ctx context.Context, c *Client, namespace, name string, holds Condition[T]) (T, error) {
	var last T
	exists, missing := false, "nothing was seen of it yet"
	for event, err := range Watch[T](ctx, c, namespace, WatchOptions{FieldSelector: "metadata.name=" + name}) {
		if err != nil {
			return last, fmt.Errorf("wait for %s: %w", object.DescribeKey(kindOf[T](), namespace, name), err)
		}
		switch event.Type {
		case Added, Modified:
			last, exists = event.Object, true
		case Deleted:
			last, exists = event.Object, false
		case Synced:
		}
		// Before the first full view an absent object may only not have been told.
		if !exists && event.Type != Synced && event.Type != Deleted {
			continue
		}
		var done bool
		if done, missing = holds(last, exists); done {
			return last, nil
		}
	}
	return last, fmt.Errorf("wait for %s: %w: %s", object.DescribeKey(kindOf[T](), namespace, name), context.Cause(ctx), missing)
}
