package doctest

import (
	"flag"
	"fmt"
	"go/ast"
	"go/constant"
	"go/types"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/go/packages"
)

// -update writes docs/reference/limits.md anew.
func updating() bool { return flag.Lookup("update").Value.String() == "true" }

// TestMain declares the flag: package state is what the house rules refuse.
func TestMain(m *testing.M) {
	flag.Bool("update", false, "write generated documents anew")
	flag.Parse()
	code := m.Run()
	closeWorkshop()
	os.Exit(code)
}

const limitsHead = `# Limits

Everything that could grow has a bound with a name; an error that meets one names it. This page lists them with
the values of this version. It is generated from the source by

    go test ./internal/doctest -run TestLimits -update

and a test fails when it is out of date. None of them can be set from the command line. "API server" and "store" limits
marked *(replicated)* decide the outcome of commands, so every server has the same.

What happens at a limit: a request over one of the API's is refused with code ` + "`resource_exhausted`" + ` and reason
` + "`LimitReached`" + `, and nothing was written; a full space refuses writes that grow it with ` + "`NoSpace`" + ` (deletes always go through;
the space of events drops its oldest instead); a full queue is back-pressure first and a refusal after that; a watch that
falls out of history ends with ` + "`Compacted`" + `.
`

// rooms are searched for limits, in the order in which they are shown.
func rooms() [][2]string {
	return [][2]string{
		{"API server", "apiserver"}, {"Store", "store"}, {"Objects", "object"}, {"Raft group", "cluster"}, {"Raft group's disk", "cluster/raftlog"},
		{"Identities and tokens", "pki"}, {"Server", "daemon/core"}, {"Process", "daemon"}, {"Client", "client"}, {"Reconcilers' loops", "internal/loop"},
		{"Reconcilers' writes", "reconciler/control"}, {"Nodes and leases", "reconciler/nodes"}, {"Rollouts", "reconciler/rollout"},
		{"Replicas", "reconciler/workload"}, {"Endpoints", "reconciler/endpoints"}, {"Placement", "reconciler/placement"}, {"Garbage collection", "reconciler/gc"},
		{"Namespaces", "reconciler/namespaces"}, {"Compaction", "reconciler/compaction"}, {"Events", "reconciler/events"}, {"Scheduler", "scheduler"},
		{"Agent", "node"}, {"Pods", "node/pod"}, {"Images on a node", "node/image"}, {"Image archives", "internal/ociarchive"}, {"Container runtime", "node/runtime/runc"},
		{"Pods' network", "node/podnet"}, {"Service proxy", "netproxy"}, {"Service rules", "netproxy/apply"}, {"DNS", "dns"}, {"Wire", "internal/codec"},
	}
}

type limit struct {
	name, value, says string
}

// TestLimits compares the page with the constants of the source.
func TestLimits(t *testing.T) {
	var b strings.Builder
	b.WriteString(limitsHead)
	total := 0
	for _, room := range loadRooms(t) {
		if len(room.limits) == 0 {
			continue
		}
		total += len(room.limits)
		fmt.Fprintf(&b, "\n## %s\n\nIn `%s`.\n\n| name | value | what it bounds |\n|---|---|---|\n", room.title, room.path)
		for _, l := range room.limits {
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", l.name, l.value, l.says)
		}
	}
	if total < 100 {
		t.Fatalf("found %d limits: the search is broken", total)
	}
	path := filepath.Join(root, "docs", "reference", "limits.md")
	if updating() {
		must(t, os.WriteFile(path, []byte(b.String()), 0o644))
	}
	have, err := os.ReadFile(path)
	must(t, err)
	if string(have) != b.String() {
		t.Errorf("docs/reference/limits.md is not what the source says: run go test ./internal/doctest -run TestLimits -update\n%s", firstDifference(string(have), b.String()))
	}
}

func firstDifference(have, want string) string {
	x, y := strings.Split(have, "\n"), strings.Split(want, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return fmt.Sprintf("line %d\nhave: %s\nwant: %s", i+1, x[i], y[i])
		}
	}
	return fmt.Sprintf("one has %d lines, the other %d", len(x), len(y))
}

type room struct {
	title, path string
	limits      []limit
}

func loadRooms(t *testing.T) []room {
	t.Helper()
	var patterns []string
	for _, r := range rooms() {
		patterns = append(patterns, "./"+r[1])
	}
	loaded, err := packages.Load(&packages.Config{
		Dir: root, Context: t.Context(), Env: append(os.Environ(), "GOFLAGS=-buildvcs=false"),
		Mode: packages.NeedName | packages.NeedSyntax | packages.NeedTypes | packages.NeedTypesInfo | packages.NeedImports | packages.NeedDeps,
	}, patterns...)
	must(t, err)
	byPath := map[string]*packages.Package{}
	for _, p := range loaded {
		for _, e := range p.Errors {
			t.Errorf("load %s: %v", p.PkgPath, e)
		}
		byPath[p.PkgPath] = p
	}
	var found []room
	for _, r := range rooms() {
		p := byPath["github.com/balsa-run/balsa/"+r[1]]
		if p == nil {
			t.Fatalf("package %s was not loaded", r[1])
		}
		found = append(found, room{title: r[0], path: r[1], limits: limitsOf(p)})
	}
	return found
}

