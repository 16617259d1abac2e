package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/internal/codec"
	"github.com/balsa-run/balsa/object"
)

// TestNetworkKinds prints the columns and the description of each object of
// testdata/describe/network.yaml, which has every kind of the network.
func TestNetworkKinds(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "describe", "network.yaml"))
	must(t, err)
	var out strings.Builder
	for document := range strings.SplitSeq(string(text), "---\n") {
		m := readAny(t, document)
		fmt.Fprintf(&out, "== %s %s\n", object.KindOf(m).Name, m.GetMetadata().GetName())
		for _, c := range columnsOf(object.KindOf(m)) {
			wide := ""
			if c.wide {
				wide = " (wide)"
			}
			fmt.Fprintf(&out, "%s%s: %s\n", c.title, wide, c.value(m))
		}
		if _, plain := m.(*balsav1.NetworkPolicySlice); plain {
			continue // its manifest says it all
		}
		fmt.Fprintln(&out, "--")
		s := newSheet(&out)
		describeNetwork(s, m)
		must(t, s.flush())
	}
	path := filepath.Join("testdata", "describe", "network.golden")
	if *update {
		must(t, os.WriteFile(path, []byte(out.String()), 0o644))
		return
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if diff := cmp.Diff(string(want), out.String()); diff != "" {
		t.Errorf("%s differs (-want +got), go test -update rewrites it:\n%s", path, diff)
	}
}

// readAny makes an object with a status of YAML.
func readAny(t *testing.T, document string) object.Message {
	t.Helper()
	trees, err := codec.ParseYAML([]byte(document), 1<<20)
	must(t, err)
	for _, kind := range object.Kinds() {
		if strings.Contains(document, "kind: "+kind.Name+"\n") {
			m := kind.New()
			must(t, codec.Options{}.Decode(trees[0], m))
			return m
		}
	}
	t.Fatalf("no kind in %s", document)
	return nil
}

func describeNetwork(s *sheet, m object.Message) {
	ready, no := true, false
	slice := &balsav1.EndpointSlice{
		Ports: []*balsav1.EndpointPort{{Name: "http", Port: 8080}, {Name: "dns", Port: 5353}},
		Endpoints: []*balsav1.Endpoint{
			{Addresses: []string{"10.244.0.1"}, Conditions: &balsav1.EndpointConditions{Ready: &ready}}, {Addresses: []string{"10.244.0.2"}, Conditions: &balsav1.EndpointConditions{Ready: &no}},
			{Addresses: []string{"10.244.0.3"}, Conditions: &balsav1.EndpointConditions{Ready: &ready}},
		},
	}
	switch m := m.(type) {
	case *balsav1.Service:
		s.service(m, []*balsav1.EndpointSlice{slice, slice})
	case *balsav1.NetworkPolicy:
		s.policy(m)
	case *balsav1.PodDisruptionBudget:
		s.budget(m)
	case *balsav1.AddressPool:
		s.pool(m)
	}
}
