package bench

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestNetworkSuiteNamesEachMeasureOnce(t *testing.T) {
	var names, again []string
	for _, m := range NetworkSuite(&NetworkGround{Ground: &Ground{}}, false) {
		names = append(names, m.Name())
		if m.Question() == "" || m.Unit().Name == "" {
			t.Errorf("%s has no question or no unit", m.Name())
		}
	}
	for _, m := range NetworkSuite(&NetworkGround{Ground: &Ground{}}, true) {
		again = append(again, m.Name())
	}
	if !slices.Equal(names, again) {
		t.Errorf("a quick run has other measures: %v, want %v", again, names)
	}
	slices.Sort(names)
	if len(slices.Compact(names)) != len(again) {
		t.Errorf("a name is there twice: %v", names)
	}
	for _, want := range []string{"services-1000", "services-10000", "kubeproxy-nft-services-10000", "kubeproxy-netlink-endpoint-change-1000", "endpoint-change-10000",
		"api-to-packet", "agent-rss-10000", "scrub-10000", "clusterip-requests", "pod-address-latency", "dns-queries", "coredns-file-latency"} {
		if !slices.Contains(again, want) {
			t.Errorf("there is no measure %s among %v", want, again)
		}
	}
}

func TestTheFasterPeerIsNamed(t *testing.T) {
	trial := &takings{samples: map[string]Samples{}, failed: map[string]error{}}
	trial.add("nft", 10, 30, 20)
	trial.faster("ours", "nft", "netlink")
	trial.add("netlink", 15)
	trial.faster("ours", "nft", "netlink")
	trial.faster("ours", "netlink", "nft")
	trial.failed["nft"] = errors.New("it is not installed")
	trial.faster("ours", "nft", "netlink")
	if notes := trial.samples["ours"].Notes; len(notes) != 2 || notes[0] != notes[1] || !strings.Contains(notes[0], "netlink was the faster") {
		t.Errorf("notes %q", notes)
	}
}

func TestRepairsKeepTheAgentsWords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.log")
	log := "time=1 level=INFO msg=\"started\"\ntime=2 level=WARN msg=\"" + repaired + "\" finding=\"table balsa: missing\" repaired=true\n"
	if err := os.WriteFile(path, []byte(log), 0o644); err != nil {
		t.Fatal(err)
	}
	lines, err := repairs(path)
	if err != nil || len(lines) != 1 || !strings.HasPrefix(lines[0], repaired) || !strings.HasSuffix(lines[0], "repaired=true") {
		t.Errorf("%q: %v", lines, err)
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := repairs(path); err == nil {
		t.Error("an empty log was read without an error")
	}
	if _, err := repairs(path + ".gone"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a log that is not there: %v", err)
	}
}
