package object

import (
	"strconv"
	"strings"
)

// Numbers of the first and last real-time signal, as the C library has them.
const (
	signalRTMin = 34
	signalRTMax = 64
)

// SignalNumber is the number of a Linux signal, by the name that Kubernetes gives
// it: "SIGTERM", "SIGRTMIN+3".
func SignalNumber(name string) (int, bool) {
	short, ok := strings.CutPrefix(name, "SIG")
	if !ok {
		return 0, false
	}
	switch {
	case short == "RTMIN":
		return signalRTMin, true
	case short == "RTMAX":
		return signalRTMax, true
	case strings.HasPrefix(short, "RTMIN+"):
		n, ok := signalOffset(short, "RTMIN+", 15)
		return signalRTMin + n, ok
	case strings.HasPrefix(short, "RTMAX-"):
		n, ok := signalOffset(short, "RTMAX-", 14)
		return signalRTMax - n, ok
	}
	// In the order of their numbers, from 1, on all of Balsa's architectures.
	names := strings.Fields(`HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP
		TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS`)
	for i, n := range names {
		if n == short {
			return i + 1, true
		}
	}
	aliases := map[string]int{"IOT": 6, "CLD": 17, "POLL": 29}
	n, ok := aliases[short]
	return n, ok
}

func signalOffset(name, prefix string, highest int) (int, bool) {
	n, err := strconv.Atoi(name[len(prefix):])
	if err != nil || n < 1 || n > highest || name != prefix+strconv.Itoa(n) {
		return 0, false
	}
	return n, true
}
