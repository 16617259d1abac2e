package stage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/balsa-run/balsa/chaos/world/host"
	"github.com/balsa-run/balsa/pki"
)

const (
	apiPort      = "7443"
	readyTimeout = 120 * time.Second
	stopTimeout  = 60 * time.Second
	pollPause    = 100 * time.Millisecond
	callTimeout  = 60 * time.Second
)

// Options say what to put up.
type Options struct {
	Prefix  string // of the lab, see host.New
	Dir     string
	Binary  string // balsa
	Servers int
	Agents  int
	// ServerBinary overrides Binary for the server of that number, from 1: for
	// clusters of mixed versions.
	ServerBinary map[int]string
	// ServerArgs are further arguments of the server at an address; nil: none.
	ServerArgs func(address string) []string
	// Progress gets a line for each thing that has come about; nil: nobody.
	Progress io.Writer
}

// Stage is a cluster that runs.
type Stage struct {
	Lab     *host.Lab
	Servers []*Member
	Agents  []*Member
	// Operator is a host without a part in the cluster, from which it is used.
	Operator *host.Host

	options Options
}

// Member is a server or an agent on its host.
type Member struct {
	Host    *host.Host
	Process *host.Process // of its last start
	binary  string
	start   []string // the arguments of every start but the first
}

// Up makes the lab and starts the cluster; it returns when every node is Ready.
// On failure nothing is left behind.
func Up(ctx context.Context, options Options) (*Stage, error) {
	lab, err := host.New(options.Prefix, options.Dir)
	if err != nil {
		return nil, err
	}
	s := &Stage{Lab: lab, options: options}
	if err := s.up(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%w%s", err, s.Logs(15)), lab.Close())
	}
	return s, nil
}

func (s *Stage) up(ctx context.Context) error {
	var err error
	if s.Operator, err = s.Lab.AddHost("op"); err != nil {
		return err
	}
	for number := 1; number <= s.options.Servers; number++ {
		if err := s.addServer(ctx, number); err != nil {
			return err
		}
	}
	if err := s.knowAllServers(); err != nil {
		return err
	}
	for number := 1; number <= s.options.Agents; number++ {
		if err := s.addAgent(ctx, number); err != nil {
			return err
		}
	}
	return s.WaitNodes(ctx, s.options.Agents)
}

func (s *Stage) binaryOf(number int) string {
	if binary, special := s.options.ServerBinary[number]; special {
		return binary
	}
	return s.options.Binary
}

func (s *Stage) addServer(ctx context.Context, number int) error {
	h, err := s.Lab.AddHost(fmt.Sprintf("s%d", number))
	if err != nil {
		return err
	}
	data := filepath.Join(h.Dir, "data")
	common := []string{"server", "--name", h.Name, "--data-dir", data, "--listen", h.Address + ":" + apiPort}
	if s.options.ServerArgs != nil {
		common = append(common, s.options.ServerArgs(h.Address)...)
	}
	first := append(append([]string{}, common...), "--init")
	if number > 1 {
		token, err := s.Token(ctx, "server")
		if err != nil {
			return err
		}
		if first, err = withToken(h, common, s.Servers[0].Host.Address, token); err != nil {
			return err
		}
	}
	m := &Member{Host: h, binary: s.binaryOf(number), start: common}
	s.Servers = append(s.Servers, m)
	if err := m.run("server", first); err != nil {
		return err
	}
	return s.serverReady(ctx, number, m)
}

// withToken hands the token over in a file: arguments are everybody's to read.
func withToken(h *host.Host, common []string, server, token string) ([]string, error) {
	file := filepath.Join(h.Dir, "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		return nil, err
	}
	return append(append([]string{}, common...), "--join", server+":"+apiPort, "--token-file", file), nil
}

func (s *Stage) serverReady(ctx context.Context, number int, m *Member) error {
	err := s.Until(ctx, readyTimeout, fmt.Sprintf("%d of %d servers to vote", number, s.options.Servers), func(ctx context.Context) error {
		if !m.Process.Running() {
			return fatal(fmt.Errorf("server %s ended", m.Host.Name))
		}
		if number == 1 {
			if err := s.knowAllServers(); err != nil {
				return err
			}
		}
		status, err := s.Status(ctx)
		if err != nil {
			return err
		}
		if voters := status.voters(); voters < number {
			return fmt.Errorf("%d vote", voters)
		}
		return nil
	})
	if err == nil {
		s.say("server %s runs on %s", m.Host.Name, m.Host.Address)
	}
	return err
}

