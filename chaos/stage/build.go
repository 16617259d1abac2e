package stage

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Programs are what a stage and its loads run.
type Programs struct {
	Balsa string
	Chaos string // balsa-chaos
	Echo  string // archive of the echo image
}

// Build makes the programs of the module at root as `make build` does, into its
// bin folder; what is up to date is left alone.
func Build(ctx context.Context, root string) (Programs, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return Programs{}, err
	}
	bin := filepath.Join(root, "bin")
	steps := [][]string{
		{"make", "--no-print-directory", "build"},
		{"go", "build", "-trimpath", "-o", filepath.Join(bin, "balsa-chaos"), "./cmd/balsa-chaos"},
		{"env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(bin, "echo"), "./examples/echo"},
		{"go", "run", "./examples/image", "-name", "balsa/echo:1", "-out", filepath.Join(bin, "echo.tar"), filepath.Join(bin, "echo")},
	}
	for _, step := range steps {
		command := exec.CommandContext(ctx, step[0], step[1:]...)
		command.Dir = root
		command.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false")
		if out, err := command.CombinedOutput(); err != nil {
			return Programs{}, fmt.Errorf("build: %v: %w\n%s", step, err, out)
		}
	}
	return Programs{
		Balsa: filepath.Join(bin, "balsa"), Chaos: filepath.Join(bin, "balsa-chaos"), Echo: filepath.Join(bin, "echo.tar"),
	}, nil
}
