package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// answers are how long each request took, in milliseconds, and all together.
type answers struct {
	TookMS  []float64 `json:"tookMS"`
	Seconds float64   `json:"seconds"`
}

const requestPatience = 10 * time.Second

// requests asks a web server count times, each over a connection of its own, by
// size clients at once.
func requests(ctx context.Context, o options) (answers, error) {
	return together(ctx, o, func(context.Context, int) (func(int) error, func(), error) {
		return func(int) error { return request(ctx, o.address) }, func() {}, nil
	})
}

func request(ctx context.Context, address string) error {
	dialer := net.Dialer{Timeout: requestPatience}
	conn, err := dialer.DialContext(ctx, "tcp4", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(requestPatience)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	text, err := io.ReadAll(conn)
	if err == nil && !strings.HasPrefix(string(text), "HTTP/1.1 200 ") {
		err = fmt.Errorf("%s answered %.80q", address, text)
	}
	return err
}

// together lets clients do count things one after the other each, and the first
// error end it.
func together(ctx context.Context, o options, open func(ctx context.Context, number int) (once func(int) error, done func(), err error)) (answers, error) {
	if o.count < 1 || o.size < 1 {
		return answers{}, errors.New("-count and -size: want at least 1")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	parts, failed := make([][]float64, o.size), make([]error, o.size)
	var clients sync.WaitGroup
	began := time.Now()
	for number := range o.size {
		clients.Go(func() {
			once, done, err := open(ctx, number)
			if err == nil {
				defer done()
				parts[number], err = repeat(ctx, o.count/o.size, once)
			}
			if failed[number] = err; err != nil {
				cancel()
			}
		})
	}
	clients.Wait()
	report := answers{Seconds: time.Since(began).Seconds()}
	for _, p := range parts {
		report.TookMS = append(report.TookMS, p...)
	}
	return report, errors.Join(failed...)
}

func repeat(ctx context.Context, count int, once func(int) error) (took []float64, err error) {
	for i := 0; i < count && ctx.Err() == nil; i++ { // who ended ctx says why
		began := time.Now()
		if err := once(i); err != nil {
			return took, err
		}
		took = append(took, milliseconds(time.Since(began)))
	}
	return took, nil
}
