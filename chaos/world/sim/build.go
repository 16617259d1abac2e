package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// GuestPackage is the guest that balsa-chaos runs.
const GuestPackage = modulePath + "/chaos/world/sim/guest"

const modulePath = "github.com/balsa-run/balsa"

// ErrNoCheckout says that there is nothing to build the guest from.
var ErrNoCheckout = errors.New("the simulation's guest is built from a checkout of Balsa, by the go command")

// Build compiles a Go package, as the go command names it, into a program for
// New. The same source gives the same bytes. The go command's own cache makes
// the second time quick.
func Build(ctx context.Context, pkg string, tags ...string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "balsa-sim-")
	if err != nil {
		return nil, fmt.Errorf("sim: build %s: %w", pkg, err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	out := filepath.Join(dir, "guest.wasm")
	command := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-tags="+strings.Join(tags, ","), "-o", out, pkg)
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

// Guest compiles the guest from the checkout that the working directory is in. A
// program that was installed alone has neither source nor compiler; then the error
// matches ErrNoCheckout and says what is missing.
func Guest(ctx context.Context, tags ...string) ([]byte, error) {
	if _, err := exec.LookPath("go"); err != nil {
		return nil, fmt.Errorf("%w: there is no go command on the PATH: install Go, and clone the repository: %w", ErrNoCheckout, err)
	}
	command := exec.CommandContext(ctx, "go", "list", "-m")
	command.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	said, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: this folder is in no Go module: change to a clone of the repository: %w", ErrNoCheckout, err)
	}
	if module := string(bytes.TrimSpace(said)); module != modulePath {
		return nil, fmt.Errorf("%w: this folder belongs to module %q: change to a clone of the repository", ErrNoCheckout, module)
	}
	return Build(ctx, GuestPackage, tags...)
}

// CacheDir is where compiled guests are kept between processes, in the user's
// cache folder.
func CacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("sim: a folder for compiled guests: %w", err)
	}
	return filepath.Join(dir, "balsa", "sim"), nil
}
