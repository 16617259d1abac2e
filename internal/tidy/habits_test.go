package tidy

import (
	"go/ast"
	"strings"
	"testing"
)

const (
	maxFileLines     = 600
	maxFunctionLines = 70
)

// initAllowed lists the one place where init is the library's own way in.
var initAllowed = map[string]string{
	"cmd/balsa-runc": "libcontainer starts its child through init",
}

func TestHabits(t *testing.T) {
	for _, file := range source(t) {
		if strings.HasPrefix(file.dir, "gen") {
			continue
		}
		checkSize(t, file)
		checkFunctions(t, file)
		if file.test {
			checkTest(t, file)
		}
	}
}

func checkSize(t *testing.T, file sourceFile) {
	t.Helper()
	if lines := strings.Count(file.text, "\n"); lines > maxFileLines && !file.test {
		t.Errorf("%s has %d lines, the limit is %d: look for the seam", file.path, lines, maxFileLines)
	}
}

func checkFunctions(t *testing.T, file sourceFile) {
	t.Helper()
	for _, decl := range file.syntax.Decls {
		function, ok := decl.(*ast.FuncDecl)
		if !ok || function.Body == nil {
			continue
		}
		first, last := file.set.Position(function.Pos()).Line, file.set.Position(function.End()).Line
		if lines := last - first + 1; lines > maxFunctionLines && !file.test {
			t.Errorf("%s:%d: %s has %d lines, the limit is %d", file.path, first, function.Name.Name, lines, maxFunctionLines)
		}
		if _, allowed := initAllowed[file.dir]; function.Name.Name == "init" && function.Recv == nil && !allowed {
			t.Errorf("%s:%d: no init(): pass things in", file.path, first)
		}
	}
}

func checkTest(t *testing.T, file sourceFile) {
	t.Helper()
	ast.Inspect(file.syntax, func(node ast.Node) bool {
		call, ok := node.(*ast.CallExpr)
		if !ok {
			return true
		}
		selector, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		receiver, ok := selector.X.(*ast.Ident)
		if !ok {
			return true
		}
		at := file.set.Position(call.Pos())
		if receiver.Name == "time" && selector.Sel.Name == "Sleep" && !inBubble(file) {
			t.Errorf("%s:%d: no time.Sleep in tests: use synctest, a fake clock, or wait for a state", file.path, at.Line)
		}
		if strings.HasPrefix(selector.Sel.Name, "Skip") && (receiver.Name == "t" || receiver.Name == "b") {
			t.Errorf("%s:%d: no skipped tests: one that is skipped protects nothing", file.path, at.Line)
		}
		return true
	})
}

// inBubble tells whether a file's tests run on virtual time, where Sleep is how
// time passes.
func inBubble(file sourceFile) bool {
	for _, imported := range file.imports {
		if imported == "testing/synctest" {
			return true
		}
	}
	return false
}
