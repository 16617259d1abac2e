package sim

import (
	"context"
	"fmt"
	"io"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// What a guest may ask of the host beside WASI: to take a piece of the history
// that it records.
//
//	module "balsa", function "record"(pointer, length)
//
// The call has no answer and takes no time, so that a run is the same whether
// somebody wants the history or not.
const (
	hostModule = "balsa"
	hostRecord = "record"
)

type recorderKey struct{}

// recorder takes what one run records.
type recorder struct {
	to  io.Writer // nil: nobody wants it
	err error
}

func (r *recorder) take(piece []byte) {
	if r.to == nil || r.err != nil {
		return
	}
	if _, err := r.to.Write(piece); err != nil {
		r.err = fmt.Errorf("write the history: %w", err)
	}
}

func instantiateHost(ctx context.Context, rt wazero.Runtime) error {
	record := func(ctx context.Context, guest api.Module, pointer, length uint32) {
		r, ok := ctx.Value(recorderKey{}).(*recorder)
		if !ok {
			return
		}
		if piece, inside := guest.Memory().Read(pointer, length); inside {
			r.take(piece)
		} else if r.err == nil {
			r.err = fmt.Errorf("the program recorded %d bytes at %d, which is outside of its memory", length, pointer)
		}
	}
	_, err := rt.NewHostModuleBuilder(hostModule).NewFunctionBuilder().WithFunc(record).Export(hostRecord).Instantiate(ctx)
	return err
}
