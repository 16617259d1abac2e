package cluster

import (
	"context"
	"reflect"

	"github.com/hashicorp/raft"
)

// await is a library future under a context. The future ends by itself when raft
// does; see endsWith for those that would not.
func await(ctx context.Context, future raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- future.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// endsWith makes a future of an entry end once ended is closed, as a shutdown of
// unknown outcome. The library stops its state machine's goroutine with committed
// entries still queued for it, and nobody answers those (raft 1.8.0: runFSM may
// choose shutdownCh over fsmMutateCh). Its futures have a field for just this,
// which Apply and AddVoter do not fill; it is exported, its type is not.
func endsWith[F raft.Future](future F, ended chan struct{}) F {
	value := reflect.ValueOf(future)
	if value.Kind() != reflect.Pointer {
		return future // refused at once: it has its error already
	}
	if field := value.Elem().FieldByName("ShutdownCh"); field.IsValid() && field.CanSet() && field.IsNil() {
		field.Set(reflect.ValueOf(ended))
	}
	return future
}
