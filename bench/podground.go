package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/balsa-run/balsa/chaos/stage"
	"github.com/balsa-run/balsa/chaos/world/host"
)

// PodGround is a Ground with what the measures of pods need besides.
type PodGround struct {
	*Ground
	// Client is the program bench/client.
	Client string
	// EchoProgram is what the echo image has in it, Shell a static busybox, and
	// ShellImage the archive of an image of it.
	EchoProgram, Shell, ShellImage string
	Peers                          Peers
}

// Peers are what Balsa is measured against, as tools/peers/fetch leaves it.
type Peers struct {
	Dir string
	// Missing tells why they are not there; nil: they are.
	Missing error
}

// Versions says what the peers are, for the document.
func (p Peers) Versions() string {
	text, err := os.ReadFile(filepath.Join(p.Dir, "debian", "versions"))
	if err != nil {
		return "no peers"
	}
	return strings.Join(strings.Fields(string(text)), ", ")
}

func (p Peers) program(name string) string { return filepath.Join(p.Dir, name) }
func (p Peers) debian() string             { return filepath.Join(p.Dir, "debian") }

// timings are what the clients of Balsa's runtime and of containerd report.
type timings struct {
	TookMS []float64 `json:"tookMS"`
	WallMS []float64 `json:"wallMS"`
}

// layer unpacks, so to speak, an image of one program.
func (g *PodGround) layer(h *host.Host, program string) (string, error) {
	dir := filepath.Join(h.Dir, "layer-"+filepath.Base(program))
	for _, sub := range []string{"etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return "", err
		}
	}
	return dir, copyFile(program, filepath.Join(dir, filepath.Base(program)))
}

// direct is how the client is told to use a node's runtime without its agent.
func (g *PodGround) direct(s *stage.Stage, program string) ([]string, error) {
	h := s.Agents[0].Host
	layer, err := g.layer(h, program)
	if err != nil {
		return nil, err
	}
	found, err := filepath.Glob(filepath.Join(h.Dir, "data", "*", "bin"))
	if err != nil || len(found) != 1 {
		return nil, errors.Join(fmt.Errorf("the agent has written its helper programs to %d folders, want one", len(found)), err)
	}
	return []string{"-helpers", found[0], "-layer", layer, "-dir", filepath.Join(h.Dir, "direct"), "-cgroup", "/" + g.Prefix + "-direct"}, nil
}

// containerd runs on a host of the lab, with everything it writes below the
// host's folder.
type containerd struct {
	ground *PodGround
	host   *host.Host
	pid    int
	socket string
	dir    string
}

const containerdConfig = `version = 2
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "%[2]s"
[ttrpc]
  address = "%[2]s.ttrpc"
`

// startContainerd returns once it answers, with the archives imported.
func (g *PodGround) startContainerd(ctx context.Context, s *stage.Stage, archives ...string) (*containerd, error) {
	if g.Peers.Missing != nil {
		return nil, g.Peers.Missing
	}
	h := s.Agents[0].Host
	c := &containerd{ground: g, host: h, dir: filepath.Join(h.Dir, "containerd")}
	c.socket = filepath.Join(c.dir, "s")
	if err := os.MkdirAll(filepath.Join(c.dir, "logs"), 0o755); err != nil {
		return nil, err
	}
	config := filepath.Join(c.dir, "config.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, containerdConfig, c.dir, c.socket), 0o644); err != nil {
		return nil, err
	}
	bin, sbin := filepath.Join(g.Peers.debian(), "usr", "bin"), filepath.Join(g.Peers.debian(), "usr", "sbin")
	process, err := h.Start("containerd", "env", "PATH="+bin+":"+sbin+":"+os.Getenv("PATH"), filepath.Join(bin, "containerd"), "--config", config)
	if err != nil {
		return nil, err
	}
	c.pid = process.Pid()
	err = s.Until(ctx, rolloutFor, "containerd to listen", func(context.Context) error {
		if !process.Running() {
			return errors.New("it has ended: " + process.Tail(5))
		}
		_, err := os.Stat(c.socket)
		return err
	})
	for _, archive := range archives {
		if err == nil {
			_, err = h.Run(ctx, g.Peers.program("containerd-client"), c.flags("import", archive)...)
		}
	}
	return c, err
}

func (c *containerd) flags(args ...string) []string {
	return append([]string{"-socket", c.socket, "-logs", filepath.Join(c.dir, "logs"), "-namespace", c.ground.Prefix + "-peer"}, args...)
}

// play has containerd's client do something and tell how long it took.
func (c *containerd) play(ctx context.Context, args ...string) (timings, error) {
	var t timings
	return t, c.ground.play(ctx, c.host, &t, c.ground.Peers.program("containerd-client"), c.flags(args...)...)
}

// The images as containerd names them.
const (
	echoImage      = "balsa/echo:1"
	shellImage     = "balsa/busybox:1"
	containerdHub  = "docker.io/"
	containerdShim = "containerd-shim-runc-v2"
)
