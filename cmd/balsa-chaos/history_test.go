package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/balsa-run/balsa/chaos/history"
	"github.com/balsa-run/balsa/chaos/world/sim/guest/verdict"
)

// lost is a history in which an acknowledged write is not seen any more.
func lost() []history.Record {
	return []history.Record{
		{Process: 1, Type: history.Invoke, F: history.Put, Key: "reg/0", Value: "one", Server: "s1"},
		{Process: 1, Type: history.OK, F: history.Put, Key: "reg/0", Value: "one", Revision: 2, At: 2, Server: "s1"},
		{Process: 2, Type: history.Invoke, F: history.Txn, Mops: []history.Mop{{F: history.MopAppend, Key: "txn/0", Value: "7"}}, Server: "s2"},
		{Process: 2, Type: history.OK, F: history.Txn, Mops: []history.Mop{{F: history.MopAppend, Key: "txn/0", Value: "7"}}, Revision: 3, At: 3, Server: "s2"},
		{Process: 3, Type: history.Invoke, F: history.Read, Key: "reg/0", Server: "s3"},
		{Process: 3, Type: history.OK, F: history.Read, Key: "reg/0", At: 3, Server: "s3"},
	}
}

// historyFile is the file of a history; cut leaves its end away.
func historyFile(t *testing.T, records []history.Record, cut int) string {
	t.Helper()
	var out bytes.Buffer
	w := history.NewWriter(&out)
	for i, r := range records {
		r.Index, r.Time = int64(i), time.Duration(i)*time.Millisecond
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "h.bin")
	if err := os.WriteFile(path, out.Bytes()[:out.Len()-cut], 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func runs(t *testing.T, args ...string) (string, error) {
	t.Helper()
	command := historyCommand()
	if args[0] == "check" {
		command = checkCommand()
	}
	var out bytes.Buffer
	command.SetOut(&out)
	command.SetErr(&out)
	command.SilenceErrors, command.SilenceUsage = true, true
	command.SetArgs(args[1:])
	err := command.ExecuteContext(t.Context())
	return out.String(), err
}

func TestHistoryIsShown(t *testing.T) {
	path := historyFile(t, lost(), 0)
	for name, test := range map[string]struct {
		args  []string
		lines int
		has   string
	}{
		"all":             {nil, 6, `#1 0.001000s p1 ok put "reg/0" value="one" revision=2 at=2 server=s1`},
		"an operation":    {[]string{"--only", "put,txn"}, 4, "append"},
		"a key":           {[]string{"--key", "txn/0"}, 2, "txn"},
		"a key's reads":   {[]string{"--key", "reg/0", "--only", "read"}, 2, "p3 ok read"},
		"for Elle":        {[]string{"--as", "edn", "--only", "txn"}, 2, `:f :txn, :value [[:append "txn/0" 7]]`},
		"nobody's key":    {[]string{"--key", "reg"}, 0, ""},
		"JSON of the key": {[]string{"--as", "jsonl", "--key", "reg/0"}, 4, `"revision":2`},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := runs(t, append([]string{"history", path}, test.args...)...)
			if err != nil || strings.Count(out, "\n") != test.lines || !strings.Contains(out, test.has) {
				t.Errorf("%v\n%s", err, out)
			}
			if slices.Contains(test.args, "jsonl") {
				for line := range strings.Lines(out) {
					if !json.Valid([]byte(line)) {
						t.Errorf("no JSON: %s", line)
					}
				}
			}
		})
	}
	if out, err := runs(t, "history", path, "--as", "html", "--key", "reg/0"); err != nil || !strings.Contains(out, "<html") || !strings.Contains(out, "one") {
		t.Errorf("%v, %d bytes", err, len(out))
	}
}

func TestHistoryIsJudged(t *testing.T) {
	right := lost()
	right[5].Value, right[5].Revision = "one", 2
	if out, err := runs(t, "check", historyFile(t, right, 0)); err != nil || !strings.Contains(out, "linearizable: 3 judged, 0 unknown, 0 violations") || !strings.Contains(out, "porcupine: 2 judged") {
		t.Errorf("%v\n%s", err, out)
	}
	out, err := runs(t, "check", historyFile(t, lost(), 0))
	var e *exitError
	if !errors.As(err, &e) || e.code != verdict.Broken || !strings.Contains(out, "WRONG: linearizable: stale") || !strings.Contains(out, "WRONG: porcupine: order") || !strings.Contains(out, "left: ") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := runs(t, "check", historyFile(t, right, 1)); err != nil || !strings.HasPrefix(out, "the history has no end") {
		t.Errorf("%v\n%s", err, out)
	}
}

// full is a writer that takes nothing, as a full disk does.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left") }

// A verdict that nobody can read is none: that a promise was broken is told all the same.
func TestAVerdictThatIsLost(t *testing.T) {
	path := historyFile(t, lost(), 0)
	for _, command := range []*cobra.Command{historyCommand(), checkCommand()} {
		command.SetOut(full{})
		command.SilenceErrors, command.SilenceUsage = true, true
		command.SetArgs([]string{path})
		err := command.ExecuteContext(t.Context())
		if err == nil || !strings.Contains(err.Error(), "no space left") || command.Name() == "check" && !strings.Contains(err.Error(), "violations") {
			t.Errorf("%s: %v", command.Name(), err)
		}
	}
}

func TestHistoryRefuses(t *testing.T) {
	path, junk := historyFile(t, lost(), 0), filepath.Join(t.TempDir(), "junk")
	if err := os.WriteFile(junk, []byte("no history"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"there are text, jsonl, edn and html": {"history", path, "--as", "pdf"},
		"say which by --key":                  {"history", path, "--as", "html"},
		"no such operation; there are read":   {"history", path, "--only", "write"},
		"no such file":                        {"history", path + "x"},
		"junk: ":                              {"check", junk},
		"accepts 1 arg(s)":                    {"check"},
		"unknown flag: --members":             {"check", path, "--members", "x"},
	} {
		if out, err := runs(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q\n%s", args, err, want, out)
		}
	}
}
