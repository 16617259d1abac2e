package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/balsa-run/balsa/chaos/check"
	"github.com/balsa-run/balsa/chaos/history"
	"github.com/balsa-run/balsa/chaos/world/sim/guest/verdict"
)

// The forms in which a history is shown.
const (
	asText  = "text"
	asJSONL = "jsonl"
	asEDN   = "edn"
	asHTML  = "html"
)

// porcupineLimit bounds Porcupine's search for an order, which is exponential.
const porcupineLimit = time.Minute

// historyFlags say which part of a history is shown, and how.
type historyFlags struct {
	as        string
	only      []string
	key       string
	registers bool
}

func historyCommand() *cobra.Command {
	var flags historyFlags
	command := &cobra.Command{
		Use: "history FILE", Short: "Show what clients asked and were told, for people and for other programs", Args: cobra.ExactArgs(1),
		Long: `Show what clients asked and were told, for people and for other programs.

FILE is one of replay --history. The forms are
  text    a line for each record
  jsonl   a JSON object for each record, times in nanoseconds
  edn     what Jepsen's programs read; elle-cli takes --only txn
  html    Porcupine's page of one --key: its operations as bars in time, and the order
          that explains them`,
		Example: `  balsa-chaos replay 17 --history h.bin
  balsa-chaos history h.bin --only put,cas,read --key reg/0
  balsa-chaos history h.bin --as edn --only txn > txn.edn
  balsa-chaos history h.bin --as html --key reg/0 > reg0.html`,
		RunE: func(command *cobra.Command, args []string) error {
			return withHistory(args[0], func(records iter.Seq2[history.Record, error]) error {
				return flags.show(command.OutOrStdout(), records)
			})
		},
	}
	f := command.Flags()
	f.StringVar(&flags.as, "as", asText, "text, jsonl, edn or html")
	f.StringSliceVar(&flags.only, "only", nil, "only these operations, with commas: "+strings.Join(operationNames(), ", "))
	f.StringVar(&flags.key, "key", "", "only what is of this key, or shows it; for html, the key")
	f.BoolVar(&flags.registers, "registers", false, "with edn: what transactions read are values, not lists")
	return command
}

func operationNames() (names []string) {
	for f := history.Read; f <= history.Fault; f++ {
		names = append(names, f.String())
	}
	return names
}

func withHistory(path string, use func(iter.Seq2[history.Record, error]) error) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("the history: %w", err)
	}
	defer file.Close()
	if err := use(history.Records(file)); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func (h *historyFlags) show(out io.Writer, records iter.Seq2[history.Record, error]) error {
	only, err := h.operations()
	if err != nil {
		return err
	}
	switch h.as {
	case asText:
		return writeText(out, h.part(records, only))
	case asJSONL:
		return history.WriteJSONL(out, h.part(records, only))
	case asEDN:
		return history.WriteEDN(out, h.part(records, only), history.EDNOptions{Registers: h.registers})
	case asHTML:
		if h.key == "" {
			return errors.New("--as html shows one key: say which by --key")
		}
		return check.WritePorcupineHTML(out, history.Pair(records), h.key, porcupineLimit)
	}
	return fmt.Errorf("--as %s: there are %s, %s, %s and %s", h.as, asText, asJSONL, asEDN, asHTML)
}

// operations are those that were asked for; nil means all.
func (h *historyFlags) operations() (only []history.F, err error) {
	names := operationNames()
	for _, name := range h.only {
		at := slices.Index(names, name)
		if at < 0 {
			return nil, fmt.Errorf("--only %s: there is no such operation; there are %s", name, strings.Join(names, ", "))
		}
		only = append(only, history.Read+history.F(at))
	}
	return only, nil
}

// part is what was asked for of a history. What shows a key in its answer only, as a list
// does, is there without its invocation.
func (h *historyFlags) part(records iter.Seq2[history.Record, error], only []history.F) iter.Seq2[history.Record, error] {
	return func(yield func(history.Record, error) bool) {
		for r, err := range records {
			if err == nil && (len(only) > 0 && !slices.Contains(only, r.F) || h.key != "" && !shows(r, h.key)) {
				continue
			}
			if !yield(r, err) {
				return
			}
		}
	}
}

// shows says that a record names a key: asked for, written or shown.
func shows(r history.Record, key string) bool {
	return r.Key == key && r.End == "" ||
		slices.ContainsFunc(r.KVs, func(kv history.KV) bool { return kv.Key == key }) ||
		slices.ContainsFunc(r.Mops, func(m history.Mop) bool { return m.Key == key })
}

func writeText(w io.Writer, records iter.Seq2[history.Record, error]) error {
	out := bufio.NewWriter(w)
	for r, err := range records {
		if err != nil {
			return errors.Join(err, out.Flush())
		}
		if _, err := fmt.Fprintln(out, r); err != nil {
			return err
		}
	}
	return out.Flush()
}

func checkCommand() *cobra.Command {
	return &cobra.Command{
		Use: "check FILE", Short: "Judge again what clients of a simulated run were told", Args: cobra.ExactArgs(1),
		Long: `Judge again what clients of a simulated run were told.

FILE is one of replay --history. All checkers of the run judge it, and Porcupine, another
program, single keys. What servers hold in the end is not in a history: rules that need it
are left out, and said to be. Ends with 1 when a promise was broken.`,
		RunE: func(command *cobra.Command, args []string) error {
			return withHistory(args[0], func(records iter.Seq2[history.Record, error]) error {
				out := bufio.NewWriter(command.OutOrStdout())
				err := judge(out, records)
				if lost := out.Flush(); lost != nil {
					return fmt.Errorf("print the verdict: %w", errors.Join(lost, err))
				}
				return err
			})
		},
	}
}

// judge prints to a writer that keeps its first error for Flush.
func judge(out *bufio.Writer, records iter.Seq2[history.Record, error]) error {
	checkers := append(check.All(check.Simulated()), check.NewPorcupine(check.PorcupineOptions{Limit: porcupineLimit}))
	for r, err := range records {
		switch {
		case errors.Is(err, history.ErrTruncated):
			fmt.Fprintln(out, "the history has no end: it is judged as far as it goes")
			continue
		case err != nil:
			return err
		}
		for _, c := range checkers {
			c.Add(r)
		}
	}
	wrong := int64(0)
	for _, c := range checkers {
		v := c.Verdict(nil)
		wrong += int64(len(v.Violations)) + v.Dropped
		writeVerdict(out, v)
	}
	if wrong > 0 {
		return &exitError{code: verdict.Broken, reason: fmt.Errorf("%d violations", wrong)}
	}
	return nil
}

func writeVerdict(out *bufio.Writer, v check.Verdict) {
	fmt.Fprintf(out, "%s: %d judged, %d unknown, %d violations\n", v.Checker, v.Checked, v.Unknown, int64(len(v.Violations))+v.Dropped)
	for _, left := range v.Left {
		fmt.Fprintf(out, "%s: left: %s\n", v.Checker, left)
	}
	for _, note := range v.Notes {
		fmt.Fprintf(out, "%s: %s\n", v.Checker, note)
	}
	for _, violation := range v.Violations {
		fmt.Fprintf(out, "WRONG: %s: %v\n", v.Checker, violation)
	}
}
