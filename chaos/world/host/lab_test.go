//balsa:real-processes

package host

import (
	"context"
	"strings"
	"testing"
	"time"
)

func newLab(t *testing.T, prefix string) *Lab {
	t.Helper()
	lab, err := New(prefix, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	return lab
}

func addHost(t *testing.T, lab *Lab, name string) *Host {
	t.Helper()
	h, err := lab.AddHost(name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func reaches(t *testing.T, from, to *Host) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	_, err := from.Run(ctx, "bash", "-c", "exec 3<>/dev/tcp/"+to.Address+"/9 2>/dev/null || exit $(( $? ))")
	// A refused connection has reached the host; a cut one runs into the time-out.
	return err == nil || ctx.Err() == nil
}

func TestHostsReachEachOtherUnlessCut(t *testing.T) {
	lab := newLab(t, "labt")
	a, b := addHost(t, lab, "a"), addHost(t, lab, "b")
	if !reaches(t, a, b) {
		t.Fatal("a does not reach b on a whole network")
	}
	if err := lab.Partition([]*Host{a}, []*Host{b}); err != nil {
		t.Fatal(err)
	}
	if reaches(t, a, b) {
		t.Fatal("a reaches b through a partition")
	}
	if err := lab.Heal(); err != nil {
		t.Fatal(err)
	}
	if !reaches(t, a, b) {
		t.Fatal("a does not reach b after Heal")
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	lab := newLab(t, "labc")
	h := addHost(t, lab, "a")
	// A process that has left its parent's group, as a shim does.
	if _, err := h.Start("orphan", "setsid", "sleep", "600"); err != nil {
		t.Fatal(err)
	}
	if leaks := strings.Join(lab.Leaks(), "\n"); !strings.Contains(leaks, "network namespace labc-a") {
		t.Fatalf("Leaks does not see what exists: %s", leaks)
	}
	if err := lab.Close(); err != nil {
		t.Fatal(err)
	}
	if leaks := lab.Leaks(); len(leaks) > 0 {
		t.Fatalf("after Close: %v", leaks)
	}
}
