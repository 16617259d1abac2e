package object_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/object/manifest"
)

const (
	repository  = ".."
	podSpecPage = "docs/reference/pod-spec.md"
)

const podSpecHead = `# Fields of a pod

Every field of Kubernetes 1.36's PodSpec, of Container and of what they are made of, type by type. A field is either

* **honoured**, with the test that shows it, or
* **refused by name**: a manifest with it is not accepted, and the message names the field and says "not supported yet".
  That holds for everything inside of such a field. Nothing is accepted and ignored.

A test is named by its folder, its function and, after a slash, its part; TestPodSpecForReal has a part for each pod of
` + "`chaos/faults/testdata/podspec`" + `, which runs on a node of real processes. Rules for single values, for example which access modes or
sysctls there are, are in the refusals themselves; a value of Kubernetes' that is not supported is refused by name as well.

Init containers are of the type Container too. This page is made from the code by

    go test ./object -run TestPodSpec -update

and a test fails when it is out of date. It takes Kubernetes' fields from ` + "`object/testdata/kubernetes.txt`" + ` and the tests'
names from ` + "`object/testdata/podspec.txt`" + `; each refusal was tried.
`

// namedTests reads which tests a file names for each field.
func namedTests(t *testing.T, file string) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		if _, twice := out[words[0]]; twice || len(words) == 1 {
			t.Errorf("%s: %s is there twice, or names no test", file, words[0])
		}
		out[words[0]] = words[1:]
	}
	return out
}

// testFunctions finds every test of the repository: folders by name.
func testFunctions(t *testing.T) map[string][]string {
	t.Helper()
	pattern := regexp.MustCompile(`(?m)^func (Test\w+)\(\w+ \*testing\.T\)`)
	out := map[string][]string{}
	err := filepath.WalkDir(repository, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "gen"):
			return fs.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		folder, err := filepath.Rel(repository, filepath.Dir(path))
		if err != nil {
			return err
		}
		for _, match := range pattern.FindAllSubmatch(text, -1) {
			out[string(match[1])] = append(out[string(match[1])], filepath.ToSlash(folder))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// specType is a type that a kind's spec leads to.
type specType struct {
	name    string
	message protoreflect.MessageDescriptor
	// path leads to it, for example spec.containers[0].env[0].
	path string
	// nest makes a manifest with a value of the type.
	nest func(value any) any
}

// specOf is the type of a kind's spec.
func specOf(kind string) specType {
	k, _ := object.KindByName(kind)
	fd := k.New().ProtoReflect().Descriptor().Fields().ByJSONName("spec")
	return specType{kind + "Spec", fd.Message(), "spec", func(v any) any {
		return map[string]any{"apiVersion": k.APIVersion, "kind": k.Name, "metadata": map[string]any{"name": "a"}, "spec": v}
	}}
}

// typesOf lists the types that a spec is made of, each once, what is nearest to
// the spec first; those in seen, which it adds to, are left out.
func typesOf(types map[string][]kubernetesField, root specType, seen map[string]bool) []specType {
	list := []specType{root}
	seen[root.name] = true
	for i := 0; i < len(list); i++ {
		at := list[i]
		for _, f := range types[at.name] {
			fd := at.message.Fields().ByJSONName(f.name)
			if fd == nil || types[f.of] == nil || isValue(f.of) || seen[f.of] {
				continue
			}
			seen[f.of] = true
			path := at.path + "." + f.name
			if f.list {
				path += "[0]"
			}
			list = append(list, specType{f.of, fd.Message(), path, func(v any) any {
				if f.list {
					v = []any{v}
				}
				return at.nest(map[string]any{f.name: v})
			}})
		}
	}
	return list
}

// TestPodSpec holds the table of fields against the messages, the tests of the
// repository and what a manifest with the field is answered, and makes the page.
func TestPodSpec(t *testing.T) {
	p := newFieldPage(t, "podspec.txt")
	for _, of := range typesOf(p.types, specOf("Pod"), map[string]bool{}) {
		p.table(t, of)
	}
	p.finish(t)
	if p.honoured < 200 || p.refused < 60 {
		t.Errorf("%d fields honoured, %d refused: the search is broken", p.honoured, p.refused)
	}
	comparePage(t, podSpecPage, "TestPodSpec", podSpecHead+fmt.Sprintf("\n%d fields are honoured, %d are refused by name.\n", p.honoured, p.refused)+p.text.String())
}

// fieldPage is a page of tables of fields being made.
type fieldPage struct {
	file              string
	types             map[string][]kubernetesField
	tests, functions  map[string][]string
	rows              map[string]bool
	text              strings.Builder
	honoured, refused int
	pending           int
}

func newFieldPage(t *testing.T, file string) *fieldPage {
	t.Helper()
	return &fieldPage{file: file, types: kubernetesTypes(t), tests: namedTests(t, file), functions: testFunctions(t), rows: podSpecRows(t)}
}

// table is the table of a type: Kubernetes' fields, then ours.
func (p *fieldPage) table(t *testing.T, of specType) {
	t.Helper()
	fmt.Fprintf(&p.text, "\n## %s\n\n`%s`\n\n| field | | shown by |\n|---|---|---|\n", of.name, of.path)
	kubernetes := map[string]bool{}
	for _, f := range p.types[of.name] {
		kubernetes[f.name] = true
		if of.message.Fields().ByJSONName(f.name) != nil {
			p.row(t, of, f.name, "honoured")
			continue
		}
		p.refused++
		if _, named := p.tests[of.name+"."+f.name]; named {
			t.Errorf("%s: %s.%s has a test, and there is no such field", p.file, of.name, f.name)
		}
		checkRefused(t, of, f.name)
		fmt.Fprintf(&p.text, "| `%s` | refused by name | |\n", f.name)
	}
	for i := range of.message.Fields().Len() {
		if name := of.message.Fields().Get(i).JSONName(); !kubernetes[name] {
			p.row(t, of, name, "honoured; not of Kubernetes")
		}
	}
}

func (p *fieldPage) row(t *testing.T, of specType, field, how string) {
	t.Helper()
	name := of.name + "." + field
	p.honoured++
	fmt.Fprintf(&p.text, "| `%s` | %s | %s |\n", field, how, p.shownBy(t, name, p.tests[name]))
	delete(p.tests, name)
}

func (p *fieldPage) finish(t *testing.T) {
	t.Helper()
	for name := range p.tests {
		t.Errorf("%s: there is no %s in these specs", p.file, name)
	}
}

// podSpecRows finds the parts of tests: those that are written as t.Run("NAME" and
// the pods of testdata/podspec, as "folder/NAME".
func podSpecRows(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	const folder = "chaos/faults"
	for glob, pattern := range map[string]string{"testdata/podspec/*.txtar": `(?m)^-- (\S+)\.yaml --$`, "*_test.go": `t\.Run\("(\w+)"`} {
		files, err := filepath.Glob(filepath.Join(repository, filepath.FromSlash(folder), filepath.FromSlash(glob)))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
				out[folder+"/"+match[1]] = true
			}
		}
	}
	return out
}

