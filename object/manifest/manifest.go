// Package manifest reads manifests: YAML with any number of documents, or JSON,
// with objects or Lists of objects in Kubernetes' shapes. It is strict: an
// unknown field, kind, key or type is an error with its line, and so is a field
// of Kubernetes that is not implemented.
//
// It refuses to fill in or judge values: see object.Default and object.Validate.
// A Document finds the line of a field for those who do.
package manifest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/balsa-run/balsa/internal/codec"
	"github.com/balsa-run/balsa/object"
)

// Limits of a manifest.
const (
	// MaxBytes bounds one file.
	MaxBytes = 32 << 20
	// MaxObjects bounds the objects of one file.
	MaxObjects = 5_000
)

// Document is one object of a manifest.
type Document struct {
	Message object.Message
	// File is the name that Parse was given.
	File string
	// Number counts the file's documents from 1; the objects of a List share it.
	Number int
	// Line is where the object begins, from 1.
	Line int

	tree *codec.Tree
	// path is "items[i]" for an object of a List.
	path string
}

// LineOf finds the line of a field by its path, for example
// "spec.replicas"; where the manifest does not have it, that of what it
// would be in.
func (d Document) LineOf(field string) int {
	if d.tree == nil {
		return d.Line
	}
	line, _ := d.tree.Locate(joined(d.path, field))
	return line
}

func joined(prefix, field string) string {
	if field == "" {
		return prefix
	}
	return codec.FieldPath(prefix, field)
}

// Invalid turns the violations of the document's object into an *Error in the
// order of its lines; nil without violations.
func (d Document) Invalid(violations object.Violations) error {
	if len(violations) == 0 {
		return nil
	}
	e := &Error{}
	for _, v := range violations {
		line, column := d.Line, 1
		if d.tree != nil {
			line, column = d.tree.Locate(joined(d.path, v.Field))
		}
		e.Problems = append(e.Problems, Problem{
			File: d.File, Document: d.Number, Object: object.Describe(d.Message), Line: line, Column: column, Text: v.String(),
		})
	}
	slices.SortStableFunc(e.Problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return e
}

// Error lists every problem of a manifest. Find it with errors.As.
type Error struct {
	Problems []Problem
}

// Problem is one thing that is wrong with a manifest.
type Problem struct {
	File string
	// Document counts from 1; 0 where the file could not be taken apart.
	Document int
	// Object is what is affected, as far as it is known, for example
	// `pod "default/hello"`.
	Object string
	// Line and Column count from 1; 0 when they are not known.
	Line, Column int
	// Text names the field, what was found, what is allowed and what to try.
	Text string
}

// String is the problem in one line.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	switch {
	case p.Document > 0 && p.Object != "":
		fmt.Fprintf(&b, " (document %d, %s)", p.Document, p.Object)
	case p.Document > 0:
		fmt.Fprintf(&b, " (document %d)", p.Document)
	}
	return b.String() + ": " + p.Text
}

// Error lists the problems, one a line.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Parse reads every object of a manifest, in its order. file is its name, for
// errors; one that ends in .json must be JSON, one in .yaml or .yml is YAML, and
// another is JSON when it begins with a brace. Empty documents are skipped. The
// error is an *Error with all problems of all documents, or what r returned.
func Parse(file string, r io.Reader) ([]Document, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	trees, err := parseTrees(file, data)
	p := parser{file: file}
	for i, t := range trees {
		p.number = i + 1
		p.document(t)
	}
	if err != nil {
		// Syntax ends the file: what came before it was read all the same.
		p.number = 0
		p.addIssues(err, "")
	}
	if len(p.problems) > 0 {
		return nil, &Error{Problems: p.problems}
	}
	return p.documents, nil
}

func parseTrees(file string, data []byte) ([]*codec.Tree, error) {
	if !isJSON(file, data) {
		return codec.ParseYAML(data, MaxBytes)
	}
	t, err := codec.ParseJSON(data, MaxBytes)
	if err != nil {
		return nil, err
	}
	return []*codec.Tree{t}, nil
}

