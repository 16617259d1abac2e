//balsa:real-processes

package runc

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// A child that has ended is seen without a thread that waits for it, and is
// still there to be reaped.
func TestAwaitEndSeesTheEndOfAChild(t *testing.T) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/cat")
	cmd.Stdin = in
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- awaitEnd(cmd.Process.Pid) }()
	select {
	case err := <-ended:
		t.Errorf("it is said to have ended: %v", err)
	default:
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("waiting for its end: %v", err)
	}
	if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("it was reaped: %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}
