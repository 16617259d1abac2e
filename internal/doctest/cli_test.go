package doctest

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestCommandsExist compares every balsa command that the documents show with
// what the program says of itself.
func TestCommandsExist(t *testing.T) {
	tree := commandTree(t)
	count := 0
	for _, d := range documents(t) {
		for _, c := range commandsOf(d) {
			count++
			if err := tree.check(c.words); err != nil {
				t.Errorf("%s:%d: %s: %v", d.path, c.line, strings.Join(c.words, " "), err)
			}
		}
	}
	if count < 50 {
		t.Errorf("found %d commands: the search is broken", count)
	}
}

// TestCommandsAreChecked: a check that lets everything through checks nothing.
func TestCommandsAreChecked(t *testing.T) {
	tree := commandTree(t)
	for _, wrong := range []string{"balsa explain pod", "balsa get pods --no-such-flag", "balsa cluster destroy", "balsa get pods -Q", "balsa token", "balsa exec -iz x -- sh", "balsa port-backward x 80"} {
		if tree.check(strings.Fields(wrong)) == nil {
			t.Errorf("%q passes", wrong)
		}
	}
	for _, right := range []string{"balsa get pods -A -o wide", "balsa -n hello logs -f x --tail=3", "balsa cluster status", "balsa delete pod x --grace-period 0", "balsa exec -it x -- ls -l", "balsa port-forward x 80"} {
		if err := tree.check(strings.Fields(right)); err != nil {
			t.Errorf("%q: %v", right, err)
		}
	}
}

type shown struct {
	line  int
	words []string
}

// commandsOf finds commands in console and sh blocks, and in `balsa …` in prose.
func commandsOf(d document) []shown {
	var found []shown
	for _, b := range d.blocks {
		switch b.language() {
		case "console":
			for _, s := range b.transcript() {
				found = append(found, balsaIn(s.line, s.command)...)
			}
		case "sh":
			text := strings.ReplaceAll(b.text, "\\\n", "  ")
			for i, line := range strings.Split(text, "\n") {
				found = append(found, balsaIn(b.line+1+i, line)...)
			}
		}
	}
	quoted := regexp.MustCompile("`(balsa [^`]+)`")
	for i, line := range strings.Split(d.prose(), "\n") {
		for _, match := range quoted.FindAllStringSubmatch(line, -1) {
			found = append(found, balsaIn(i+1, match[1])...)
		}
	}
	return found
}

// balsaIn cuts a line of shell into its commands and keeps those of balsa, from
// the program's name on: nsenter and the like may stand before it.
func balsaIn(line int, text string) []shown {
	text, _, _ = strings.Cut(strings.ReplaceAll(text, "\\\n", " "), " #")
	var found []shown
	for _, part := range regexp.MustCompile(`\|\||&&|[|;&()]`).Split(text, -1) {
		words := strings.Fields(part)
		at := slices.IndexFunc(words, func(w string) bool { return filepath.Base(w) == "balsa" })
		if at >= 0 && at+1 < len(words) {
			words = words[at:]
			if i := slices.IndexFunc(words, func(w string) bool { return strings.HasPrefix(w, ">") || strings.HasPrefix(w, "2>") }); i > 0 {
				words = words[:i]
			}
			found = append(found, shown{line, words})
		}
	}
	return found
}

// command is what the program's help says of one.
type command struct {
	children map[string]*command
	long     map[string]bool // flags, and whether they take a value
	short    map[string]bool
}

func commandTree(t *testing.T) *command {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "balsa")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", binary, "./cmd/balsa")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build balsa: %v\n%s", err, out)
	}
	tree, err := helpOf(t.Context(), binary, nil)
	must(t, err)
	if len(tree.children) < 10 {
		t.Fatalf("the program has %d commands: its help is read wrongly", len(tree.children))
	}
	return tree
}

func helpOf(ctx context.Context, binary string, path []string) (*command, error) {
	out, err := exec.CommandContext(ctx, binary, append(slices.Clone(path), "--help")...).Output()
	if err != nil {
		return nil, fmt.Errorf("balsa %s --help: %w", strings.Join(path, " "), err)
	}
	c := &command{children: map[string]*command{}, long: map[string]bool{}, short: map[string]bool{}}
	flag := regexp.MustCompile(`^\s+(?:-(\w), )?--([\w-]+)(?: (string|strings|stringArray|int|int32|int64|uint32|duration|stringToString))?\b`)
	child := regexp.MustCompile(`^  ([a-z-]+) +\S`)
	section := ""
	for line := range strings.Lines(string(out)) {
		line = strings.TrimRight(line, "\n")
		if strings.HasSuffix(line, ":") && !strings.HasPrefix(line, " ") {
			section = line
		}
		if m := flag.FindStringSubmatch(line); m != nil && strings.Contains(section, "lags:") {
			c.long[m[2]] = m[3] != ""
			if m[1] != "" {
				c.short[m[1]] = m[3] != ""
			}
		}
		if m := child.FindStringSubmatch(line); m != nil && commandSection(section) && m[1] != "help" && m[1] != "completion" {
			if c.children[m[1]], err = helpOf(ctx, binary, append(slices.Clone(path), m[1])); err != nil {
				return nil, err
			}
		}
	}
	return c, nil
}

func commandSection(title string) bool {
	return title == "Available Commands:" || strings.HasPrefix(title, "Work with") || strings.HasPrefix(title, "Look into") || strings.HasPrefix(title, "Look after") || strings.HasPrefix(title, "Run Balsa")
}

// check walks the words of a command line. What a flag's value or an argument
// is, is not judged.
func (c *command) check(words []string) error {
	at := c
	for i := 1; i < len(words); i++ {
		word := words[i]
		next, known := at.children[word]
		switch {
		case word == "--":
			return nil // what follows is the command of a container
		case known:
			at = next
		case strings.HasPrefix(word, "-") && word != "-":
			takes, err := at.flag(word)
			if err != nil {
				return err
			}
			if takes && !strings.Contains(word, "=") {
				i++
			}
		case len(at.children) > 0 && word != "…" && word != "...":
			return fmt.Errorf("there is no command %q", word)
		}
	}
	if len(at.children) > 0 && at != c {
		return fmt.Errorf("it is not complete; it may be followed by one of %d commands", len(at.children))
	}
	return nil
}

// flag tells whether a flag, without a value of its own, takes the next word.
func (c *command) flag(word string) (takes bool, err error) {
	name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
	known := c.short
	if strings.HasPrefix(word, "--") {
		known = c.long
	}
	// Short flags may stand together, all but the last without a value.
	names := []string{name}
	if !strings.HasPrefix(word, "--") {
		names = strings.Split(name, "")
	}
	for i, name := range names {
		var ok bool
		if takes, ok = known[name]; !ok || takes && i < len(names)-1 {
			return false, fmt.Errorf("there is no flag %s", word)
		}
	}
	return takes, nil
}
