package tidy

import (
	"strings"
	"testing"
)

// layers is the import table of ARCHITECTURE: a room, and what it may import of
// ours beside itself. The longest prefix decides. A room that is not listed may
// not exist.
var layers = map[string][]string{
	"gen":              {},
	"internal":         {"gen"},
	"internal/doctest": {"gen", "object", "internal"}, // it tries what docs/ says
	"internal/tidy":    {},
	"object":           {"gen", "internal"},
	"store":            {"gen", "object", "internal"},
	"scheduler":        {"gen", "object", "internal"},
	"pki":              {"gen", "internal"},
	"client":           {"gen", "object", "pki", "internal"},
	"reconciler":       {"gen", "object", "store", "scheduler", "internal"},
	"cluster":          {"gen", "store", "pki", "internal"},
	"apiserver":        {"gen", "object", "store", "pki", "internal"},
	"etcdapi":          {"gen", "store", "pki", "internal"},
	"netproxy":         {"gen", "object", "internal"},
	"dns":              {"gen", "object", "internal"},
	"node":             {"gen", "object", "client", "netproxy", "dns", "pki", "internal"},
	"ops":              {"gen", "object", "store", "cluster/raftlog", "pki", "internal"},
	"daemon":           {"gen", "object", "store", "scheduler", "pki", "client", "reconciler", "cluster", "apiserver", "etcdapi", "netproxy", "dns", "node", "ops", "internal"},
	"daemon/core":      {"gen", "object", "store", "scheduler", "pki", "client", "reconciler", "cluster", "apiserver", "etcdapi", "netproxy", "dns", "node", "internal"},
	"cmd/balsa":        {"daemon", "client", "ops", "object", "gen", "pki", "internal"},
	"cmd/balsa-runc":   {"internal"},
	"cmd/balsa-shim":   {},
	"cmd/balsa-chaos":  {"gen", "object", "store", "scheduler", "pki", "client", "reconciler", "cluster", "apiserver", "netproxy", "dns", "node", "daemon", "chaos", "internal"},
	"chaos":            {"gen", "object", "store", "scheduler", "pki", "client", "reconciler", "cluster", "apiserver", "netproxy", "dns", "node", "daemon", "internal"},
	"bench":            {"gen", "object", "store", "scheduler", "pki", "client", "reconciler", "cluster", "apiserver", "netproxy", "dns", "node", "daemon", "chaos", "internal"},
	"examples":         {"gen", "object", "client", "internal"},
	"tools":            {"gen", "object", "client", "pki", "internal"},
}

// never lists imports that a layer allows but a law forbids: `daemon/core` is
// what the simulation runs, so the parts that touch the system stay out of it.
var never = map[string][]string{
	"daemon/core": {"cluster/gossip", "cluster/raftlog", "netproxy/apply", "node/runtime/runc"},
	"cluster":     {"cluster/gossip", "cluster/raftlog"},
}

// outside lists third-party modules that may be imported in one place only.
var outside = map[string][]string{
	"github.com/opencontainers/runc":         {"cmd/balsa-runc"},
	"github.com/opencontainers/cgroups":      {"cmd/balsa-runc"},
	"github.com/hashicorp/serf":              {"cluster/gossip"},
	"github.com/hashicorp/memberlist":        {"cluster/gossip"},
	"github.com/hashicorp/raft-boltdb":       {"cluster/raftlog"},
	"go.etcd.io/bbolt":                       {"cluster/raftlog", "etcdapi/archive"},
	"github.com/google/nftables":             {"netproxy/apply", "node/podnet"},
	"github.com/vishvananda/netlink":         {"netproxy/apply", "node/podnet", "chaos/load"},
	"github.com/spf13/cobra":                 {"cmd"},
	"github.com/hashicorp/raft":              {"cluster"},
	"github.com/google/go-containerregistry": {"node/image", "internal/ociarchive", "examples"},
}

func TestImports(t *testing.T) {
	for _, file := range source(t) {
		room := roomOf(file.dir)
		if room == "" && file.dir != "." {
			t.Errorf("%s: folder %s is in no room of the import table", file.path, file.dir)
			continue
		}
		for _, imported := range file.imports {
			if file.test && testImportAllowed(imported) {
				continue
			}
			checkOurs(t, file, room, imported)
			checkOutside(t, file, imported)
		}
	}
}

func checkOurs(t *testing.T, file sourceFile, room, imported string) {
	t.Helper()
	target, ours := strings.CutPrefix(imported, modulePath+"/")
	if !ours {
		return
	}
	for _, forbidden := range never[room] {
		if under(target, forbidden) && !under(file.dir, forbidden) && !file.test {
			t.Errorf("%s: %s may never import %s", file.path, room, target)
		}
	}
	if under(target, topOf(room)) {
		return
	}
	for _, allowed := range layers[room] {
		if under(target, allowed) {
			return
		}
	}
	t.Errorf("%s: %s may not import %s; it may import %v", file.path, room, target, layers[room])
}

func checkOutside(t *testing.T, file sourceFile, imported string) {
	t.Helper()
	for module, homes := range outside {
		if !under(imported, module) || file.test {
			continue
		}
		if !underAny(file.dir, homes) {
			t.Errorf("%s: only %v may import %s", file.path, homes, module)
		}
	}
}

// testImportAllowed lets tests of any room use the suites and fakes that other
// rooms ship for them.
func testImportAllowed(imported string) bool {
	return strings.HasSuffix(imported, "test") || strings.HasSuffix(imported, "/fake") || strings.HasSuffix(imported, "/memlog")
}

func roomOf(dir string) string {
	best := ""
	for room := range layers {
		if under(dir, room) && len(room) > len(best) {
			best = room
		}
	}
	return best
}

// topOf is the folder whose packages make one room: cluster for cluster/gossip,
// but cmd/balsa for cmd/balsa.
func topOf(room string) string {
	if room == "daemon/core" {
		return "daemon/core"
	}
	return room
}

func underAny(path string, prefixes []string) bool {
	for _, prefix := range prefixes {
		if under(path, prefix) {
			return true
		}
	}
	return false
}

// under tells whether path is prefix or lies below it. A module's version
// suffix counts as below, a longer last element does not.
func under(path, prefix string) bool {
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}
