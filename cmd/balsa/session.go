package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

const (
	// inputChunk is how much of the standard input one message carries.
	inputChunk = 32 << 10
	// exitInterrupted is what a shell says of a program that was interrupted.
	exitInterrupted = 130
)

// exitError ends this program with the exit code of the one that it ran.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("the program ended with exit code %d", e.code) }

// session is a conversation with a program in a pod.
type session struct {
	a          *app
	stdin, tty bool

	mu      sync.Mutex // held while sending
	send    func(*balsav1.StreamInput) error
	receive func() (*balsav1.StreamOutput, error)
	abort   func() error
}

// terminalOf is the terminal that a reader is, if it is one.
func terminalOf(in io.Reader) (fd int, ok bool) {
	file, ok := in.(*os.File)
	if !ok {
		return 0, false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return int(file.Fd()), err == nil
}

// wantsTerminal is what is left of -t where there is no terminal here.
func (a *app) wantsTerminal(asked bool) bool {
	if !asked {
		return false
	}
	if _, ok := terminalOf(a.in); !ok {
		fmt.Fprintln(a.errOut, "the input is not a terminal: the program gets none either")
		return false
	}
	return true
}

// terminalSize is nil where there is no terminal.
func (a *app) terminalSize() *balsav1.TerminalSize {
	fd, ok := terminalOf(a.in)
	if !ok {
		return nil
	}
	size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	if err != nil {
		return nil
	}
	return &balsav1.TerminalSize{Width: uint32(size.Col), Height: uint32(size.Row)}
}

// raw hands every key on as it is, until restore.
func raw(fd int) (restore func(), err error) {
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	now := *before
	now.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	now.Oflag &^= unix.OPOST
	now.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	now.Cflag &^= unix.CSIZE | unix.PARENB
	now.Cflag |= unix.CS8
	now.Cc[unix.VMIN], now.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &now); err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, before) }, nil
}

// run talks until the program ends; its exit code becomes this program's.
func (s *session) run(ctx context.Context) error {
	// A stream that has begun does not end with its context by itself.
	defer context.AfterFunc(ctx, func() { _ = s.abort() })()
	if fd, ok := terminalOf(s.a.in); s.tty && ok {
		restore, err := raw(fd)
		if err != nil {
			return err
		}
		defer restore()
		stop := s.followSize()
		defer stop()
	}
	if s.stdin {
		go s.feed()
	} else {
		s.put(&balsav1.StreamInput{Input: &balsav1.StreamInput_CloseStdin{CloseStdin: true}})
	}
	for {
		out, err := s.receive()
		if ctx.Err() != nil {
			return &exitError{exitInterrupted}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if exit := out.GetExit(); exit != nil {
			return s.ended(exit)
		}
		if err := s.print(out); err != nil {
			return err
		}
	}
}

func (s *session) ended(exit *balsav1.ProcessExit) error {
	if exit.GetCode() == 0 {
		return nil
	}
	return &exitError{int(exit.GetCode())}
}

func (s *session) print(out *balsav1.StreamOutput) error {
	if _, err := s.a.out.Write(out.GetStdout()); err != nil {
		return fmt.Errorf("standard output: %w", err)
	}
	if _, err := s.a.errOut.Write(out.GetStderr()); err != nil {
		return fmt.Errorf("standard error: %w", err)
	}
	return nil
}

func (s *session) put(in *balsav1.StreamInput) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.send(in) == nil
}

// feed sends the standard input, and that it has ended.
func (s *session) feed() {
	buf := make([]byte, inputChunk)
	for {
		n, err := s.a.in.Read(buf)
		if n > 0 && !s.put(&balsav1.StreamInput{Input: &balsav1.StreamInput_Stdin{Stdin: buf[:n]}}) {
			return
		}
		if err != nil {
			s.put(&balsav1.StreamInput{Input: &balsav1.StreamInput_CloseStdin{CloseStdin: true}})
			return
		}
	}
}

// followSize tells the program when the window changes.
func (s *session) followSize() (stop func()) {
	changed, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(changed, syscall.SIGWINCH)
	go func() {
		for {
			select {
			case <-done:
				return
			case <-changed:
				if size := s.a.terminalSize(); size != nil {
					s.put(&balsav1.StreamInput{Input: &balsav1.StreamInput_Resize{Resize: size}})
				}
			}
		}
	}()
	return func() {
		signal.Stop(changed)
		close(done)
	}
}
