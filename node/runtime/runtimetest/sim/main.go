// Command sim is the real twin of what the fake runtime simulates: it does what
// package simprog describes. Tests build it into their image.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/balsa-run/balsa/node/runtime/simprog"
)

// readyFile stands for being ready; an exec of "sim is-ready" looks at it.
const readyFile = "/.sim-ready"

func main() {
	argv := os.Args
	program, err := simprog.Parse(append([]string{simprog.Name}, argv[1:]...))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	var term atomic.Int64
	term.Store(simprog.DefaultTermCode)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		for range signals {
			if code := term.Load(); code != simprog.TermIgnored {
				os.Exit(int(code))
			}
		}
	}()
	for _, step := range program {
		do(step, &term)
	}
}

func do(s simprog.Step, term *atomic.Int64) {
	switch s.Kind {
	case simprog.Out:
		fmt.Println(s.Text)
	case simprog.Err:
		fmt.Fprintln(os.Stderr, s.Text)
	case simprog.Env:
		fmt.Println(s.Text + "=" + os.Getenv(s.Text))
	case simprog.Lines:
		for i := range s.Number {
			fmt.Println("line", i)
		}
	case simprog.Sleep:
		<-time.After(s.Duration)
	case simprog.Forever:
		select {}
	case simprog.Term:
		term.Store(int64(s.Number))
	case simprog.Exit:
		os.Exit(s.Number)
	case simprog.OOM:
		takeMemory()
	case simprog.OOMChild:
		_ = exec.CommandContext(context.Background(), "/proc/self/exe", string(simprog.OOM)).Run()
	case simprog.Echo, simprog.WinSize, simprog.Listen, simprog.Cat:
		if err := stream(s); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
	default:
		readiness(s.Kind)
	}
}

func readiness(kind simprog.Kind) {
	switch kind {
	case simprog.Ready:
		if err := os.WriteFile(readyFile, nil, 0o600); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
	case simprog.Unready:
		_ = os.Remove(readyFile)
	case simprog.IsReady:
		if _, err := os.Stat(readyFile); err != nil {
			os.Exit(1)
		}
	}
}

// takeMemory touches every page it takes.
func takeMemory() {
	const chunk, page = 1 << 20, 4096
	var held [][]byte
	for {
		b := make([]byte, chunk)
		for i := 0; i < len(b); i += page {
			b[i] = 1
		}
		held = append(held, b)
		if len(held)<<20 > 1<<34 {
			return // no limit in sight: leave the machine alone
		}
	}
}