func isJSON(file string, data []byte) bool {
	switch strings.ToLower(path.Ext(file)) {
	case ".json":
		return true
	case ".yaml", ".yml":
		return false
	}
	return bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{"))
}

type parser struct {
	file      string
	number    int
	documents []Document
	problems  []Problem
}

func (p *parser) add(t *codec.Tree, at codec.Pos, about, text string) {
	line, column := t.Position(at)
	p.problems = append(p.problems, Problem{File: p.file, Document: p.number, Object: about, Line: line, Column: column, Text: text})
}

// addIssues takes over what package codec has found.
func (p *parser) addIssues(err error, about string) {
	var e *codec.Error
	if !errors.As(err, &e) {
		p.problems = append(p.problems, Problem{File: p.file, Document: p.number, Object: about, Text: err.Error()})
		return
	}
	for _, i := range e.Issues {
		p.problems = append(p.problems, Problem{
			File: p.file, Document: p.number, Object: about, Line: i.Line, Column: i.Column, Text: i.String(),
		})
	}
}

func (p *parser) document(t *codec.Tree) {
	root := &t.Root
	if root.Kind == codec.Null {
		return
	}
	if kind, ok := root.Get("kind"); ok && kind.Kind == codec.String && kind.Text == "List" {
		p.list(t, root)
		return
	}
	p.object(t, root, "")
}

// list reads `kind: List`, which has items and no fields of its own but
// metadata.
func (p *parser) list(t *codec.Tree, root *codec.Node) {
	for i := range root.Fields {
		f := &root.Fields[i]
		switch f.Name {
		case "kind", "metadata":
		case "apiVersion":
			if f.Value.Text != "v1" {
				p.add(t, f.Value.Pos, "list", "apiVersion: does not fit the kind List; allowed: v1")
			}
		case "items":
			p.items(t, &f.Value)
		default:
			p.add(t, f.Key, "list", f.Name+": unknown field; allowed: apiVersion, kind, metadata, items")
		}
	}
}

func (p *parser) items(t *codec.Tree, items *codec.Node) {
	if items.Kind != codec.List && items.Kind != codec.Null {
		p.add(t, items.Pos, "list", "items: wrong type; found "+items.Kind.String()+"; allowed: a list")
		return
	}
	for i := range items.Items {
		p.object(t, &items.Items[i], codec.IndexPath("items", i))
	}
}

func (p *parser) object(t *codec.Tree, n *codec.Node, path string) {
	if len(p.documents) >= MaxObjects {
		if len(p.documents) == MaxObjects && len(p.problems) == 0 {
			p.add(t, n.Pos, "", fmt.Sprintf("more than %d objects in one file; try: split the file", MaxObjects))
		}
		return
	}
	kind, ok := p.kind(t, n, path)
	if !ok {
		return
	}
	m := kind.New()
	options := codec.Options{Known: object.KnownField}
	if err := options.DecodeNode(t, n, path, m); err != nil {
		p.addIssues(err, object.Describe(m))
		return
	}
	p.documents = append(p.documents, Document{Message: m, File: p.file, Number: p.number, Line: t.Line(n.Pos), tree: t, path: path})
}

// kind finds out what an object is.
func (p *parser) kind(t *codec.Tree, n *codec.Node, path string) (object.Kind, bool) {
	if n.Kind != codec.Map {
		p.add(t, n.Pos, "", strings.TrimPrefix(path+": ", ": ")+"wrong type; found "+n.Kind.String()+"; allowed: an object with apiVersion, kind and metadata")
		return object.Kind{}, false
	}
	name, ok := p.header(t, n, path, "kind", "for example Pod")
	if !ok {
		return object.Kind{}, false
	}
	kind, ok := findKind(name.Text)
	if !ok {
		p.add(t, name.Pos, "", joined(path, "kind")+": "+unknownKind(name.Text))
		return object.Kind{}, false
	}
	version, ok := p.header(t, n, path, "apiVersion", kind.APIVersion)
	if ok && version.Text != kind.APIVersion {
		p.add(t, version.Pos, "", fmt.Sprintf("%s: does not fit the kind %s; found %q; allowed: %s", joined(path, "apiVersion"), kind.Name, version.Text, kind.APIVersion))
		return object.Kind{}, false
	}
	return kind, ok
}

// header reads a field that every object has.
func (p *parser) header(t *codec.Tree, n *codec.Node, path, field, example string) (*codec.Node, bool) {
	v, ok := n.Get(field)
	if !ok || v.Kind == codec.Null {
		p.add(t, n.Pos, "", joined(path, field)+": is required; allowed: "+example)
		return nil, false
	}
	if v.Kind != codec.String {
		p.add(t, v.Pos, "", joined(path, field)+": wrong type; found "+v.Kind.String()+"; allowed: a string, "+example)
		return nil, false
	}
	return v, true
}

func findKind(name string) (object.Kind, bool) {
	kind, ok := object.KindByName(name)
	return kind, ok && kind.Name == name
}

func unknownKind(name string) string {
	allowed := strings.Join(object.KindNames(), ", ")
	if object.KnownKind(name) {
		return fmt.Sprintf("%s is not supported yet; allowed: %s", name, allowed)
	}
	text := fmt.Sprintf("unknown kind; found %q; allowed: %s", name, allowed)
	if near := codec.Nearest(name, object.KindNames()); near != "" {
		text += "; try: " + near
	}
	return text
}
