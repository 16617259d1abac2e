package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestHelp holds every command to what its help owes: a sentence, and for those
// that do something an example that begins with the program and is its own.
func TestHelp(t *testing.T) {
	root := (&app{}).command()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	leaves := 0
	var visit func(command *cobra.Command)
	visit = func(command *cobra.Command) {
		path := command.CommandPath()
		if strings.HasPrefix(path, "balsa help") || strings.HasPrefix(path, "balsa completion") {
			return
		}
		if command.Short == "" {
			t.Errorf("%s has no short help", path)
		}
		for _, child := range command.Commands() {
			visit(child)
		}
		if command.HasSubCommands() {
			return
		}
		leaves++
		if !strings.Contains(command.Example, "balsa") || !strings.Contains(command.Example, command.Name()) {
			t.Errorf("%s has no example of itself: %q", path, command.Example)
		}
		for line := range strings.Lines(command.Example) {
			if !strings.HasPrefix(line, "  ") {
				t.Errorf("%s: the example %q is not indented by two", path, line)
			}
		}
	}
	visit(root)
	if leaves < 20 {
		t.Errorf("only %d commands were found", leaves)
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		var out, errOut bytes.Buffer
		code := run(t.Context(), []string{"completion", shell}, strings.NewReader(""), &out, &errOut)
		if code != exitOK || errOut.Len() > 0 || !strings.Contains(out.String(), "balsa") {
			t.Errorf("completion %s: exit code %d, %d bytes, %s", shell, code, out.Len(), &errOut)
		}
	}
}

// TestWatch prints a table that grows, of what there is and of changes.
func TestWatch(t *testing.T) {
	config := sharedServer(t).config
	apply := func(name, value string) {
		t.Helper()
		manifest := fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s, labels: {test: watch}}\ndata: {%s}\n", name, value)
		if _, errOut, code := balsaWith(t, config, manifest, "apply", "-f", "-"); code != exitOK {
			t.Fatal(errOut)
		}
	}
	apply("watch-1", "a: b")
	for _, output := range []string{"", "name", "yaml"} {
		ctx, stop := context.WithCancel(t.Context())
		out, ended := &lockedBuffer{}, make(chan int, 1)
		go func() {
			args := []string{"--config", config, "get", "configmaps", "-w", "-l", "test=watch"}
			if output != "" {
				args = append(args, "-o", output)
			}
			ended <- run(ctx, args, strings.NewReader(""), out, out)
		}()
		seen := func(what string) {
			t.Helper()
			eventually(t, func() error {
				if !strings.Contains(out.String(), what) {
					return fmt.Errorf("-o %q does not show %q but:\n%s", output, what, out)
				}
				return nil
			})
		}
		seen("watch-1")
		apply("watch-2", "c: d")
		seen("watch-2")
		done(t, config, "delete", "configmap", "watch-2")
		if output == "" {
			seen(" (deleted)\n")
		}
		stop()
		if code := <-ended; code != exitOK {
			t.Errorf("-o %q: exit code %d", output, code)
		}
		if output == "" {
			checkTable(t, out.String())
		}
	}
	done(t, config, "delete", "configmap", "watch-1")
}

// checkTable tells whether every column begins where its title does.
func checkTable(t *testing.T, text string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != 4 { // the titles, what there is, what came, what went
		t.Errorf("the table has %d lines:\n%s", len(lines), text)
	}
	for _, title := range []string{"DATA", "AGE"} {
		at := strings.Index(lines[0], title)
		for _, line := range lines[1:] {
			if at < 1 || len(line) <= at || line[at-1] != ' ' || line[at] == ' ' {
				t.Errorf("%s does not stand above its column:\n%s", title, text)
			}
		}
	}
}

// TestConfigViewHidesTheKey: what a person shows to others must not let them in.
func TestConfigViewHidesTheKey(t *testing.T) {
	out := done(t, sharedServer(t).config, "config", "view")
	for _, secret := range []string{"PRIVATE", "BEGIN"} {
		if strings.Contains(out, secret) {
			t.Errorf("config view prints %q: %s", secret, out)
		}
	}
	if !strings.Contains(out, "identity: admin/admin") {
		t.Errorf("config view prints:\n%s", out)
	}
}
