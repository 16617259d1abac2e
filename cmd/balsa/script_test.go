package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "rewrite the golden transcripts")

// TestScripts runs testdata/script/*.txtar against a server. An archive's
// comment says what it shows, "run" holds commands, "want" the transcript, and
// the other files are there when the commands run. A line of "run" is
//
//	balsa ARG... [| balsa ARG...] [< FILE] [> FILE]
//	until TEXT -- balsa ARG...     again and again until TEXT is printed
//	await TEXT -- balsa ARG...     the same, without the output
//	replace FILE OLD NEW           edits a file
//
// with words in quotes where they hold spaces. In the transcript standard error
// is marked by "! ", an exit code other than 0 by "[1]", and what differs from
// run to run has a name: see normal.
func TestScripts(t *testing.T) {
	// A server of its own: transcripts tell of all that is there.
	dir, err := os.MkdirTemp("", "balsa-cli-test-")
	must(t, err)
	defer os.RemoveAll(dir)
	s := startServer(t, dir, "s1", "--init", "--log-level", "error")
	defer s.stop()
	waitUntilServing(t, s)
	runScripts(t, s, filepath.Join("testdata", "script"), 10)
}

func runScripts(t *testing.T, s *server, dir string, least int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	must(t, err)
	if len(files) < least {
		t.Fatalf("found %d scripts: they were looked for in the wrong place", len(files))
	}
	for _, file := range files {
		path, err := filepath.Abs(file)
		must(t, err)
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Setenv("BALSA_CONFIG", s.config)
			runScript(t, path)
		})
	}
}

func runScript(t *testing.T, path string) {
	t.Helper()
	archive, err := txtar.ParseFile(path)
	must(t, err)
	t.Chdir(t.TempDir())
	var commands, want string
	for _, file := range archive.Files {
		switch file.Name {
		case "run":
			commands = string(file.Data)
		case "want":
			want = string(file.Data)
		default:
			must(t, os.MkdirAll(filepath.Dir(file.Name), 0o755))
			must(t, os.WriteFile(file.Name, file.Data, 0o644))
		}
	}
	s := &script{t: t}
	for line := range strings.Lines(commands) {
		s.command(strings.TrimSpace(line))
	}
	got := normal(s.transcript.String())
	if *update {
		setFile(archive, "want", got)
		must(t, os.WriteFile(path, txtar.Format(archive), 0o644))
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the transcript differs (-want +got), go test -update rewrites it:\n%s", diff)
	}
}

func setFile(archive *txtar.Archive, name, text string) {
	for i := range archive.Files {
		if archive.Files[i].Name == name {
			archive.Files[i].Data = []byte(text)
			return
		}
	}
	archive.Files = append(archive.Files, txtar.File{Name: name, Data: []byte(text)})
}

// script is one run of an archive.
type script struct {
	t          *testing.T
	transcript strings.Builder
}

func (s *script) command(line string) {
	if line == "" || strings.HasPrefix(line, "#") {
		return
	}
	fmt.Fprintf(&s.transcript, "$ %s\n", line)
	words := split(s.t, line)
	switch words[0] {
	case "until":
		s.transcript.WriteString(s.until(words[1], words[3:]))
	case "await":
		s.until(words[1], words[3:])
	case "replace":
		text, err := os.ReadFile(words[1])
		must(s.t, err)
		if !bytes.Contains(text, []byte(words[2])) {
			s.t.Fatalf("%s: there is no %q in:\n%s", line, words[2], text)
		}
		must(s.t, os.WriteFile(words[1], bytes.ReplaceAll(text, []byte(words[2]), []byte(words[3])), 0o600))
	case "balsa":
		s.transcript.WriteString(s.pipeline(words))
	default:
		s.t.Fatalf("%q is no command of a script", words[0])
	}
}

func (s *script) until(text string, words []string) (printed string) {
	eventually(s.t, func() error {
		if printed = s.pipeline(words); !strings.Contains(printed, text) {
			return fmt.Errorf("%v does not print %q but:\n%s", words, text, printed)
		}
		return nil
	})
	return printed
}

// pipeline runs programs one after the other, each with the output of the one
// before, and returns the transcript.
func (s *script) pipeline(words []string) string {
	var printed strings.Builder
	var in io.Reader = strings.NewReader("")
	for {
		end, last := len(words), true
		for i, word := range words {
			if word == "|" {
				end, last = i, false
				break
			}
		}
		out := s.program(words[1:end], in, &printed)
		if last {
			printed.WriteString(out)
			return printed.String()
		}
		in, words = strings.NewReader(out), words[end+1:]
	}
}

