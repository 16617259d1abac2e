package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Limits of a lab.
const (
	MaxHosts       = 200 // addresses of the lab's network
	commandTimeout = 60 * time.Second
	killTimeout    = 60 * time.Second
)

// subnet is the lab's network. It exists in the lab's namespaces only.
const subnet = "10.77.0"

// Lab is a switch and its hosts. Its methods may be called from any goroutine.
type Lab struct {
	Prefix string // of every name that the lab gives
	Dir    string // everything the lab writes is below it

	mu        sync.Mutex
	hosts     []*Host    // guarded by mu
	processes []*Process // guarded by mu
}

var prefixShape = regexp.MustCompile(`^[a-z][a-z0-9]{0,5}$`)

// New makes the switch. The prefix is one to six letters and digits, since names
// of network devices are short; two labs at once need two. What an earlier lab
// of the same prefix left behind is removed first, and dir is emptied.
func New(prefix, dir string) (*Lab, error) {
	if !prefixShape.MatchString(prefix) {
		return nil, fmt.Errorf("lab: prefix %q: want one to six lower-case letters and digits, a letter first", prefix)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("lab: network namespaces need root: run as root")
	}
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	lab := &Lab{Prefix: prefix, Dir: absolute}
	if err := lab.sweep(); err != nil {
		return nil, fmt.Errorf("lab: remove what an earlier run left: %w", err)
	}
	// Only now: an earlier run may have had mounts below it.
	if err := errors.Join(os.RemoveAll(absolute), os.MkdirAll(absolute, 0o755)); err != nil {
		return nil, err
	}
	if err := lab.makeSwitch(); err != nil {
		return nil, errors.Join(err, lab.Close())
	}
	return lab, nil
}

func (l *Lab) switchNamespace() string { return l.Prefix + "-sw" }

func (l *Lab) makeSwitch() error {
	namespace := l.switchNamespace()
	steps := [][]string{
		{"ip", "netns", "add", namespace},
		{"ip", "-n", namespace, "link", "set", "lo", "up"},
		{"ip", "-n", namespace, "link", "add", "br0", "type", "bridge"},
		{"ip", "-n", namespace, "link", "set", "br0", "up"},
		// The bridge only switches; what is filtered is said in its own table.
		l.in(namespace, "sh", "-c", "echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables 2>/dev/null || true"),
	}
	for _, step := range steps {
		if err := run(step...); err != nil {
			return err
		}
	}
	return l.nft(`
table bridge lab {
  set cut { type ipv4_addr . ipv4_addr; }
  chain forward {
    type filter hook forward priority 0; policy accept;
    ip saddr . ip daddr @cut counter drop
    arp saddr ip . arp daddr ip @cut drop
  }
}`)
}

// Host is one machine of the lab.
type Host struct {
	Name    string
	Address string // IPv4
	Dir     string // the host's disk

	lab       *Lab
	namespace string
}

// AddHost joins a new host to the switch.
func (l *Lab) AddHost(name string) (*Host, error) {
	if !prefixShape.MatchString(name) {
		return nil, fmt.Errorf("lab: host %q: want one to six lower-case letters and digits, a letter first", name)
	}
	l.mu.Lock()
	number := len(l.hosts) + 1
	h := &Host{
		Name: name, Address: fmt.Sprintf("%s.%d", subnet, number), Dir: filepath.Join(l.Dir, name),
		lab: l, namespace: l.Prefix + "-" + name,
	}
	l.hosts = append(l.hosts, h)
	l.mu.Unlock()
	if number > MaxHosts {
		return nil, fmt.Errorf("lab: host %q is number %d; at most %d", name, number, MaxHosts)
	}
	return h, h.plug()
}

func (h *Host) plug() error {
	if err := os.MkdirAll(h.Dir, 0o755); err != nil {
		return err
	}
	port, sw := "p-"+h.Name, h.lab.switchNamespace()
	steps := [][]string{
		{"ip", "netns", "add", h.namespace},
		{"ip", "-n", h.namespace, "link", "set", "lo", "up"},
		{"ip", "-n", sw, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", h.namespace},
		{"ip", "-n", sw, "link", "set", port, "master", "br0", "up"},
		{"ip", "-n", h.namespace, "addr", "add", h.Address + "/24", "dev", "eth0"},
		{"ip", "-n", h.namespace, "link", "set", "eth0", "up"},
	}
	for _, step := range steps {
		if err := run(step...); err != nil {
			return err
		}
	}
	return nil
}

// Hosts returns the lab's hosts in the order they were added.
func (l *Lab) Hosts() []*Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Host(nil), l.hosts...)
}

// NamespacePath is the file that stands for the host's network.
func (h *Host) NamespacePath() string { return "/run/netns/" + h.namespace }

// Command is a program on this host: only its network is the host's own, so it
// sees this machine's files and mounts.
func (h *Host) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	words := h.lab.in(h.namespace, append([]string{program}, args...)...)
	return exec.CommandContext(ctx, words[0], words[1:]...)
}

// Run runs a program on this host to its end and returns what it printed.
func (h *Host) Run(ctx context.Context, program string, args ...string) (string, error) {
	out, err := h.Command(ctx, program, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %s %s: %w: %s", h.Name, program, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// in wraps a command so that it runs in a network namespace. `ip netns exec`
// would also give it another /sys, without the cgroups.
func (l *Lab) in(namespace string, words ...string) []string {
	return append([]string{"nsenter", "--net=/run/netns/" + namespace, "--"}, words...)
}

func (l *Lab) nft(script string) error {
	words := l.in(l.switchNamespace(), "nft", "-f", "-")
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	command := exec.CommandContext(ctx, words[0], words[1:]...)
	command.Stdin = strings.NewReader(script)
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("nft in the switch: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func run(words ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(words, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
