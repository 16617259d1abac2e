package runc

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/runtime/simprog"
)

func TestReclaimLogs(t *testing.T) {
	m := newMachine(t)
	rt := m.open()
	ctx := context.Background()
	if _, err := rt.ReclaimLogs(ctx, "a", true); !errors.Is(err, runtime.ErrPodNotFound) {
		t.Errorf("a pod that is not there: %v", err)
	}
	if _, err := rt.RunPod(ctx, runtime.PodConfig{UID: "a", Hostname: "h"}); err != nil {
		t.Fatal(err)
	}
	c := runtime.ContainerConfig{
		Name: "c", Image: m.image, Command: []string{"/bin/" + simprog.Name, "lines=5000", "out=last", "forever"},
		Log: runtime.LogLimits{MaxBytes: runtime.MinLogMaxBytes, MaxFiles: 3},
	}
	if err := rt.RunContainer(ctx, "a", c); err != nil {
		t.Fatal(err)
	}
	logs := func() []string {
		found, err := filepath.Glob(filepath.Join(rt.podDir("a"), logsDir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	last := func() (text string) {
		log, err := rt.OpenLog(ctx, "a", "c", 0, runtime.LogOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = log.Close() }()
		for {
			line, err := log.Next()
			if errors.Is(err, io.EOF) {
				return text
			}
			if err != nil {
				t.Fatal(err)
			}
			text = string(line.Text)
		}
	}
	for deadline := time.Now().Add(20 * time.Second); last() != "last"; {
		if time.Now().After(deadline) {
			t.Fatalf("its last line is %q", last())
		}
	}
	if n := len(logs()); n != 3 {
		t.Fatalf("files %v, want 3", logs())
	}
	freed, err := rt.ReclaimLogs(ctx, "a", false)
	if err != nil || freed < runtime.MinLogMaxBytes || len(logs()) != 1 || last() != "last" {
		t.Errorf("of a running pod: freed %d, %v; files %v, last line %q", freed, err, logs(), last())
	}
	info, err := os.Stat(logs()[0])
	if err != nil {
		t.Fatal(err)
	}
	if freed, err = rt.ReclaimLogs(ctx, "a", true); err != nil || freed < info.Size() || len(logs()) != 0 {
		t.Errorf("of an ended pod: freed %d, %v; files %v", freed, err, logs())
	}
}
