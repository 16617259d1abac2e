//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/node/runtime/simprog"
)

// stream does the steps that are about a container's streams, ports and files.
func stream(s simprog.Step) error {
	switch s.Kind {
	case simprog.Echo:
		return echo()
	case simprog.WinSize:
		return winSize()
	case simprog.Listen:
		return listen(s.Number)
	default:
		content, err := os.ReadFile(s.Text)
		fmt.Println(string(content))
		return err
	}
}

func echo() error {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		fmt.Println(lines.Text())
	}
	return lines.Err()
}

func winSize() error {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	for {
		size, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		if err != nil {
			return fmt.Errorf("size of the terminal: %w", err)
		}
		if size.Col > 0 {
			fmt.Printf("%dx%d\n", size.Col, size.Row)
			return nil
		}
		<-changed
	}
}

func listen(port int) error {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	return nil
}