func limitsOf(p *packages.Package) []limit {
	var found []limit
	for _, file := range p.Syntax {
		for _, decl := range file.Decls {
			switch decl := decl.(type) {
			case *ast.GenDecl:
				found = append(found, constants(p, decl)...)
			case *ast.FuncDecl:
				if decl.Name.Name == "DefaultLimits" && decl.Body != nil {
					found = append(found, literal(p, decl)...)
				}
			}
		}
	}
	slices.SortStableFunc(found, func(a, b limit) int { return strings.Compare(strings.ToLower(a.name), strings.ToLower(b.name)) })
	return found
}

// bounding tells by its name whether a constant bounds something. Values that
// only stand in for a field of a manifest are not limits.
func bounding(name string, value constant.Value, typ types.Type) bool {
	if value.Kind() != constant.Int && value.Kind() != constant.Float {
		return false
	}
	if isDuration(typ) {
		return true
	}
	byName := regexp.MustCompile(`^(Max|max|Default[A-Z]|parallel|report[A-Z]|steps|maxFlow)|(Max|Limit|Bytes|Attempts|Entries|Records|Parts|Requests|Retries|Steps|Ops|Buffer|Space|PerTxn|PerMessage|Children|Fraction|Level|PerConnection|PerChange|Page|TTL)$`)
	return byName.MatchString(name) && !regexp.MustCompile(`^(FeatureLevel|maxInt\w+|Default(Replicas|RevisionHistoryLimit|Probe\w+|ProgressDeadline|TerminationGrace|Namespace))$`).MatchString(name)
}

func isDuration(typ types.Type) bool { return types.TypeString(typ, nil) == "time.Duration" }

func constants(p *packages.Package, decl *ast.GenDecl) []limit {
	var found []limit
	for _, spec := range decl.Specs {
		spec, ok := spec.(*ast.ValueSpec)
		if !ok {
			continue
		}
		for _, name := range spec.Names {
			object, ok := p.TypesInfo.Defs[name].(*types.Const)
			if ok && bounding(name.Name, object.Val(), object.Type()) {
				found = append(found, limit{name.Name, show(name.Name, object.Val(), object.Type()), sentence(spec.Doc, spec.Comment, lone(decl))})
			}
		}
	}
	return found
}

// lone is the comment of a declaration of one constant.
func lone(decl *ast.GenDecl) *ast.CommentGroup {
	if len(decl.Specs) == 1 {
		return decl.Doc
	}
	return nil
}

// literal reads the composite literal that a function returns: its fields are
// the names, and the comments are those of the struct's fields.
func literal(p *packages.Package, function *ast.FuncDecl) []limit {
	comments := map[string]string{}
	for _, file := range p.Syntax {
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok || spec.Name.Name != "Limits" {
				return true
			}
			for _, field := range spec.Type.(*ast.StructType).Fields.List {
				for _, name := range field.Names {
					comments[name.Name] = sentence(field.Doc, field.Comment)
				}
			}
			return false
		})
	}
	var found []limit
	ast.Inspect(function, func(n ast.Node) bool {
		pair, ok := n.(*ast.KeyValueExpr)
		if !ok {
			return true
		}
		value := p.TypesInfo.Types[pair.Value]
		if name, ok := pair.Key.(*ast.Ident); ok && value.Value != nil {
			found = append(found, limit{name.Name, show(name.Name, value.Value, value.Type), comments[name.Name]})
		}
		return true
	})
	return found
}

// sentence is the first comment that says something, on one line.
func sentence(groups ...*ast.CommentGroup) string {
	for _, group := range groups {
		if text := strings.Join(strings.Fields(group.Text()), " "); text != "" {
			return strings.ReplaceAll(text, "|", "\\|")
		}
	}
	return ""
}

// show prints a value with its unit, as far as its type and name tell it.
func show(name string, value constant.Value, typ types.Type) string {
	number, exact := constant.Int64Val(constant.ToInt(value))
	switch {
	case isDuration(typ) && exact:
		return period(time.Duration(number))
	case !exact:
		return value.String()
	case regexp.MustCompile(`(Bytes|Space|RoomToStart|Size|socketBuffer)$`).MatchString(name):
		return bytesOf(number)
	}
	return thousands(number)
}

func period(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= day && d%day == 0:
		return fmt.Sprintf("%d d", d/day)
	case d >= time.Hour && d%time.Hour == 0:
		return fmt.Sprintf("%d h", d/time.Hour)
	case d >= time.Minute && d%time.Minute == 0:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d >= time.Second && d%time.Second == 0:
		return fmt.Sprintf("%d s", d/time.Second)
	case d%time.Millisecond == 0:
		return fmt.Sprintf("%d ms", d/time.Millisecond)
	}
	return d.String()
}

func bytesOf(n int64) string {
	for _, unit := range []struct {
		name string
		size int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= unit.size && n%(unit.size/2) == 0 {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(n)/float64(unit.size)), ".0") + " " + unit.name
		}
	}
	return thousands(n) + " bytes"
}

func thousands(n int64) string {
	text := fmt.Sprint(n)
	for at := len(text) - 3; at > 0 && text[at-1] != '-'; at -= 3 {
		text = text[:at] + "," + text[at:]
	}
	return text
}
