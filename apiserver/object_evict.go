package apiserver

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Evict implements ObjectService.
func (s objectService) Evict(_ context.Context, _ *balsav1.EvictRequest) (*balsav1.EvictResponse, error) {
	return nil, connect.NewError(connect.CodeUnimplemented, errors.New("evictions are not implemented yet: delete the pod"))
}
