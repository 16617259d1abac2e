package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// What the proxy lets through unless flags say otherwise, as kubectl's does: nobody
// who came by a name that somebody else may have pointed at this machine, and no
// programs in pods.
const (
	proxyHosts    = `^localhost$,^127\.0\.0\.1$,^\[::1\]$`
	proxyRejected = `^/balsa\.v1\.PodService/(Exec|Attach|PortForward)$`

	proxyHeaderTimeout = 10 * time.Second
	proxyMaxHeader     = 64 << 10
)

// gate says which requests may pass.
type gate struct {
	hosts, paths, rejectPaths, rejectMethods []string

	acceptHosts, acceptPaths, noPaths, noMethods []*regexp.Regexp
}

func (a *app) proxyCommand() *cobra.Command {
	g, address, port := &gate{}, "127.0.0.1", 0
	command := &cobra.Command{
		Use: "proxy", Short: "Make the API reachable over plain HTTP on this machine", Args: cobra.NoArgs,
		Long: `Proxy listens on a loopback address of this machine and hands requests on to the
API with your certificate: whoever can reach the port does what you may do. So it
listens nowhere else; a request must name the host as --accept-hosts allows, or a
web page could reach it through a name that it points at this machine; and what
runs programs in pods is refused unless --reject-paths says otherwise.

The API is balsa.v1 in the Connect protocol: a POST of JSON. Streams come as they
are sent.`,
		Example: "  balsa proxy --port 8001\n  curl -H 'Content-Type: application/json' -d '{\"kind\":\"Pod\",\"namespace\":\"default\"}' http://127.0.0.1:8001/balsa.v1.ObjectService/List",
		RunE: func(command *cobra.Command, _ []string) error {
			if err := g.compile(); err != nil {
				return &usageError{err}
			}
			ip, err := netip.ParseAddr(address)
			if err != nil || !ip.IsLoopback() {
				return &usageError{fmt.Errorf("--address %q: allowed is an address of this machine's loopback, such as 127.0.0.1: everybody who reaches it acts as you", address)}
			}
			if port < 0 || port > maxPort {
				return &usageError{fmt.Errorf("--port %d: allowed are 0 (any that is free) to %d", port, maxPort)}
			}
			return a.proxy(command.Context(), g, net.JoinHostPort(address, strconv.Itoa(port)))
		},
	}
	flags := command.Flags()
	flags.StringVar(&address, "address", address, "loopback address to listen on")
	flags.IntVarP(&port, "port", "p", 8001, "port to listen on; 0: any that is free")
	flags.StringSliceVar(&g.hosts, "accept-hosts", strings.Split(proxyHosts, ","), "regular expressions of hosts that a request may name")
	flags.StringSliceVar(&g.paths, "accept-paths", []string{"^.*"}, "regular expressions of paths that pass")
	flags.StringSliceVar(&g.rejectPaths, "reject-paths", []string{proxyRejected}, "regular expressions of paths that do not, even if accepted")
	flags.StringSliceVar(&g.rejectMethods, "reject-methods", []string{"^$"}, "regular expressions of HTTP methods that do not pass")
	return command
}

func (g *gate) compile() error {
	for _, list := range []struct {
		flag string
		from []string
		to   *[]*regexp.Regexp
	}{{"accept-hosts", g.hosts, &g.acceptHosts}, {"accept-paths", g.paths, &g.acceptPaths}, {"reject-paths", g.rejectPaths, &g.noPaths}, {"reject-methods", g.rejectMethods, &g.noMethods}} {
		for _, text := range list.from {
			r, err := regexp.Compile(text)
			if err != nil {
				return fmt.Errorf("--%s %q is no regular expression: %w", list.flag, text, err)
			}
			*list.to = append(*list.to, r)
		}
	}
	return nil
}

func anyOf(list []*regexp.Regexp, text string) bool {
	for _, r := range list {
		if r.MatchString(text) {
			return true
		}
	}
	return false
}

// refuses says why a request does not pass; empty: it does.
func (g *gate) refuses(r *http.Request) string {
	switch host := hostname(r.Host); {
	case !anyOf(g.acceptHosts, host):
		return fmt.Sprintf("host %q is not accepted: --accept-hosts says which are", host)
	case !g.sameMachine(r.Header.Get("Origin")):
		return fmt.Sprintf("a page of %q may not use the API as you", r.Header.Get("Origin"))
	case anyOf(g.noMethods, r.Method):
		return fmt.Sprintf("method %s is refused: --reject-methods says which are", r.Method)
	case !anyOf(g.acceptPaths, r.URL.Path) || anyOf(g.noPaths, r.URL.Path):
		return fmt.Sprintf("path %q is refused: --accept-paths and --reject-paths say which are", r.URL.Path)
	}
	return ""
}

// sameMachine judges the page that made a browser ask; programs name none.
func (g *gate) sameMachine(origin string) bool {
	if origin == "" {
		return true
	}
	page, err := url.Parse(origin)
	return err == nil && page.Host != "" && anyOf(g.acceptHosts, hostname(page.Host))
}

// hostname is a host without its port; one of IPv6 keeps its brackets.
func hostname(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		return host[:i]
	}
	return host
}

// proxy serves until it is interrupted.
func (a *app) proxy(ctx context.Context, g *gate, address string) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	forward := &httputil.ReverseProxy{
		Transport: c.Transport(), FlushInterval: -1, // streams come as they are sent
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.Header.Del("Origin") },
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), http.StatusBadGateway)
		},
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if why := g.refuses(r); why != "" {
				http.Error(w, "balsa proxy: "+why, http.StatusForbidden)
				return
			}
			forward.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: proxyHeaderTimeout, MaxHeaderBytes: proxyMaxHeader, Protocols: new(http.Protocols),
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true) // for programs whose streams go both ways
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	fmt.Fprintf(a.out, "Starting to serve on %s\n", listener.Addr())
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", listener.Addr(), err)
	}
	return nil
}
