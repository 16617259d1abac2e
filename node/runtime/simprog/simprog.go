// Package simprog is a tiny language for programs in tests and simulations: a
// container's command such as
//
//	sim out=hello sleep=2s ready term=0 sleep=10s exit=3
//
// means the same to the fake runtime, which interprets it on a fake clock, and
// to the program runtimetest/sim, which does it for real. It only parses.
package simprog

import (
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"
)

// Name is the base name of the program in a command.
const Name = "sim"

// Kind is what a step does.
type Kind string

// The steps. A program that runs out of them exits with code 0.
const (
	// Out and Err print Text as a line; Env prints "NAME=value" of the
	// environment; Lines prints "line 0" to "line N-1".
	Out   Kind = "out"
	Err   Kind = "err"
	Env   Kind = "env"
	Lines Kind = "lines"
	// Sleep waits for Duration, Forever until a signal ends the program.
	Sleep   Kind = "sleep"
	Forever Kind = "forever"
	// Ready: from now on the program is ready. Unready takes it back.
	Ready   Kind = "ready"
	Unready Kind = "unready"
	// Term chooses the exit code on SIGTERM from now on; "ignore" is TermIgnored.
	Term Kind = "term"
	// Exit ends the program with Number.
	Exit Kind = "exit"
	// OOM takes memory until the limit kills the program.
	OOM Kind = "oom"
	// OOMChild has a child do that; the program itself goes on, unless the
	// kernel takes all of the container.
	OOMChild Kind = "oom-child"
	// Echo prints what comes in, line by line, until the end of input.
	Echo Kind = "echo"
	// WinSize waits until the terminal has a size and prints it as "80x24".
	WinSize Kind = "winsize"
	// Listen answers connections to TCP port Number with what they send, from now
	// on.
	Listen Kind = "listen"
	// Cat prints the content of the file Text as a line.
	Cat Kind = "cat"
	// IsReady, for execs: exit code 0 if the container's program is ready, else 1.
	IsReady Kind = "is-ready"
)

const (
	// DefaultTermCode is the exit code on SIGTERM unless a Term step chose another.
	DefaultTermCode = 143
	// TermIgnored in Step.Number of a Term step: SIGTERM has no effect.
	TermIgnored = -1
	// MaxLines bounds a Lines step.
	MaxLines = 1 << 20
	maxPort  = 1<<16 - 1
)

// Step is one instruction.
type Step struct {
	Kind     Kind
	Text     string
	Number   int
	Duration time.Duration
}

// Program is what a command does, step by step.
type Program []Step

// Is tells whether a command is one of this language.
func Is(argv []string) bool { return len(argv) > 0 && path.Base(argv[0]) == Name }

// Parse reads a command, argv[0] included.
func Parse(argv []string) (Program, error) {
	if !Is(argv) {
		return nil, fmt.Errorf("command %q: want a program named %q", argv, Name)
	}
	var p Program
	for _, word := range argv[1:] {
		step, err := parseStep(word)
		if err != nil {
			return nil, fmt.Errorf("step %q: %w", word, err)
		}
		p = append(p, step)
	}
	return p, nil
}

func parseStep(word string) (Step, error) {
	name, value, _ := strings.Cut(word, "=")
	s := Step{Kind: Kind(name), Text: value}
	var err error
	switch s.Kind {
	case Out, Err, Env, Forever, Ready, Unready, OOM, OOMChild, IsReady, Echo, WinSize, Cat:
	case Sleep:
		s.Duration, err = time.ParseDuration(value)
	case Exit:
		s.Number, err = parseNumber(value, 255)
	case Listen:
		s.Number, err = parseNumber(value, maxPort)
	case Lines:
		s.Number, err = parseNumber(value, MaxLines)
	case Term:
		if value == "ignore" {
			s.Number = TermIgnored
			return s, nil
		}
		s.Number, err = parseNumber(value, 255)
	default:
		err = fmt.Errorf("unknown")
	}
	return s, err
}

func parseNumber(s string, limit int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, err
	}
	if n < 0 || n > limit {
		return 0, fmt.Errorf("want 0 to %d", limit)
	}
	return n, nil
}
