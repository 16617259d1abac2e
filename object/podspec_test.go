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

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
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

// podSpecTests reads which tests podspec.txt names for each field.
func podSpecTests(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("testdata/podspec.txt")
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
			t.Errorf("podspec.txt: %s is there twice, or names no test", words[0])
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

// podType is a type that a pod's spec leads to.
type podType struct {
	name    string
	message protoreflect.MessageDescriptor
	// path leads to it, for example spec.containers[0].env[0].
	path string
	// nest puts a value of the type into a spec.
	nest func(value any) any
}

// podTypes lists the types that a pod's spec is made of, each once, what is
// nearest to the spec first.
func podTypes(types map[string][]kubernetesField) []podType {
	spec := (&balsav1.PodSpec{}).ProtoReflect().Descriptor()
	list := []podType{{"PodSpec", spec, "spec", func(v any) any { return v }}}
	seen := map[string]bool{"PodSpec": true}
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
			list = append(list, podType{f.of, fd.Message(), path, func(v any) any {
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
	types, tests, functions := kubernetesTypes(t), podSpecTests(t), testFunctions(t)
	rows := podSpecRows(t)
	var page strings.Builder
	honoured, refused := 0, 0
	for _, of := range podTypes(types) {
		fmt.Fprintf(&page, "\n## %s\n\n`%s`\n\n| field | | shown by |\n|---|---|---|\n", of.name, of.path)
		for _, f := range types[of.name] {
			name := of.name + "." + f.name
			shown, named := tests[name]
			delete(tests, name)
			if of.message.Fields().ByJSONName(f.name) == nil {
				refused++
				if named {
					t.Errorf("podspec.txt: %s has a test, and there is no such field", name)
				}
				checkRefused(t, of, f.name)
				fmt.Fprintf(&page, "| `%s` | refused by name | |\n", f.name)
				continue
			}
			honoured++
			fmt.Fprintf(&page, "| `%s` | honoured | %s |\n", f.name, shownBy(t, name, shown, functions, rows))
		}
	}
	for name := range tests {
		t.Errorf("podspec.txt: Kubernetes has no %s in a pod's spec", name)
	}
	if honoured < 200 || refused < 60 {
		t.Errorf("%d fields honoured, %d refused: the search is broken", honoured, refused)
	}
	comparePage(t, podSpecHead+fmt.Sprintf("\n%d fields are honoured, %d are refused by name.\n", honoured, refused)+page.String())
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
func shownBy(t *testing.T, name string, tests []string, functions map[string][]string, rows map[string]bool) string {
	t.Helper()
	var cells []string
	for _, test := range tests {
		folder, function, _ := strings.Cut(test, ".")
		whole, row, part := strings.Cut(function, "/")
		if !slices.Contains(functions[whole], folder) {
			t.Errorf("podspec.txt: %s: there is no test %s in %s (it is in %v)", name, whole, folder, functions[whole])
		}
		if part && !rows[folder+"/"+row] {
			t.Errorf("podspec.txt: %s: %s has no part %s", name, whole, row)
		}
		cells = append(cells, "`"+folder+"`: "+function)
	}
	if len(cells) == 0 {
		t.Errorf("podspec.txt lacks %s", name)
	}
	return strings.Join(cells, ", ")
}

// checkRefused submits a pod with the field.
func checkRefused(t *testing.T, of podType, name string) {
	t.Helper()
	pod, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "a"}, "spec": of.nest(map[string]any{name: map[string]any{}}),
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = manifest.Parse("pod.json", strings.NewReader(string(pod)))
	if want := of.path + "." + name + ": not supported yet"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%s of %s is answered %v, want %q", name, of.name, err, want)
	}
}

func comparePage(t *testing.T, page string) {
	t.Helper()
	path := filepath.Join(repository, filepath.FromSlash(podSpecPage))
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := os.ReadFile(path)
	if err != nil || string(have) != page {
		t.Errorf("%s is not what the code says (%v): run go test ./object -run TestPodSpec -update", podSpecPage, err)
	}
}
