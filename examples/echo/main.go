// Echo answers HTTP requests with what it was told about itself: the program of
// examples/hello.yaml and of the tests. It logs a line a request and, told to
// stop, finishes what it began. A datagram to the same port comes back with the
// pod's name behind it. Every answer has the pod's name in the header X-Pod.
//
//	GET /          the greeting, the pod and the node
//	GET /healthz   200
//	GET /fetch?u=  what another address answers, so that a test can look out of a pod
//	GET /exit?c=   end with exit code c
//
// A Secret it was given is never printed: only its length is.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

const (
	drainFor     = 4 * time.Second
	fetchFor     = 5 * time.Second
	maxFetchBody = 64 << 10
	maxDatagram  = 1500
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, address()); err != nil {
		log.Fatal(err)
	}
}

func address() string {
	if listen := os.Getenv("LISTEN"); listen != "" {
		return listen
	}
	return ":8080"
}

func run(ctx context.Context, addr string) error {
	server := &http.Server{Addr: addr, Handler: named(routes()), ReadHeaderTimeout: fetchFor}
	datagrams, err := new(net.ListenConfig).ListenPacket(ctx, "udp", addr)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", addr, err)
	}
	defer datagrams.Close()
	failed := make(chan error, 2)
	go func() { failed <- echo(datagrams) }()
	go func() { failed <- server.ListenAndServe() }()
	log.Printf("echo listens on %s", addr)
	select {
	case err := <-failed:
		return fmt.Errorf("serve on %s: %w", addr, err)
	case <-ctx.Done():
	}
	log.Print("echo was told to stop")
	drain, cancel := context.WithTimeout(context.Background(), drainFor)
	defer cancel()
	if err := server.Shutdown(drain); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("shut down: %w", err)
	}
	return nil
}

// echo answers datagrams until the socket is closed.
func echo(conn net.PacketConn) error {
	name := []byte(" " + os.Getenv("POD_NAME"))
	buffer := make([]byte, maxDatagram)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read a datagram: %w", err)
		}
		if _, err := conn.WriteTo(append(buffer[:n:n], name...), from); err != nil {
			log.Printf("answer a datagram of %s: %v", from, err)
		}
	}
}

func named(next http.Handler) http.Handler {
	name := os.Getenv("POD_NAME")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Pod", name)
		next.ServeHTTP(w, r)
	})
}

func routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", greet)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /fetch", fetch)
	mux.HandleFunc("GET /exit", exit)
	return mux
}

func greet(w http.ResponseWriter, r *http.Request) {
	log.Printf("%s %s from %s", r.Method, r.URL.Path, r.RemoteAddr)
	fmt.Fprintf(w, "%s: pod %s on node %s, secret of %d bytes\n",
		os.Getenv("GREETING"), os.Getenv("POD_NAME"), os.Getenv("NODE_NAME"), len(os.Getenv("PASSWORD")))
}

func fetch(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), fetchFor)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL.Query().Get("u"), nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer response.Body.Close()
	w.WriteHeader(response.StatusCode)
	if _, err := io.Copy(w, io.LimitReader(response.Body, maxFetchBody)); err != nil {
		log.Printf("fetch: copy the answer: %v", err)
	}
}

func exit(_ http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.URL.Query().Get("c"))
	if err != nil {
		code = 1
	}
	log.Printf("echo was asked to exit with %d", code)
	os.Exit(code)
}
