package faults

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/balsa-run/balsa/chaos/stage"
)

// earlier builds the program from the commit of main that testdata names: the
// oldest one that today's must work together with.
func earlier(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("testdata/earlier-commit")
	must(t, err)
	commit := strings.TrimSpace(string(text))
	tree := filepath.Join(t.TempDir(), "earlier")
	binary := filepath.Join(t.TempDir(), "balsa-earlier")
	git(t, "../..", "git", "worktree", "add", "--detach", tree, commit)
	t.Cleanup(func() {
		command := exec.Command("git", "worktree", "remove", "--force", tree)
		command.Dir = "../.."
		if out, err := command.CombinedOutput(); err != nil {
			t.Errorf("git worktree remove: %v: %s", err, out)
		}
	})
	git(t, tree, "env", "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "go", "build", "-trimpath",
		"-ldflags", "-X github.com/balsa-run/balsa/internal/version.version=0.0.0-earlier", "-o", binary, "./cmd/balsa")
	return binary
}

func git(t *testing.T, dir string, words ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), buildTimeout)
	defer cancel()
	command := exec.CommandContext(ctx, words[0], words[1:]...)
	command.Dir = dir
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
	}
}

// TestMixedVersionsAreUpgraded runs one server of an earlier commit beside two of
// today's, then three of the earlier one, upgraded one by one, all with writes
// going on.
func TestMixedVersionsAreUpgraded(t *testing.T) {
	old := earlier(t)
	building, cancel := context.WithTimeout(t.Context(), buildTimeout)
	defer cancel()
	programs, err := stage.Build(building, "../..")
	must(t, err)
	s, err := stage.Up(t.Context(), stage.Options{
		Prefix: "fm", Dir: t.TempDir(), Binary: programs.Balsa, Servers: 3,
		ServerBinary: map[int]string{1: old, 2: old, 3: old},
	})
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.Logs(25))
		}
		must(t, s.Down())
	})
	stop := startWrites(t, s, programs, "mixed")
	for upgraded, server := range s.Servers {
		must(t, server.Upgrade(programs.Balsa))
		whole(t, s, 3)
		versions := map[string]int{}
		until(t, s, "every server to tell its version", func(status *stage.Status) error {
			clear(versions)
			for _, member := range status.Members {
				versions[member.Version]++
			}
			return status.Whole(3)
		})
		if versions["0.0.0-earlier"] != 2-upgraded {
			t.Fatalf("after %d upgrades the servers run %v", upgraded+1, versions)
		}
		pause(t, settle)
	}
	stop()
	converged(t, s, 3)
}
