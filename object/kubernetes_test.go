package object_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/balsa-run/balsa/object"
)

// kubernetesField is a field of a type of Kubernetes' API.
type kubernetesField struct {
	name string
	// of is the type without its []; list and mapped tell what stands around it.
	of           string
	list, mapped bool
}

// kubernetesTypes reads testdata/kubernetes.txt: the types of Kubernetes 1.36 that
// our kinds are made of, each with all of its fields.
func kubernetesTypes(t *testing.T) map[string][]kubernetesField {
	t.Helper()
	text, err := os.ReadFile("testdata/kubernetes.txt")
	if err != nil {
		t.Fatal(err)
	}
	types, current := map[string][]kubernetesField{}, ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		name, of, isField := strings.Cut(strings.TrimPrefix(line, "\t"), " ")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case !strings.HasPrefix(line, "\t"):
			if current = line; types[current] != nil {
				t.Fatalf("%s is there twice", line)
			}
		case !isField:
			t.Fatalf("field without a type: %q", line)
		default:
			f := kubernetesField{name: name, of: of}
			if of, f.list = strings.CutPrefix(of, "[]"); f.list {
				f.of = of
			}
			if of, f.mapped = strings.CutPrefix(of, "map[string]"); f.mapped {
				f.of = of
			}
			types[current] = append(types[current], f)
		}
	}
	return types
}

// isValue tells types that are written as one value.
func isValue(of string) bool { return of == "Time" || of == "Quantity" || of == "IntOrString" }

// Every field that Kubernetes has where we have a message is one of ours, or is
// refused by name; nothing else is refused by name, and we have no fields of our
// own but these.
func TestEveryFieldOfKubernetesIsKnown(t *testing.T) {
	own := map[string]bool{
		"balsa.v1.ManagedFields.paths": true, "balsa.v1.Condition.observedGeneration": true,
		"balsa.v1.DeploymentSpec.onFailure": true, "balsa.v1.DeploymentStatus.failedRollout": true,
	}
	types := kubernetesTypes(t)
	named := map[protoreflect.FullName]map[string]bool{} // what Kubernetes has, by our message
	visited := map[string]bool{}
	var walk func(of string, md protoreflect.MessageDescriptor)
	walk = func(of string, md protoreflect.MessageDescriptor) {
		key := of + " " + string(md.FullName())
		if visited[key] {
			return
		}
		visited[key], visited[of] = true, true
		if len(types[of]) == 0 {
			t.Errorf("kubernetes.txt lacks the type %s, which is our %s", of, md.FullName())
			return
		}
		if named[md.FullName()] == nil {
			named[md.FullName()] = map[string]bool{}
		}
		for _, f := range types[of] {
			named[md.FullName()][f.name] = true
			fd := md.Fields().ByJSONName(f.name)
			switch {
			case fd == nil && !object.KnownField(md.FullName(), f.name):
				t.Errorf("%s.%s of Kubernetes is neither in our %s nor refused by name", of, f.name, md.FullName())
			case fd == nil || isValue(f.of) || f.mapped:
			case fd.Message() != nil:
				walk(f.of, fd.Message())
			}
		}
	}
	for _, k := range object.Kinds() {
		if k.APIVersion == object.APIVersionBalsa {
			continue // Kubernetes has no such kind
		}
		walk(k.Name, k.New().ProtoReflect().Descriptor())
	}
	for message, fields := range named {
		for _, name := range object.UnsupportedFields(message) {
			if !fields[name] {
				t.Errorf("%s.%s is refused by name, and Kubernetes has no such field", message, name)
			}
		}
		checkOwnFields(t, message, fields, own)
	}
	for of := range types {
		if !visited[of] {
			t.Errorf("kubernetes.txt has the type %s, which nothing of ours leads to", of)
		}
	}
}

func checkOwnFields(t *testing.T, message protoreflect.FullName, fields, own map[string]bool) {
	t.Helper()
	for _, k := range object.Kinds() {
		md := find(k.New().ProtoReflect().Descriptor(), message, map[protoreflect.FullName]bool{})
		if md == nil {
			continue
		}
		for i := range md.Fields().Len() {
			name := md.Fields().Get(i).JSONName()
			if !fields[name] && !own[string(message)+"."+name] {
				t.Errorf("Kubernetes has no field like our %s.%s", message, name)
			}
		}
		return
	}
	t.Errorf("no kind has a %s", message)
}

// find looks for a message among the parts of another.
func find(md protoreflect.MessageDescriptor, name protoreflect.FullName, seen map[protoreflect.FullName]bool) protoreflect.MessageDescriptor {
	if md.FullName() == name {
		return md
	}
	if seen[md.FullName()] {
		return nil
	}
	seen[md.FullName()] = true
	for i := range md.Fields().Len() {
		if part := md.Fields().Get(i).Message(); part != nil {
			if found := find(part, name, seen); found != nil {
				return found
			}
		}
	}
	return nil
}

func TestKindsAreSorted(t *testing.T) {
	var names []string
	for _, k := range object.Kinds() {
		names = append(names, k.Name)
	}
	for _, pair := range [][2]string{{"Namespace", "Pod"}, {"Secret", "Pod"}, {"StorageClass", "PersistentVolumeClaim"}, {"PersistentVolume", "PersistentVolumeClaim"}, {"PersistentVolumeClaim", "Deployment"}, {"NetworkPolicy", "Deployment"}, {"PodDisruptionBudget", "Deployment"}, {"AddressPool", "Event"}} {
		if slices.Index(names, pair[0]) > slices.Index(names, pair[1]) {
			t.Errorf("%s is created after %s, which may need it", pair[0], pair[1])
		}
	}
}
