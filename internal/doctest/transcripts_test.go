package doctest

//balsa:real-processes

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

// patience is how long a command that only looks is repeated until it prints
// what the document says.
const patience = 60 * time.Second

// TestTranscripts does what the documents tell the reader to do, on a cluster of
// one in a network namespace, and compares what is printed.
func TestTranscripts(t *testing.T) {
	w := openWorkshop(t)
	start := named(t, "docs/quick-start.md")
	for _, b := range start.blocks {
		if b.is("console", "build") {
			w.build(t, b)
		}
	}
	for _, name := range []string{"docs/quick-start.md", "docs/rollouts.md", "docs/reference/api.md", "docs/reference/metrics.md"} {
		t.Run(name, func(t *testing.T) { w.play(t, named(t, name), serveOf(t, start)) })
	}
}

func serveOf(t *testing.T, d document) block {
	t.Helper()
	for _, b := range d.blocks {
		if b.is("console", "serve") {
			return b
		}
	}
	t.Fatalf("%s has no block `console serve`", d.path)
	return block{}
}

// play starts a new cluster of one and runs a document's blocks in order.
func (w *workshop) play(t *testing.T, d document, serve block) {
	w.serve(t, serve)
	shell := w.shell(t)
	ran := 0
	for _, b := range d.blocks {
		switch {
		case b.is("console", "run"):
			for _, s := range b.transcript() {
				shell.expect(t, d, s)
				ran++
			}
		case b.is("go", "run"):
			w.program(t, d, b)
			ran++
		}
	}
	if ran == 0 {
		t.Fatalf("%s has nothing to run", d.path)
	}
}

// expect runs a command until it prints what it should, or once if it changes
// something.
func (s *shell) expect(t *testing.T, d document, want step) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		have := s.run(t, want.command)
		if sameOutput(want.output, have) {
			return
		}
		if changes(want.command) || time.Now().After(deadline) {
			t.Fatalf("%s:%d: $ %s\nprinted:\n%s\nthe document says:\n%s", d.path, want.line, want.command, have, strings.Join(want.output, "\n"))
		}
		s.breathe(t)
	}
}

// changes tells whether a command may run only once.
func changes(command string) bool {
	return regexp.MustCompile(`\b(apply|create|delete|scale|import|undo|retry|pause|resume|restart|remove|revoke|Create|Update|Apply|Delete)\b`).MatchString(command)
}

// sameOutput compares line by line; a line "…" stands for any number of them.
// Empty lines at the end do not count.
func sameOutput(want []string, have string) bool {
	return match(lines(strings.Join(want, "\n")), lines(have))
}

func lines(text string) []string {
	text = strings.TrimRight(text, "\n ")
	if text == "" {
		return nil
	}
	all := strings.Split(text, "\n")
	for i := range all {
		all[i] = normal(all[i])
	}
	return all
}

func match(want, have []string) bool {
	if len(want) == 0 {
		return len(have) == 0
	}
	if want[0] != "…" {
		return len(have) > 0 && want[0] == have[0] && match(want[1:], have[1:])
	}
	for skip := 0; skip <= len(have); skip++ {
		if match(want[1:], have[skip:]) {
			return true
		}
	}
	return false
}

// normal replaces what differs from run to run: names that were drawn, times,
// ages, addresses, digests, sizes and counts.
func normal(line string) string {
	for _, r := range [][2]string{
		{`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`, "UID"},
		{`\bhello-[a-z0-9]{10}(-[a-z0-9]{5})?\b`, "hello-DRAWN"},
		{`\bdev-[0-9a-f]{8}\b`, "dev-DRAWN"},
		{`\d{4}[-/]\d\d[-/]\d\d([ T]\d\d:\d\d:\d\d(\.\d+)?Z?)?`, "TIME"},
		{`sha256:[0-9a-f]+`, "DIGEST"},
		{`\b[0-9a-f]{16}([0-9a-f]{16})?\b`, "HASH"},
		{`\d+\.\d+\.\d+\.\d+`, "ADDRESS"},
		{`\d+(\.\d+)? [KMG]iB`, "SIZE"},
		{`\b\d+(\.\d+)?(ms|µs|s|d)\b|\b\d+m(\d+s)?\b|\b\d+h\d+m\b`, "AGE"},
		{`("resourceVersion": ?)"\d+"`, `${1}"REVISION"`},
		{`\b\d{2,}\b`, "COUNT"},
		{`(leader +)\d+( +)\d+`, "${1}COUNT${2}COUNT"},
		{`[ \t]+`, " "},
	} {
		line = regexp.MustCompile(r[0]).ReplaceAllString(line, r[1])
	}
	return strings.TrimSpace(line)
}

func TestNormal(t *testing.T) {
	for _, same := range [][2]string{
		{"pod/hello-v495zmct5d-nhfn2   1/1   2s", "pod/hello-abcdefghij-22222 1/1 1m10s"},
		{"dev  Ready  0.1.0  16s", "dev Ready 0.1.0 4s"},
		{"x imported, 2.9 MiB, sha256:b499f6a4d1ec", "x imported, 3.0 MiB, sha256:0000"},
	} {
		if a, b := normal(same[0]), normal(same[1]); a != b {
			t.Errorf("%q and %q differ: %q, %q", same[0], same[1], a, b)
		}
	}
	for _, other := range [][2]string{{"hello 3/3", "hello 2/3"}, {"deployment/hello created", "deployment/hello unchanged"}} {
		if normal(other[0]) == normal(other[1]) {
			t.Errorf("%q and %q count as the same", other[0], other[1])
		}
	}
}

func TestSameOutput(t *testing.T) {
	want := []string{"a", "…", "z", ""}
	for text, same := range map[string]bool{"a\nz\n": true, "a\nb\nc\nz": true, "a\nb": false, "z": false, "": false} {
		if sameOutput(want, text) != same {
			t.Errorf("%q: %v", text, !same)
		}
	}
}