// program runs the command line once. Standard error goes to the transcript.
func (s *script) program(args []string, in io.Reader, printed *strings.Builder) (out string) {
	var stdout, stderr bytes.Buffer
	to := ""
	for i := 0; i < len(args)-1; i++ {
		switch args[i] {
		case "<":
			text, err := os.ReadFile(args[i+1])
			must(s.t, err)
			in, args = bytes.NewReader(text), append(args[:i:i], args[i+2:]...)
			i--
		case ">":
			to, args = args[i+1], append(args[:i:i], args[i+2:]...)
			i--
		}
	}
	code := run(s.t.Context(), args, in, &stdout, &stderr)
	for line := range strings.Lines(stderr.String()) {
		printed.WriteString("! " + line)
	}
	if code != exitOK {
		fmt.Fprintf(printed, "[%d]\n", code)
	}
	if to != "" {
		must(s.t, os.WriteFile(to, stdout.Bytes(), 0o600))
		return ""
	}
	return stdout.String()
}

// split takes a line apart at spaces that are not in quotes.
func split(t *testing.T, line string) []string {
	t.Helper()
	var words []string
	for rest := strings.TrimSpace(line); rest != ""; rest = strings.TrimSpace(rest) {
		end := strings.IndexByte(rest+" ", ' ')
		if quote := rest[0]; quote == '\'' || quote == '"' {
			closing := strings.IndexByte(rest[1:], quote)
			if closing < 0 {
				t.Fatalf("%s: a quote without its end", line)
			}
			words, rest = append(words, rest[1:closing+1]), rest[closing+2:]
			continue
		}
		words, rest = append(words, rest[:end]), rest[min(end, len(rest)):]
	}
	return words
}

// normal gives names to what differs from run to run, and only to that.
func normal(text string) string {
	for _, rule := range normalRules() {
		text = rule.pattern.ReplaceAllString(text, rule.name)
	}
	return text
}

type normalRule struct {
	pattern *regexp.Regexp
	name    string
}

func normalRules() []normalRule {
	var rules []normalRule
	for _, rule := range [][2]string{
		{`balsa1\.[a-z0-9]+\.[a-z0-9]+\.[a-z0-9]+\.[a-z0-9]+`, "TOKEN"},
		{`\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b`, "UID"},
		{`(uid: )"UID"`, "${1}UID"},
		{`(pod-template-hash: )[a-z0-9]+`, "${1}HASH"},
		{`(kept as \S+)-[0-9a-f]{10}\b`, "${1}-CONTENT"},
		{`/tmp/balsa-cli-test-\d+`, "DIR"},
		{`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| UTC)?`, "TIME"},
		{`until \d{4}-\d\d-\d\d`, "until DATE"},
		{`127\.0\.0\.1:\d+`, "SERVER"},
		{`\b10\.(9[6-9]|10\d|11[01])\.\d+\.\d+\b`, "CLUSTERIP"},
		{`(resourceVersion"?: )"\d+"`, `${1}"N"`},
		{`(resource version )\d+`, "${1}N"},
		{`-[bcdfghjklmnpqrstvwxz2-9]{10}-[bcdfghjklmnpqrstvwxz2-9]{5}\b`, "-HASH-POD"},
		{`-[bcdfghjklmnpqrstvwxz2-9]{10}\b`, "-HASH"},
		{`\bs1-[0-9a-f]{8}\b`, "s1-ID"},
		{`\b[0-9a-f]{32}\b`, "CLUSTER"},
		{`(leader +)\d+( +)\d+( +)[0-9a-f]{16}\b`, "${1}APPLIED${2}REVISION${3}HASH"},
		{`term \d+`, "term N"},
		{`\b\d+\.\d+\.\d+(-[a-z]+)? \([0-9a-z]+,`, "VERSION (COMMIT,"},
		{`(HASH +)\d+\.\d+\.\d+(-[a-z]+)?`, "${1}VERSION"},
		{`\bgo1\.\d+(\.\d+)?\b`, "GOVERSION"},
		{`(?m)\b\d+s(( \(x\d+\))?( \(deleted\))?$|( \(x\d+\))? {3,}| ago)`, "AGE$1"},
		// Widths depend on what was replaced.
		{`(\S) {3,}`, "$1   "},
	} {
		rules = append(rules, normalRule{regexp.MustCompile(rule[0]), rule[1]})
	}
	return rules
}

// waitMax bounds how long a test waits for what must come.
const waitMax = 90 * time.Second

// eventually asks again until it is so.
func eventually(t *testing.T, so func() error) {
	t.Helper()
	deadline := time.Now().Add(waitMax)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := so()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", waitMax, err)
		}
		<-ticker.C
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// digits gives numbers that depend on the machine a name.
func digits(text string) string { return regexp.MustCompile(`\d{6,}`).ReplaceAllString(text, "NUMBER") }
