package bench

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got; -update writes it):\n%s", path, diff)
	}
}

func document() Document {
	return Document{
		Title: "Benchmarks", Maker: "make bench",
		Machine: Machine{CPU: "Example 9000", Cores: 2, MemoryGB: 25.3, Kernel: "6.18.1", System: "Debian GNU/Linux 12", Disk: "ext4"},
		Version: "0.1.0 (0123456789ab, go1.26.8)", Date: time.Date(2026, 11, 22, 23, 30, 0, 0, time.FixedZone("", 3600)),
		Results: []Result{
			{
				Name: "start", Question: "How long until it runs?", Unit: milliseconds(),
				Targets: []Target{{Of: Median, Under: 300}, {Of: Median, Under: 200, Aim: true}, {Of: Maximum, Under: 400}},
				Samples: Samples{Values: []float64{400, 100, 200, 300.4}, Notes: []string{"most of it was waiting"}},
				Load:    Load{Before: 0.2, Least: 0.2, Most: 1.26},
			},
			{
				Name: "memory", Question: "How much has it?", Unit: megabytes(), Targets: []Target{{Of: Maximum, Under: 40}},
				Err: errors.New("the agent ended\nlog line\nlog line"), Load: Load{Before: 1, Least: 0.1, Most: 1},
			},
			{
				Name: "puts", Question: "How many?", Unit: perSecond(),
				Samples: Samples{Values: []float64{1234.5}}, Load: Load{Before: 1, Least: 1, Most: 3},
			},
		},
	}
}

func TestDocument(t *testing.T) { golden(t, "document.md", document().Markdown()) }

func TestDocumentOfAQuickRunOnABusyMachine(t *testing.T) {
	d := document()
	d.Quick = true
	d.Results = d.Results[:1]
	d.Results[0].Load = Load{Before: 12, Least: 11, Most: 13}
	golden(t, "quick-busy.md", d.Markdown())
}

func TestDocumentOfNothing(t *testing.T) {
	d := document()
	d.Results = nil
	golden(t, "nothing.md", d.Markdown())
}
