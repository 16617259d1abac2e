package doctest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/balsa-run/balsa/object"
)

// TestErrorReasons compares the reasons of docs/reference/errors.md with those
// that the source gives.
func TestErrorReasons(t *testing.T) {
	inCode := map[string]bool{}
	for dir, patterns := range map[string][]string{
		"apiserver": {`reason:\s+"(\w+)"`, `\.reason(?:, p\.\w+)* = connect\.\w+, "(\w+)"`, `conflict\("(\w+)"`, `\{pki\.Err\w+, connect\.\w+, "(\w+)"\}`, `Reason\w+\s+= "(\w+)"`},
		"cluster":   {`Reason\w+\s+Reason = "(\w+)"`},
		"client":    {`Reason\w+\s+= "(\w+)"`},
	} {
		for _, pattern := range patterns {
			found := inSource(t, dir, regexp.MustCompile(pattern))
			if len(found) == 0 {
				t.Errorf("%s has nothing like %s: the search is broken", dir, pattern)
			}
			for _, reason := range found {
				inCode[reason] = true
			}
		}
	}
	inDocument := map[string]bool{}
	for _, row := range named(t, "docs/reference/errors.md").table(t, "## Reasons") {
		if inDocument[row[0]] {
			t.Errorf("errors.md lists %s twice", row[0])
		}
		inDocument[row[0]] = true
	}
	compare(t, "docs/reference/errors.md", inCode, inDocument)
}

// TestMetricNames compares docs/reference/metrics.md with the names in the source.
func TestMetricNames(t *testing.T) {
	inCode := map[string]bool{}
	for _, name := range inSource(t, "apiserver", regexp.MustCompile(`Name: "(balsa_\w+)"`)) {
		inCode[name] = true
	}
	for call, suffix := range map[string]string{"Add": "_total", "Set": "", "Observe": "_observed"} {
		found := inSource(t, "cluster", regexp.MustCompile(`Metrics\.`+call+`\("(\w+)"`))
		found = append(found, inSource(t, "daemon/core", regexp.MustCompile(`[mM]etrics\.`+call+`\("(\w+)"`))...)
		if len(found) == 0 {
			t.Errorf("cluster calls Metrics.%s nowhere: the search is broken", call)
		}
		for _, name := range found {
			inCode["balsa_"+name+suffix] = true
		}
	}
	inDocument := map[string]bool{}
	for _, row := range named(t, "docs/reference/metrics.md").table(t, "## Balsa's own") {
		inDocument[row[0]] = true
	}
	for _, name := range inSource(t, "node", regexp.MustCompile(`"(balsa_agent_\w+)"`)) {
		inCode[name] = true
	}
	for _, row := range named(t, "docs/reference/metrics.md").table(t, "## The agent's") {
		inDocument[row[0]] = true
	}
	compare(t, "docs/reference/metrics.md", inCode, inDocument)
}

func inSource(t *testing.T, dir string, pattern *regexp.Regexp) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
	must(t, err)
	var found []string
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		text, err := os.ReadFile(path)
		must(t, err)
		for _, match := range pattern.FindAllStringSubmatch(string(text), -1) {
			found = append(found, match[1])
		}
	}
	return found
}

func compare(t *testing.T, page string, inCode, inDocument map[string]bool) {
	t.Helper()
	for name := range inCode {
		if !inDocument[name] {
			t.Errorf("%s does not list %s", page, name)
		}
	}
	for name := range inDocument {
		if !inCode[name] {
			t.Errorf("%s lists %s, which the source does not have", page, name)
		}
	}
}

// TestFieldsHaveOneWriter compares docs/internals/fields.md with the messages of
// every kind: each field is listed, once.
func TestFieldsHaveOneWriter(t *testing.T) {
	inCode := map[string]bool{}
	for _, kind := range object.Kinds() {
		addFields(inCode, kind.New().ProtoReflect().Descriptor())
	}
	inDocument := map[string]bool{}
	for _, row := range fieldRows(t) {
		message, fields, writer := row[0], row[1], row[2]
		if writer == "" {
			t.Errorf("fields.md names no writer of %s: %s", message, fields)
		}
		for field := range strings.SplitSeq(fields, ",") {
			name := message + "." + strings.TrimSpace(field)
			if inDocument[name] {
				t.Errorf("fields.md lists %s twice: a field has one writer", name)
			}
			inDocument[name] = true
		}
	}
	compare(t, "docs/internals/fields.md", inCode, inDocument)
}

func fieldRows(t *testing.T) [][]string {
	t.Helper()
	all := rows(named(t, "docs/internals/fields.md").text)
	found := slices.DeleteFunc(all, func(row []string) bool { return len(row) != 4 })
	if len(found) < 30 {
		t.Fatalf("fields.md has %d rows of message, fields, writer, how", len(found))
	}
	return found
}

// addFields lists the fields of a message, and of what it is made of, by the
// names that manifests have. Quantities and the like are values, not messages.
func addFields(all map[string]bool, message protoreflect.MessageDescriptor) {
	for i := range message.Fields().Len() {
		field := message.Fields().Get(i)
		name := string(message.Name()) + "." + field.JSONName()
		if all[name] {
			continue
		}
		all[name] = true
		inner := field.Message()
		if field.IsMap() {
			inner = field.MapValue().Message()
		}
		if inner != nil && inner.ParentFile().Package() == "balsa.v1" && inner.Name() != "Quantity" && inner.Name() != "IntOrString" {
			addFields(all, inner)
		}
	}
}

// TestCheckersExist finds every test that guarantees.md and bugs.md name, in the
// package that they name.
func TestCheckersExist(t *testing.T) {
	tests := map[string]bool{}
	must(t, filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		must(t, err)
		text, err := os.ReadFile(path)
		must(t, err)
		for _, match := range regexp.MustCompile(`(?m)^func (Test\w+|Fuzz\w+)\(`).FindAllStringSubmatch(string(text), -1) {
			tests[dir+"."+match[1]] = true
		}
		return nil
	}))
	name := regexp.MustCompile("`([a-z0-9/]*)\\.((?:Test|Fuzz)\\w+)`")
	count := 0
	for _, page := range []string{"docs/guarantees.md", "docs/internals/bugs.md"} {
		last := ""
		for _, match := range name.FindAllStringSubmatch(named(t, page).text, -1) {
			count++
			if match[1] != "" {
				last = match[1]
			}
			if !tests[last+"."+match[2]] {
				t.Errorf("%s names %s.%s, which does not exist", page, last, match[2])
			}
		}
	}
	if count < 50 {
		t.Errorf("found %d names of tests: the search is broken", count)
	}
}
