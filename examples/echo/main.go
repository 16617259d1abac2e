// Echo answers HTTP requests with what it was told about itself: the program of
// examples/hello.yaml and of the tests. It logs a line a request and, told to
// stop, finishes what it began.
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
	server := &http.Server{Addr: addr, Handler: routes(), ReadHeaderTimeout: fetchFor}
	failed := make(chan error, 1)
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
