package runc

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/balsa-run/balsa/internal/runcwire"
	"github.com/balsa-run/balsa/node/runtime"
)

// The agent's side of the shim's line protocol (cmd/balsa-shim/DESIGN.md).

const (
	// protoVersion is what this agent speaks best, protoMin the oldest shim's
	// version that it still speaks.
	protoVersion = 1
	protoMin     = 1
	// maxShimLineBytes bounds a line from the shim; its messages are bounded
	// by what a helper may report.
	maxShimLineBytes = 64 << 10
	eventID          = "*"
)

// shimLine is one line from the shim: an answer's id or "*", a kind, its keys.
type shimLine struct {
	id   string
	kind string
	keys map[string]string
}

// parseShimLine keeps keys that it does not know and refuses only what is not
// a line of the protocol at all.
func parseShimLine(line string) (shimLine, error) {
	parts := words(line)
	if len(parts) < 2 {
		return shimLine{}, fmt.Errorf("shim line %q: want an id and a kind", line)
	}
	keys, err := parseKeys(parts[2:])
	if err != nil {
		return shimLine{}, fmt.Errorf("shim line %q: %w", line, err)
	}
	return shimLine{id: parts[0], kind: parts[1], keys: keys}, nil
}

// words splits at blanks and the line feed only: a value may hold what Unicode
// calls a space.
func words(line string) []string {
	return strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\n' })
}

func parseKeys(parts []string) (map[string]string, error) {
	keys := make(map[string]string, len(parts))
	for _, word := range parts {
		key, value, ok := strings.Cut(word, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("word %q: want key=value", word)
		}
		value, err := runcwire.Unescape(value)
		if err != nil {
			return nil, err
		}
		keys[key] = value
	}
	return keys, nil
}

// formatRequest writes "<id> <verb> key=value ...", keys in the given order.
func formatRequest(id, verb string, keys [][2]string) string {
	var b strings.Builder
	b.WriteString(id + " " + verb)
	for _, kv := range keys {
		b.WriteString(" " + kv[0] + "=" + runcwire.Escape(kv[1]))
	}
	b.WriteByte('\n')
	return b.String()
}

// greeting is the first line of a connection.
type greeting struct {
	proto, min int
	pid        int
	uid        string
	// attach: it takes "attach", and a start's stdin, stdinonce and tty.
	attach bool
}

func parseGreeting(line string) (greeting, error) {
	parts := words(line)
	if len(parts) == 0 || parts[0] != "balsa-shim" {
		return greeting{}, fmt.Errorf("greeting %q: this is no shim", line)
	}
	keys, err := parseKeys(parts[1:])
	if err != nil {
		return greeting{}, fmt.Errorf("greeting %q: %w", line, err)
	}
	var g greeting
	var errs [3]error
	g.proto, errs[0] = strconv.Atoi(keys["proto"])
	g.min, errs[1] = strconv.Atoi(keys["min"])
	g.pid, errs[2] = strconv.Atoi(keys["pid"])
	g.uid, g.attach = keys["uid"], keys["attach"] == "1"
	if err := errors.Join(errs[:]...); err != nil {
		return greeting{}, fmt.Errorf("greeting %q: %w", line, err)
	}
	return g, nil
}

// agree returns the version that both sides speak.
func (g greeting) agree() (int, error) {
	version := min(g.proto, protoVersion)
	if version < protoMin || version < g.min {
		return 0, fmt.Errorf("shim of pod %s speaks versions %d to %d, this agent %d to %d: remove the pod, or run the agent version that started it",
			g.uid, g.min, g.proto, protoMin, protoVersion)
	}
	return version, nil
}

// parseContainer reads a container's state from an answer, an event, or the
// exit and start records on disk: they all use the same keys.
func parseContainer(keys map[string]string) (runtime.ContainerState, error) {
	n := numbers{keys: keys}
	s := runtime.ContainerState{
		Name: keys["name"], Attempt: int(n.get("attempt")), Message: keys["msg"],
		StartedAt: timeOf(n.get("started")), FinishedAt: timeOf(n.get("finished")),
	}
	exit := runtime.ExitStatus{Code: int(n.get("code")), Signal: runtime.Signal(n.get("signal"))}
	pid, ooms := int(n.get("pid")), n.get("oom")
	if n.err != nil {
		return s, fmt.Errorf("container %s: %w", s.Name, n.err)
	}
	switch state := keys["state"]; state {
	case "starting":
		s.Status = runtime.ContainerCreated
	case "running":
		s.Status, s.PID = runtime.ContainerRunning, pid
	case "exited":
		s.Status, s.Exit, s.Reason = runtime.ContainerExited, exit, reason(keys, s, exit, ooms)
	default:
		return s, fmt.Errorf("container %s: state %q is unknown", s.Name, state)
	}
	return s, nil
}

func reason(keys map[string]string, s runtime.ContainerState, exit runtime.ExitStatus, ooms int64) runtime.Reason {
	switch {
	case keys["reason"] != "":
		return runtime.Reason(keys["reason"])
	case s.StartedAt.IsZero():
		return runtime.ReasonStartError
	default:
		return runtime.ReasonFor(exit, ooms)
	}
}

func timeOf(nanos int64) time.Time {
	if nanos == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanos).UTC()
}

// numbers reads integers and keeps the first error; an absent key is zero.
type numbers struct {
	keys map[string]string
	err  error
}

func (n *numbers) get(key string) int64 {
	value := n.keys[key]
	if value == "" {
		return 0
	}
	i, err := strconv.ParseInt(value, 10, 64)
	if err != nil && n.err == nil {
		n.err = fmt.Errorf("%s=%q is no number", key, value)
	}
	return i
}

// parseRecord reads the file exit or started in a container's directory.
func parseRecord(content string) (runtime.ContainerState, error) {
	parts := words(content)
	if len(parts) == 0 || parts[0] != "exit" && parts[0] != "started" {
		return runtime.ContainerState{}, fmt.Errorf("record %q: want exit or started", content)
	}
	keys, err := parseKeys(parts[1:])
	if err != nil {
		return runtime.ContainerState{}, fmt.Errorf("record %q: %w", content, err)
	}
	return parseContainer(keys)
}

// formatLost is the exit record that the agent writes for a container whose
// shim or node is gone.
func formatLost(s runtime.ContainerState) string {
	started := int64(0)
	if !s.StartedAt.IsZero() {
		started = s.StartedAt.UnixNano()
	}
	keys := [][2]string{
		{"attempt", strconv.Itoa(s.Attempt)}, {"state", "exited"}, {"started", strconv.FormatInt(started, 10)},
		{"finished", strconv.FormatInt(s.FinishedAt.UnixNano(), 10)}, {"code", strconv.Itoa(s.Exit.Code)},
		{"signal", strconv.Itoa(int(s.Exit.Signal))}, {"reason", string(s.Reason)}, {"msg", s.Message}, {"v", "1"},
	}
	return formatRequest("exit", "name="+runcwire.Escape(s.Name), keys)
}
