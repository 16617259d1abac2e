package doctest

import (
	"flag"
	"fmt"
	"go/ast"
	"go/build"
	"go/constant"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// -update writes docs/reference/limits.md anew.
func updating() bool { return flag.Lookup("update").Value.String() == "true" }

// TestMain declares the flag: package state is what the house rules refuse.
func TestMain(m *testing.M) {
	flag.Bool("update", false, "write generated documents anew")
	flag.Parse()
	os.Exit(m.Run())
}

const limitsHead = `# Limits

Everything that could grow has a bound with a name; an error that meets one names it. This page lists them with
the values of this version. It is generated from the source by

    go test ./internal/doctest -run TestLimits -update

and a test fails when it is out of date. None can be set from the command line, but for the
client's ` + "`DefaultRetryFor`" + ` (` + "`--retry-for`" + `). The store's decide the outcome of commands, so every server has the same.

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
		{"Reconcilers' writes", "reconciler/control"}, {"etcd's API", "etcdapi"}, {"etcd's snapshots", "etcdapi/archive"}, {"etcd's leases", "reconciler/leases"}, {"Nodes and leases", "reconciler/nodes"}, {"Rollouts", "reconciler/rollout"},
		{"Replicas", "reconciler/workload"}, {"Endpoints", "reconciler/endpoints"}, {"Policies", "reconciler/policies"}, {"Load balancers' addresses", "reconciler/addresses"}, {"Disruption budgets", "reconciler/disruption"}, {"Draining", "reconciler/draining"}, {"Placement", "reconciler/placement"}, {"Garbage collection", "reconciler/gc"},
		{"Namespaces", "reconciler/namespaces"}, {"Storage", "reconciler/storage"}, {"Taints", "reconciler/taints"}, {"Compaction", "reconciler/compaction"}, {"Events", "reconciler/events"}, {"Scheduler", "scheduler"},
		{"Agent", "node"}, {"Pods", "node/pod"}, {"Images on a node", "node/image"}, {"Image archives", "internal/ociarchive"}, {"Registries", "node/image/registry"}, {"Pressure", "node/pressure"}, {"Container runtime", "node/runtime/runc"}, {"Volumes", "node/volume"},
		{"Pods' network", "node/podnet"}, {"Service proxy", "netproxy"}, {"Service rules", "netproxy/apply"}, {"DNS", "dns"}, {"Wire", "internal/codec"}, {"Announcements", "internal/announce"},
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
		fmt.Fprintf(&b, "\n## %s\n\nIn `%s`.\n\n| name | value | what the source says of it |\n|---|---|---|\n", room.title, room.path)
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
	set := token.NewFileSet()
	imports := onlyStandard{importer.ForCompiler(set, "source", nil)}
	var found []room
	for _, r := range rooms() {
		found = append(found, room{title: r[0], path: r[1], limits: limitsOf(loadPackage(t, set, imports, r[1]))})
	}
	return found
}

// sources is a package whose constants are known.
type sources struct {
	files []*ast.File
	info  types.Info
}

// loadPackage checks the types of a package as far as constants need it: what
// other modules and rooms declare is left unknown.
func loadPackage(t *testing.T, set *token.FileSet, imports types.Importer, path string) *sources {
	t.Helper()
	dir := filepath.Join(root, path)
	listed, err := build.ImportDir(dir, 0)
	must(t, err)
	p := &sources{info: types.Info{Defs: map[*ast.Ident]types.Object{}, Uses: map[*ast.Ident]types.Object{}, Types: map[ast.Expr]types.TypeAndValue{}}}
	for _, name := range listed.GoFiles {
		file, err := parser.ParseFile(set, filepath.Join(dir, name), nil, parser.ParseComments)
		must(t, err)
		p.files = append(p.files, file)
	}
	config := types.Config{Importer: imports, FakeImportC: true, Error: func(error) {}}
	_, _ = config.Check(path, set, p.files, &p.info) // its errors are of what is left unknown
	return p
}

// onlyStandard imports the few packages of the standard library that constants
// are made of, and stands in for all others with empty ones.
type onlyStandard struct{ from types.Importer }

func (o onlyStandard) Import(path string) (*types.Package, error) {
	if path == "time" || path == "math" {
		return o.from.Import(path)
	}
	p := types.NewPackage(path, filepath.Base(path))
	p.MarkComplete()
	return p, nil
}

func limitsOf(p *sources) []limit {
	var found []limit
	for _, file := range p.files {
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
		return name != "day" && name != "moreToDo" && name != "neverSnapshot" // a unit, a marker, never
	}
	byName := regexp.MustCompile(`^(Max|max|Default[A-Z]|parallel|report[A-Z]|steps|maxFlow)|(Max|Limit|Bytes|Attempts|Entries|Records|Parts|Requests|Retries|Steps|Ops|Buffer|Space|PerTxn|PerMessage|Children|Fraction|Level|PerConnection|PerChange|Page|TTL)$`)
	return byName.MatchString(name) && !regexp.MustCompile(`^(FeatureLevel|maxInt\w+|numberBytes|sealHeaderBytes|maxTimestamp|Default(Replicas|RevisionHistoryLimit|Probe\w+|ProgressDeadline|TerminationGrace|Namespace))$`).MatchString(name)
}

func isDuration(typ types.Type) bool { return types.TypeString(typ, nil) == "time.Duration" }

func constants(p *sources, decl *ast.GenDecl) []limit {
	var found []limit
	for _, spec := range decl.Specs {
		spec, ok := spec.(*ast.ValueSpec)
		if !ok {
			continue
		}
		for _, name := range spec.Names {
			object, ok := p.info.Defs[name].(*types.Const)
			if !ok || !bounding(name.Name, object.Val(), object.Type()) || !p.used(object) {
				continue
			}
			says := sentence(spec.Doc, spec.Comment, lone(decl))
			if says == "" {
				says = p.mention(name.Name)
			}
			found = append(found, limit{name.Name, show(name.Name, object.Val(), object.Type()), says})
		}
	}
	return found
}

// used tells whether anything could be bounded by a constant: one that only its
// own package sees, and that it does not use, bounds nothing.
func (p *sources) used(object types.Object) bool {
	if object.Exported() {
		return true
	}
	for _, use := range p.info.Uses {
		if use == object {
			return true
		}
	}
	return false
}

// mention finds what is said of a constant elsewhere in its package: at the
// field that it is the default of, or in the comment of a neighbour.
func (p *sources) mention(name string) string {
	field, neighbour := "", ""
	word := regexp.MustCompile(`\b` + name + `\b`)
	for _, file := range p.files {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.Field:
				for _, ident := range n.Names {
					_, method := n.Type.(*ast.FuncType)
					if ident.Name == strings.TrimPrefix(name, "Default") && !method && field == "" && n.Doc != nil {
						field = sentence(n.Doc)
					}
				}
			case *ast.ValueSpec:
				if neighbour == "" && n.Doc != nil && word.MatchString(n.Doc.Text()) {
					neighbour = sentence(n.Doc)
				}
			}
			return true
		})
	}
	if strings.HasPrefix(name, "Default") && field != "" {
		return field
	}
	if neighbour == "" {
		return "(" + spaced(name) + ")"
	}
	return neighbour
}

// spaced makes "container ports" of maxContainerPorts: some names say it all.
func spaced(name string) string {
	text := regexp.MustCompile(`([a-z])([A-Z])`).ReplaceAllString(name, "$1 $2")
	return strings.TrimPrefix(strings.TrimPrefix(strings.ToLower(text), "max "), "default ")
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
func literal(p *sources, function *ast.FuncDecl) []limit {
	comments := map[string]string{}
	for _, file := range p.files {
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
		value := p.info.Types[pair.Value]
		if name, ok := pair.Key.(*ast.Ident); ok && value.Value != nil {
			says := comments[name.Name]
			if says == "" {
				says = comments[mentioning(comments, name.Name)]
			}
			found = append(found, limit{name.Name, show(name.Name, value.Value, value.Type), says})
		}
		return true
	})
	return found
}

// mentioning is the field whose comment speaks of another field too.
func mentioning(comments map[string]string, name string) string {
	word := regexp.MustCompile(`\b` + name + `\b`)
	for _, field := range slices.Sorted(maps.Keys(comments)) {
		if word.MatchString(comments[field]) {
			return field
		}
	}
	return ""
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
