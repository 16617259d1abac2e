// Package runcwire is what the agent and the helper program balsa-runc say to
// each other: how an exec is asked for and how both subcommands report. It
// holds the words only, no system calls.
package runcwire

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// AnnotationSeccomp in a container's config.json chooses the system call
// filter: SeccompDefault, SeccompUnconfined, or SeccompProfile for the one that
// the configuration itself holds.
const (
	AnnotationSeccomp = "run.balsa.seccomp"
	SeccompDefault    = "default"
	SeccompUnconfined = "unconfined"
	SeccompProfile    = "profile"
)

// StateRoot is where balsa-runc keeps libcontainer's state, relative to the
// pod's directory, in which it is started.
const StateRoot = "runc"

// SpecFile is the container's OCI configuration in its directory.
const SpecFile = "config.json"

// Descriptors that the agent passes to "balsa-runc exec".
const (
	ExecControlFD = 3
	ExecReportFD  = 4
	// ExecHoldFD is there if the request says Hold.
	ExecHoldFD = 5
)

// The words on the hold descriptor, a byte each. The process that an exec has made
// says hello before it executes its program, and waits for the answer. The end of
// the descriptor instead of an answer ends it.
const (
	ExecHello = 'h'
	ExecGo    = 'g'
)

// RunReportFD is the descriptor on which "balsa-runc run" reports to the shim.
const RunReportFD = 3

// RunConsoleFD is the socket on which "balsa-runc run" hands the shim the
// terminal of a container whose configuration says that it has one.
const RunConsoleFD = 4

// MaxExecRequestBytes bounds an exec's arguments and environment.
const MaxExecRequestBytes = 1 << 20

// ExecRequest is the first line on the control descriptor. Each later line is
// a Resize; the end of the descriptor kills the process.
type ExecRequest struct {
	Args   []string `json:"args"`
	Env    []string `json:"env,omitempty"`
	Cwd    string   `json:"cwd,omitempty"`
	TTY    bool     `json:"tty,omitempty"`
	Width  uint16   `json:"width,omitempty"`
	Height uint16   `json:"height,omitempty"`
	// Hold: the process waits on ExecHoldFD. Helpers from before this field ignore
	// it, so the agent also reads StartedReport.
	Hold bool `json:"hold,omitempty"`
}

// Resize changes the size of the terminal.
type Resize struct {
	Width  uint16 `json:"width"`
	Height uint16 `json:"height"`
}

// Line encodes a message as one line.
func Line(message any) ([]byte, error) {
	b, err := json.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("encode control line: %w", err)
	}
	return append(b, '\n'), nil
}

// Report lines.

// PIDReport tells that the container's process exists.
func PIDReport(pid int) string { return "pid=" + strconv.Itoa(pid) + "\n" }

// OKReport tells that the program was executed.
func OKReport() string { return "ok\n" }

// maxErrorBytes keeps a report below what the shim reads.
const maxErrorBytes = 1 << 10

// ErrorReport tells on one line why nothing runs.
func ErrorReport(err error) string {
	text := err.Error()
	if len(text) > maxErrorBytes {
		text = text[:maxErrorBytes] + "..."
	}
	return "error=" + Escape(text) + "\n"
}

// StartedReport tells which process an exec has begun: its id, and when it began
// in clock ticks since the boot, since ids are used again. With it an agent that
// did not ask for Hold can end the process although the helper is gone.
func StartedReport(pid int, ticks uint64) string {
	return fmt.Sprintf("started pid=%d ticks=%d\n", pid, ticks)
}

// ParseStartedReport reads a line of StartedReport.
func ParseStartedReport(line string) (pid int, ticks uint64, ok bool) {
	n, _ := fmt.Sscanf(line, "started pid=%d ticks=%d\n", &pid, &ticks)
	return pid, ticks, n == 2 && pid > 1
}

// ParseStartTicks reads when a process began from its /proc/PID/stat.
func ParseStartTicks(stat string) (uint64, error) {
	ticks, err := statField(stat, 22)
	if err != nil {
		return 0, fmt.Errorf("stat of a process: when it began: %w", err)
	}
	return ticks, nil
}

// ParseParent reads the parent's id from a process's /proc/PID/stat.
func ParseParent(stat string) (int, error) {
	parent, err := statField(stat, 4)
	if err == nil && parent > math.MaxInt32 {
		err = strconv.ErrRange
	}
	if err != nil {
		return 0, fmt.Errorf("stat of a process: its parent: %w", err)
	}
	return int(parent), nil
}

// statField reads a number by its place in proc(5), from 4 on: the fields are
// counted from behind the program's name, which may hold anything.
func statField(stat string, number int) (uint64, error) {
	const firstAfterName = 3
	end := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[end+1:])
	if end < 0 || len(fields) <= number-firstAfterName {
		return 0, fmt.Errorf("%q has too few fields", stat)
	}
	return strconv.ParseUint(fields[number-firstAfterName], 10, 64)
}

// ExitReport tells how an exec's process ended.
func ExitReport(code, signal int) string {
	return fmt.Sprintf("exit code=%d signal=%d\n", code, signal)
}

// ErrNoReport: the helper is gone and has not said how its process ended, which
// may run on.
var ErrNoReport = errors.New("balsa-runc ended without a report")

// ParseExecReport reads what "balsa-runc exec" reported.
func ParseExecReport(report string) (code, signal int, err error) {
	for line := range strings.Lines(report) {
		line = strings.TrimSuffix(line, "\n")
		if text, ok := strings.CutPrefix(line, "error="); ok {
			text, err := Unescape(text)
			if err != nil {
				return 0, 0, err
			}
			return 0, 0, fmt.Errorf("balsa-runc: %s", text)
		}
		if n, _ := fmt.Sscanf(line, "exit code=%d signal=%d", &code, &signal); n == 2 {
			return code, signal, nil
		}
	}
	return 0, 0, ErrNoReport
}

const hexDigits = "0123456789ABCDEF"

// Escape writes a value of the shim's line protocol: bytes up to 0x20, 0x7f,
// "%" and "=" become %XX.
func Escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c == '%' || c == '=' || c == 0x7f {
			b.Write([]byte{'%', hexDigits[c>>4], hexDigits[c&15]})
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}

// Unescape undoes Escape and refuses what it never writes.
func Unescape(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '=' {
			return "", fmt.Errorf("value %q: an unescaped '='", s)
		}
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", fmt.Errorf("value %q: a cut escape", s)
		}
		high, low := strings.IndexByte(hexDigits, s[i+1]), strings.IndexByte(hexDigits, s[i+2])
		if high < 0 || low < 0 {
			return "", fmt.Errorf("value %q: escape %q", s, s[i:i+3])
		}
		b.WriteByte(byte(high<<4 | low))
		i += 2
	}
	return b.String(), nil
}