func (s *Stage) addAgent(ctx context.Context, number int) error {
	h, err := s.Lab.AddHost(fmt.Sprintf("n%d", number))
	if err != nil {
		return err
	}
	common := []string{"agent", "--name", h.Name, "--data-dir", filepath.Join(h.Dir, "data"), "--run-dir", filepath.Join(h.Dir, "run"),
		"--node-ip", h.Address, "--cgroup-prefix", h.CgroupPrefix(),
		// How full this machine's disk is must not decide what tests find.
		"--eviction-hard", "nodefs.available=1%,nodefs.inodesFree=1%", "--image-gc-high-threshold", "99", "--image-gc-low-threshold", "98"}
	token, err := s.Token(ctx, "agent")
	if err != nil {
		return err
	}
	first, err := withToken(h, common, s.Servers[0].Host.Address, token)
	if err != nil {
		return err
	}
	m := &Member{Host: h, binary: s.options.Binary, start: common}
	s.Agents = append(s.Agents, m)
	s.say("agent %s runs on %s", h.Name, h.Address)
	return m.run("agent", first)
}

func (m *Member) run(name string, args []string) error {
	process, err := m.Host.Start(name, m.binary, args...)
	m.Process = process
	return err
}

// Restart starts the member again on the disk it has.
func (m *Member) Restart() error { return m.run(m.start[0], m.start) }

// Rerun is Restart with further arguments.
func (m *Member) Rerun(more ...string) error {
	return m.run(m.start[0], append(append([]string{}, m.start...), more...))
}

// RestartIn starts the member inside a cgroup, as an init system does.
func (m *Member) RestartIn(group string) error {
	shell := []string{"-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, group, m.binary}
	process, err := m.Host.Start(m.start[0], "sh", append(shell, m.start...)...)
	m.Process = process
	return err
}

// Rejoin lets a server in whose disk was lost: it is another one now.
func (s *Stage) Rejoin(ctx context.Context, m *Member) error {
	token, err := s.Token(ctx, "server")
	if err != nil {
		return err
	}
	seed := s.Servers[0]
	if seed == m {
		seed = s.Servers[1]
	}
	args, err := withToken(m.Host, m.start, seed.Host.Address, token)
	if err != nil {
		return err
	}
	return m.run(m.start[0], args)
}

// Upgrade starts the member again with another binary.
func (m *Member) Upgrade(binary string) error {
	if err := m.Process.Stop(stopTimeout); err != nil {
		return err
	}
	m.binary = binary
	return m.Restart()
}

// Admin is the client configuration of the operator.
func (s *Stage) Admin() string { return filepath.Join(s.Lab.Dir, "admin.yaml") }

// knowAllServers makes the operator's configuration of the first server's, so
// that it does not depend on that one.
func (s *Stage) knowAllServers() error {
	config, err := pki.ReadConfigFile(filepath.Join(s.Servers[0].Host.Dir, "data", "admin.yaml"))
	if err != nil {
		return err
	}
	for _, server := range s.Servers {
		config.Servers = []string{server.Host.Address + ":" + apiPort}
		if err := pki.WriteConfigFile(s.adminAt(server), config); err != nil {
			return err
		}
	}
	config.Servers = s.Addresses()
	return pki.WriteConfigFile(s.Admin(), config)
}

// adminAt is the operator's configuration for one server alone.
func (s *Stage) adminAt(server *Member) string {
	return filepath.Join(s.Lab.Dir, "admin-"+server.Host.Name+".yaml")
}

// Down stops everything and removes it; leaks are an error.
func (s *Stage) Down() error {
	err := s.Lab.Close()
	if leaks := s.Lab.Leaks(); len(leaks) > 0 {
		err = errors.Join(err, fmt.Errorf("left behind: %s", strings.Join(leaks, "; ")))
	}
	return err
}

// Logs are the last lines of every member, for a report of a failure.
func (s *Stage) Logs(lines int) string {
	var text strings.Builder
	for _, m := range append(append([]*Member{}, s.Servers...), s.Agents...) {
		if m.Process != nil {
			fmt.Fprintf(&text, "\n--- %s\n%s", m.Process.Name, m.Process.Tail(lines))
		}
	}
	return text.String()
}

func (s *Stage) say(format string, args ...any) {
	if s.options.Progress != nil {
		fmt.Fprintf(s.options.Progress, format+"\n", args...)
	}
}
