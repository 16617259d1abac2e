package sim

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Build compiles a Go package, as the go command names it, into a program for
// New. The same source gives the same bytes. The go command's own cache makes
// the second time quick.
func Build(ctx context.Context, pkg string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "balsa-sim-")
	if err != nil {
		return nil, fmt.Errorf("sim: build %s: %w", pkg, err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	out := filepath.Join(dir, "guest.wasm")
	command := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out, pkg)
	command.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOFLAGS=")
	if said, err := command.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("sim: build %s for wasip1: %w\n%s", pkg, err, said)
	}
	wasm, err := os.ReadFile(out)
	if err != nil {
		return nil, fmt.Errorf("sim: build %s: %w", pkg, err)
	}
	return wasm, nil
}
