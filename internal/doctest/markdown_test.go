package doctest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Documents mark what tests do with a block by the words behind its fence:
//
//	console        commands after "$ " and what they printed: commands are checked
//	console build  the same, run in a copy of the tree
//	console run    the same, run one after the other on a cluster of one; what they
//	               print must be what the block says, but for names, times and the
//	               like (see normal)
//	console serve  one command that runs until the document ends
//	sh             a script: its commands are checked
//	yaml           a manifest: it is parsed and validated
//	go run         a program: it is run on the cluster of one
//
// Other blocks are not looked at.

const root = "../.."

type document struct {
	path   string // from the module's root
	text   string
	blocks []block
}

type block struct {
	line  int // of the fence
	words []string
	text  string
}

func (b block) is(words ...string) bool { return slices.Equal(b.words, words) }

func (b block) language() string {
	if len(b.words) == 0 {
		return ""
	}
	return b.words[0]
}

// documents reads README.md, CHANGELOG.md and everything in docs.
func documents(t *testing.T) []document {
	t.Helper()
	paths := []string{filepath.Join(root, "README.md"), filepath.Join(root, "CHANGELOG.md")}
	err := filepath.WalkDir(filepath.Join(root, "docs"), func(path string, entry os.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".md" {
			paths = append(paths, path)
		}
		return err
	})
	must(t, err)
	var all []document
	for _, path := range paths {
		all = append(all, read(t, path))
	}
	if len(all) < 10 {
		t.Fatalf("found %d documents: the walk is broken", len(all))
	}
	return all
}

func read(t *testing.T, path string) document {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	name, err := filepath.Rel(root, path)
	must(t, err)
	return document{path: name, text: string(text), blocks: blocksOf(string(text))}
}

func named(t *testing.T, name string) document {
	t.Helper()
	return read(t, filepath.Join(root, name))
}

func blocksOf(text string) []block {
	var blocks []block
	var open *block
	var lines []string
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimRight(line, "\n")
		rest, fence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case fence && open == nil:
			open, lines = &block{line: number, words: strings.Fields(rest)}, nil
		case fence:
			open.text = strings.Join(lines, "\n")
			blocks, open = append(blocks, *open), nil
		case open != nil:
			lines = append(lines, line)
		}
	}
	return blocks
}

// prose is a document without its blocks.
func (d document) prose() string {
	var kept []string
	inside := false
	for line := range strings.Lines(d.text) {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			inside = !inside
			kept = append(kept, "\n")
			continue
		}
		if inside {
			line = "\n"
		}
		kept = append(kept, line)
	}
	return strings.Join(kept, "")
}

// step is one command of a transcript and what it printed.
type step struct {
	line    int
	command string
	output  []string
}

// transcript splits a console block. A command goes on in the next line behind a
// backslash.
func (b block) transcript() []step {
	var steps []step
	open := false
	for i, line := range strings.Split(b.text, "\n") {
		command, begins := strings.CutPrefix(line, "$ ")
		switch {
		case begins:
			steps = append(steps, step{line: b.line + 1 + i, command: command})
		case open:
			steps[len(steps)-1].command += "\n" + line
		case len(steps) > 0:
			steps[len(steps)-1].output = append(steps[len(steps)-1].output, line)
		}
		open = (begins || open) && strings.HasSuffix(line, "\\")
	}
	return steps
}

// table reads the rows of every Markdown table under a heading, without their
// heads: the cells of each, without back quotes.
func (d document) table(t *testing.T, heading string) [][]string {
	t.Helper()
	_, section, found := strings.Cut("\n"+d.text, "\n"+heading+"\n")
	if !found {
		t.Fatalf("%s has no heading %q", d.path, heading)
	}
	level := regexp.MustCompile(`\n#{1,` + string(rune('0'+strings.Count(strings.Fields(heading)[0], "#"))) + `} `)
	if at := level.FindStringIndex(section); at != nil {
		section = section[:at[0]]
	}
	return rows(section)
}

func rows(section string) [][]string {
	var found [][]string
	body := false
	for line := range strings.Lines(section) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			body = false
			continue
		}
		if strings.HasPrefix(line, "|---") || strings.HasPrefix(line, "| ---") {
			body = true
			continue
		}
		if !body {
			continue
		}
		var cells []string
		for cell := range strings.SplitSeq(strings.Trim(line, "|"), "|") {
			cells = append(cells, strings.ReplaceAll(strings.TrimSpace(cell), "`", ""))
		}
		found = append(found, cells)
	}
	return found
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
