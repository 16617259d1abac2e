package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/object"
)

const (
	// maxForwarded bounds the connections that are carried at once.
	maxForwarded = 256
	forwardChunk = 32 << 10
	maxPort      = 1<<16 - 1
)

func (a *app) portForwardCommand() *cobra.Command {
	var addresses []string
	command := &cobra.Command{
		Use: "port-forward POD|svc/NAME|deploy/NAME [LOCAL:]REMOTE...", Short: "Reach ports of a pod from this machine", Args: cobra.MinimumNArgs(2),
		Long: `Listen on this machine and carry each connection to a port of a pod, also to one
that it opens on its loopback address only. A port of a service is that of the
service. LOCAL may be left out (the same number) or empty (any free port).`,
		Example: "  balsa port-forward hello-7d9f-x2k4j 8080:80\n  balsa port-forward svc/hello 8080:http\n  balsa port-forward deploy/hello :80 --address 127.0.0.1,192.0.2.7",
		RunE: func(command *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			f := &forwarder{a: a, c: c, target: args[0], slots: make(chan struct{}, maxForwarded)}
			return f.run(command.Context(), addresses, args[1:])
		},
	}
	command.Flags().StringSliceVar(&addresses, "address", []string{"127.0.0.1"}, "addresses of this machine to listen on")
	return command
}

// forwarder carries connections to the pod of a target.
type forwarder struct {
	a      *app
	c      *client.Client
	target string
	slots  chan struct{}

	mu  sync.Mutex
	pod *balsav1.Pod // guarded by mu; found anew when it is gone
	out sync.Mutex   // held while a line is printed
}

func (f *forwarder) run(ctx context.Context, addresses, ports []string) error {
	if _, err := f.choose(ctx, nil); err != nil {
		return err
	}
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			_ = l.Close()
		}
	}()
	var carried sync.WaitGroup
	for _, port := range ports {
		local, remote, err := splitPorts(port)
		if err != nil {
			return err
		}
		number, err := f.remotePort(ctx, remote)
		if err != nil {
			return err
		}
		for _, address := range addresses {
			l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(address, local))
			if err != nil {
				return fmt.Errorf("listen on %s:%s: %w; another local port can be given as LOCAL:REMOTE", address, local, err)
			}
			listeners = append(listeners, l)
			f.say(f.a.out, "Forwarding from %s -> %d", l.Addr(), number)
			carried.Go(func() { f.accept(ctx, l, number) })
		}
	}
	<-ctx.Done()
	for _, l := range listeners {
		_ = l.Close()
	}
	carried.Wait()
	return nil
}

// splitPorts reads LOCAL:REMOTE, REMOTE and :REMOTE.
func splitPorts(text string) (local, remote string, err error) {
	local, remote, both := strings.Cut(text, ":")
	if !both {
		remote = local
		if _, err := strconv.Atoi(local); err != nil {
			local = "0"
		}
	}
	if local == "" {
		local = "0"
	}
	n, err := strconv.Atoi(local)
	if err != nil || n < 0 || n > maxPort || remote == "" {
		return "", "", &usageError{fmt.Errorf("%q is no [LOCAL:]REMOTE, for example 8080:80, 80, or :80 for any free port", text)}
	}
	return local, remote, nil
}

// choose is the pod to carry to; one that has failed is left for another, where
// the target is not that pod itself.
func (f *forwarder) choose(ctx context.Context, failed *balsav1.Pod) (*balsav1.Pod, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pod != nil && f.pod != failed {
		return f.pod, nil
	}
	name, err := f.a.podNamed(ctx, f.c, f.target)
	if err != nil {
		return nil, err
	}
	pod, err := client.Get[*balsav1.Pod](ctx, f.c, f.a.namespace, name, client.GetOptions{})
	if err != nil {
		return nil, err
	}
	f.pod = pod
	return pod, nil
}

// remotePort turns a name, or a service's port, into the pod's number.
func (f *forwarder) remotePort(ctx context.Context, text string) (int32, error) {
	pod, err := f.choose(ctx, nil)
	if err != nil {
		return 0, err
	}
	if kind, name, err := one([]string{f.target}); strings.Contains(f.target, "/") && err == nil && kind.Name == "Service" {
		service, err := client.Get[*balsav1.Service](ctx, f.c, f.a.namespace, name, client.GetOptions{})
		if err != nil {
			return 0, err
		}
		if text, err = targetPort(service, text); err != nil {
			return 0, err
		}
	}
	if n, err := strconv.Atoi(text); err == nil {
		if n < 1 || n > maxPort {
			return 0, &usageError{fmt.Errorf("port %d: want 1 to %d", n, maxPort)}
		}
		return int32(n), nil
	}
	for _, container := range object.AllContainers(pod.GetSpec()) {
		for _, port := range container.GetPorts() {
			if port.GetName() == text {
				return port.GetContainerPort(), nil
			}
		}
	}
	return 0, fmt.Errorf("pod/%s has no port named %q", pod.GetMetadata().GetName(), text)
}

