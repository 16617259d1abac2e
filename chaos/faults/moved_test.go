package faults

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/balsa-run/balsa/pki"
)

// longerThanALease is enough for a node that nobody hears of to be given up.
const longerThanALease = 20 * time.Second

// TestDevMoves starts it again with another --listen: its server, the node's
// agent and admin.yaml all follow, and the pods do not notice.
func TestDevMoves(t *testing.T) {
	d := devs(t, "fv", "d1")[0]
	d.start(t)
	address := d.app(t)
	before, processes := d.containers(t), d.processes(t)
	d.stop(t)
	d.start(t, "--listen", "127.0.0.1:7543")
	pause(t, longerThanALease)
	if now := d.containers(t); now != before {
		t.Errorf("the containers are\n%s\nthey were\n%s", now, before)
	}
	if now := d.processes(t); now != processes {
		t.Errorf("the processes are %s, they were %s", now, processes)
	}
	must(t, d.answers(t, address))
}

// TestAgentIsToldOtherServers moves the only server to another port, and tells
// the agent with --join.
func TestAgentIsToldOtherServers(t *testing.T) {
	s, programs := withApp(t, "fx", 1, 1)
	server, agent := s.Servers[0], s.Agents[0]
	before := containers(t, s, agent.Host.Name)
	must(t, agent.Process.Stop(converge))
	must(t, server.Process.Stop(converge))
	moved := server.Host.Address + ":7543"
	var err error
	server.Process, err = server.Host.Start("server", programs.Balsa, "server", "--name", server.Host.Name,
		"--data-dir", filepath.Join(server.Host.Dir, "data"), "--listen", moved)
	must(t, err)
	agent.Process, err = agent.Host.Start("agent", programs.Balsa, "agent", "--name", agent.Host.Name, "--node-ip", agent.Host.Address,
		"--data-dir", filepath.Join(agent.Host.Dir, "data"), "--run-dir", filepath.Join(agent.Host.Dir, "run"),
		"--cgroup-prefix", agent.Host.CgroupPrefix(), "--join", moved)
	must(t, err)
	config, err := pki.ReadConfigFile(s.Admin())
	must(t, err)
	config.Servers = []string{moved}
	must(t, pki.WriteConfigFile(s.Admin(), config))
	pause(t, longerThanALease)
	must(t, s.WaitNodes(t.Context(), 1))
	if after := containers(t, s, agent.Host.Name); after != before {
		t.Errorf("containers changed with their server's address:\nbefore %s\nafter  %s", before, after)
	}
}
