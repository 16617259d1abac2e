package sim_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Runs that compute without end, one on each processor, are told of, and the process
// that has them ends. How long that takes is not the test's business; for ever is.
func TestRunsWithoutEnd(t *testing.T) {
	dir := t.TempDir()
	guest, program := filepath.Join(dir, "guest.wasm"), filepath.Join(dir, "stuck")
	if err := os.WriteFile(guest, build(t, "./testdata/small"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	if said, err := exec.CommandContext(ctx, "go", "build", "-o", program, "./testdata/stuck").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	said, err := exec.CommandContext(ctx, program, guest).CombinedOutput()
	if err != nil || string(said) != "stuck: 1\nstuck: 2\n" {
		t.Errorf("%v\n%s", err, said)
	}
}
