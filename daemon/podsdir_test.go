package daemon

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/balsa-run/balsa/internal/hostmount"
)

func TestPodsFolder(t *testing.T) {
	for _, c := range []struct {
		about            string
		run, data, lives bool // on a tmpfs, on a tmpfs, pods are there
		want, warns      string
	}{
		{"both on a disk", false, false, false, "RUN/pods", ""},
		{"a tmpfs for what need not last", true, false, false, "DATA/run/pods", ""},
		{"pods of before", true, false, true, "RUN/pods", "when the agent starts without any"},
		{"all in memory", true, true, false, "RUN/pods", "put it on a disk"},
		{"pods of before, on a disk", false, false, true, "RUN/pods", ""},
	} {
		data, run := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "run")
		if c.lives {
			if err := os.MkdirAll(filepath.Join(run, "pods", "pods", "uid"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		var said strings.Builder
		onTmpfs := func(dir string) (hostmount.Room, bool, error) {
			return hostmount.Room{Bytes: 4711, Free: 42}, dir == run && c.run || dir == data && c.data, nil
		}
		got, err := podsFolder(data, run, onTmpfs, slog.New(slog.NewTextHandler(&said, nil)))
		want := strings.NewReplacer("RUN", run, "DATA", data).Replace(c.want)
		if err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", c.about, got, err, want)
		}
		if c.warns == "" && said.Len() > 0 || !strings.Contains(said.String(), c.warns) || c.warns != "" && !strings.Contains(said.String(), "tmpfsBytes=4711 freeBytes=42") {
			t.Errorf("%s: it says %q", c.about, said.String())
		}
	}
	broken := errors.New("no such disk")
	_, err := podsFolder("d", "r", func(string) (hostmount.Room, bool, error) { return hostmount.Room{}, false, broken }, slog.New(slog.DiscardHandler))
	if !errors.Is(err, broken) {
		t.Errorf("an error of the disk: %v", err)
	}
}

// TestOnTmpfs asks this machine, also about folders that are yet to be made.
func TestOnTmpfs(t *testing.T) {
	if _, is, err := hostmount.OnTmpfs("/dev/shm/none/at/all"); err != nil || !is {
		t.Errorf("/dev/shm: %v, %v", is, err)
	}
	if _, is, err := hostmount.OnTmpfs("/proc"); err != nil || is {
		t.Errorf("/proc: %v, %v", is, err)
	}
}