// shownBy checks that the tests of a field exist, and spells them for the page.
// "pending" stands for one that somebody is about to write.
func (p *fieldPage) shownBy(t *testing.T, name string, tests []string) string {
	t.Helper()
	var cells []string
	for _, test := range tests {
		if test == "pending" {
			p.pending++
			cells = append(cells, test)
			continue
		}
		folder, function, _ := strings.Cut(test, ".")
		whole, row, part := strings.Cut(function, "/")
		if !slices.Contains(p.functions[whole], folder) {
			t.Errorf("%s: %s: there is no test %s in %s (it is in %v)", p.file, name, whole, folder, p.functions[whole])
		}
		if part && !p.rows[folder+"/"+row] {
			t.Errorf("%s: %s: %s has no part %s", p.file, name, whole, row)
		}
		cells = append(cells, "`"+folder+"`: "+function)
	}
	if len(cells) == 0 {
		t.Errorf("%s lacks %s", p.file, name)
	}
	return strings.Join(cells, ", ")
}

// checkRefused submits a manifest with the field.
func checkRefused(t *testing.T, of specType, name string) {
	t.Helper()
	text, err := json.Marshal(of.nest(map[string]any{name: map[string]any{}}))
	if err != nil {
		t.Fatal(err)
	}
	_, err = manifest.Parse("a.json", strings.NewReader(string(text)))
	if want := of.path + "." + name + ": not supported yet"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%s of %s is answered %v, want %q", name, of.name, err, want)
	}
}

func comparePage(t *testing.T, file, test, page string) {
	t.Helper()
	path := filepath.Join(repository, filepath.FromSlash(file))
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := os.ReadFile(path)
	if err != nil || string(have) != page {
		t.Errorf("%s is not what the code says (%v): run go test ./object -run %s -update", file, err, test)
	}
}
