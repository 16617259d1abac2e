package runtime

import (
	"fmt"
	"strconv"
	"strings"
)

// Signal is a Linux signal number. The type is our own since package syscall's
// numbers differ on wasip1, where the agent is simulated.
type Signal int

// The signals that the agent itself sends.
const (
	SIGHUP  Signal = 1
	SIGINT  Signal = 2
	SIGQUIT Signal = 3
	SIGKILL Signal = 9
	SIGUSR1 Signal = 10
	SIGUSR2 Signal = 12
	SIGTERM Signal = 15
)

// MaxSignal is the highest real-time signal of Linux.
const MaxSignal Signal = 64

// signalNames lists the signals 1 to 31 of Linux on amd64 and arm64 in order
// (signal(7)).
const signalNames = "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT " +
	"CHLD CONT STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"

// ParseSignal reads a stop signal as images write it: "SIGQUIT", "QUIT", "3"
// or "SIGRTMIN+3".
func ParseSignal(s string) (Signal, error) {
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if rest, ok := strings.CutPrefix(name, "RTMIN"); ok {
		return parseRealTime(s, rest)
	}
	if n, err := strconv.Atoi(name); err == nil && n > 0 && Signal(n) <= MaxSignal {
		return Signal(n), nil
	}
	for i, known := range strings.Fields(signalNames) {
		if name == known {
			return Signal(i + 1), nil
		}
	}
	return 0, fmt.Errorf("signal %q is unknown: use a name such as SIGTERM or a number from 1 to %d: %w", s, MaxSignal, ErrInvalid)
}

// parseRealTime reads what follows RTMIN. glibc's SIGRTMIN is 34.
func parseRealTime(s, rest string) (Signal, error) {
	const rtMin = 34
	if rest == "" {
		return rtMin, nil
	}
	n, err := strconv.Atoi(strings.TrimPrefix(rest, "+"))
	if err != nil || n < 0 || rtMin+Signal(n) > MaxSignal {
		return 0, fmt.Errorf("signal %q: want SIGRTMIN+0 to SIGRTMIN+%d: %w", s, MaxSignal-rtMin, ErrInvalid)
	}
	return rtMin + Signal(n), nil
}

// String is "SIGTERM" for 15, and the number for a real-time signal.
func (s Signal) String() string {
	names := strings.Fields(signalNames)
	if s >= 1 && int(s) <= len(names) {
		return "SIG" + names[s-1]
	}
	return strconv.Itoa(int(s))
}
