package mutate_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/balsa-run/balsa/internal/mutate"
)

// Without the tag nothing of a planted bug is in a program; with it, it is: or the
// first half would prove nothing.
func TestNothingIsPlantedWithoutTheTag(t *testing.T) {
	for tag, planted := range map[string]bool{"": false, "mutate": true} {
		program := filepath.Join(t.TempDir(), "marked")
		command := exec.CommandContext(t.Context(), "go", "build", "-tags="+tag, "-o", program, "./testdata/marked")
		if said, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, said)
		}
		code, err := os.ReadFile(program)
		if err != nil {
			t.Fatal(err)
		}
		if got := bytes.Contains(code, []byte("a planted bug that must not be here")); got != planted {
			t.Errorf("with the tag %q the branch of a planted bug is in the program: %v, expected %v", tag, got, planted)
		}
	}
}

// Each bug stands somewhere in the program: one that is planted nowhere would be
// called "not found" for the wrong reason.
func TestEachBugIsPlanted(t *testing.T) {
	constants := constantNames(t)
	root := "../.."
	for _, bug := range mutate.Bugs() {
		use := "mutate.On(mutate." + constants[string(bug)] + ")"
		command := exec.CommandContext(t.Context(), "grep", "-rlF", "--include=*.go", use,
			filepath.Join(root, "store"), filepath.Join(root, "cluster"), filepath.Join(root, "apiserver"), filepath.Join(root, "reconciler"))
		if found, err := command.Output(); err != nil || len(found) == 0 {
			t.Errorf("%s is planted nowhere: no file has %s", bug, use)
		}
	}
}

// constantNames reads the names of the constants by their values.
func constantNames(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("mutate.go")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.SplitSeq(string(text), "\n") {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ` Bug = "`); ok {
			out[strings.TrimSuffix(value, `"`)] = name
		}
	}
	if len(out) != len(mutate.Bugs()) {
		t.Fatalf("%d constants, Bugs has %d", len(out), len(mutate.Bugs()))
	}
	return out
}

func TestParse(t *testing.T) {
	bugs, err := mutate.Parse("no-fsync,verify-leader")
	if err != nil || len(bugs) != 2 || bugs[0] != mutate.NoFsync || bugs[1] != mutate.VerifyLeader {
		t.Errorf("%v, %v", bugs, err)
	}
	if none, err := mutate.Parse(""); err != nil || none != nil {
		t.Errorf("%v, %v", none, err)
	}
	if _, err := mutate.Parse("no-fsync,typo"); err == nil || !strings.Contains(err.Error(), `"typo"`) {
		t.Errorf("a bug that does not exist: %v", err)
	}
}

func TestThisBuildHasNone(t *testing.T) {
	if mutate.Built {
		t.Fatal("the tests are to be run without the tag mutate")
	}
	if err := mutate.Arm([]mutate.Bug{mutate.NoFsync}); err == nil {
		t.Error("bugs were armed in a build that has none")
	}
	for _, bug := range mutate.Bugs() {
		if mutate.On(bug) {
			t.Errorf("%s is at work", bug)
		}
	}
}