// targetPort is where a service sends what comes to one of its ports.
func targetPort(service *balsav1.Service, text string) (string, error) {
	var ports []string
	for _, port := range service.GetSpec().GetPorts() {
		number := strconv.Itoa(int(port.GetPort()))
		if text != number && text != port.GetName() {
			ports = append(ports, number)
			continue
		}
		if name := port.GetTargetPort().GetString_(); name != "" {
			return name, nil
		}
		if to := port.GetTargetPort().GetInt(); to != 0 {
			return strconv.Itoa(int(to)), nil
		}
		return number, nil
	}
	return "", fmt.Errorf("service/%s has no port %s; it has %s", service.GetMetadata().GetName(), text, strings.Join(ports, ", "))
}

func (f *forwarder) say(w io.Writer, format string, args ...any) {
	f.out.Lock()
	defer f.out.Unlock()
	fmt.Fprintf(w, format+"\n", args...)
}

// accept serves a listener until it is closed. What goes wrong with one
// connection is said, and ends only that one.
func (f *forwarder) accept(ctx context.Context, l net.Listener, port int32) {
	var carried sync.WaitGroup
	defer carried.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		select {
		case f.slots <- struct{}{}:
		default:
			_ = conn.Close()
			f.say(f.a.errOut, "a connection was refused: %d are open, which is the limit", maxForwarded)
			continue
		}
		carried.Go(func() {
			defer func() { <-f.slots }()
			if err := f.carry(ctx, conn, port); err != nil && ctx.Err() == nil {
				f.out.Lock()
				defer f.out.Unlock()
				f.a.explain(fmt.Errorf("connection from %s: %w", conn.RemoteAddr(), err))
			}
		})
	}
}

func (f *forwarder) carry(ctx context.Context, conn net.Conn, port int32) error {
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	pod, err := f.choose(ctx, nil)
	if err != nil {
		return err
	}
	stream, err := f.c.Pods.PortForward(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = stream.CloseResponse() }()
	defer context.AfterFunc(ctx, func() { _ = stream.CloseResponse() })()
	start := &balsav1.PortForwardStart{Namespace: pod.GetMetadata().GetNamespace(), Name: pod.GetMetadata().GetName(), Port: port}
	err = stream.Send(&balsav1.PortForwardRequest{Message: &balsav1.PortForwardRequest_Start{Start: start}})
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	first, err := stream.Receive()
	if err != nil {
		if client.IsNotFound(err) {
			_, _ = f.choose(ctx, pod) // the next connection goes to another one
		}
		return err
	}
	if !first.GetConnected() {
		return errors.New("the server did not say that the pod has taken the connection")
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		sendAll(conn, stream.Send)
		_ = stream.CloseRequest()
	}()
	err = receiveAll(conn, stream.Receive)
	if err != nil {
		cancel()
		_ = conn.Close()
	}
	<-sent
	return err
}

// sendAll reads a connection to its end, and says so.
func sendAll(conn net.Conn, send func(*balsav1.PortForwardRequest) error) {
	buf := make([]byte, forwardChunk)
	for {
		n, err := conn.Read(buf)
		if n > 0 && send(&balsav1.PortForwardRequest{Message: &balsav1.PortForwardRequest_Data{Data: buf[:n]}}) != nil {
			return
		}
		if err != nil {
			_ = send(&balsav1.PortForwardRequest{Message: &balsav1.PortForwardRequest_Close{Close: true}})
			return
		}
	}
}

func receiveAll(conn net.Conn, receive func() (*balsav1.PortForwardResponse, error)) error {
	for {
		m, err := receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if m.GetClose() {
			if half, ok := conn.(*net.TCPConn); ok {
				_ = half.CloseWrite()
			}
			continue
		}
		if _, err := conn.Write(m.GetData()); err != nil {
			return nil //nolint:nilerr // the one who connected has gone
		}
	}
}
