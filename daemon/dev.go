package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
)

const devName = "dev"

// DevOptions say how a cluster of one runs.
type DevOptions struct {
	DataDir string
	Listen  string
	Etcd    EtcdOptions
	// CgroupPrefix holds the pods' cgroups; empty: one of the data directory's own.
	CgroupPrefix string
	// Out gets a line when the node is Ready.
	Out    io.Writer
	Logger *slog.Logger
}

// RunDev runs a server and an agent in this process until ctx ends.
func RunDev(ctx context.Context, options DevOptions) error {
	started := time.Now()
	if err := checkMachine(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server := ServerOptions{
		Name: devName, DataDir: options.DataDir, Listen: options.Listen, Etcd: options.Etcd,
		Init: true, Logger: options.Logger.With("part", "server"),
	}
	ended := make(chan error, 2)
	go func() { ended <- RunServer(ctx, server) }()
	go func() { ended <- runDevAgent(ctx, options) }()
	go tellReady(ctx, options, started)
	first := <-ended
	cancel()
	return errors.Join(first, <-ended)
}

func adminOf(dataDir string) string { return filepath.Join(dataDir, adminFile) }

// runDevAgent waits until the server can let an agent in.
func runDevAgent(ctx context.Context, options DevOptions) error {
	address, err := machineAddress(ctx)
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(options.DataDir)
	if err != nil {
		return err
	}
	agent := AgentOptions{
		Name: devName, DataDir: dir, NodeIP: address.String(), Gossip: devGossipPort, Join: []string{options.Listen},
		CgroupPrefix: options.CgroupPrefix, Logger: options.Logger.With("part", "agent"), ResourceOptions: devResources(),
	}
	setDefault(&agent.CgroupPrefix, devCgroup(dir))
	if _, err := pki.OpenAgent(pki.OSDir(filepath.Join(dir, "agent", "identity"))); err != nil {
		if agent.Token, err = devToken(ctx, options); err != nil {
			return err
		}
	}
	return RunAgent(ctx, agent)
}

// devCgroup is a data directory's own: an agent removes what it does not know,
// and must not find another one's pods.
func devCgroup(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return "/balsa-dev-" + hex.EncodeToString(sum[:4])
}

// devGossipPort is the agent's, since the server of the same host has the usual.
const devGossipPort = "7447"

// devToken makes a join token as soon as the server can.
func devToken(ctx context.Context, options DevOptions) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	c, err := devClient(ctx, options)
	if err != nil {
		return "", err
	}
	defer c.Close()
	response, err := c.Cluster.CreateToken(ctx, &balsav1.CreateTokenRequest{Role: string(pki.RoleAgent), Description: "balsa dev"})
	if err != nil {
		return "", fmt.Errorf("make a token for the agent: %w", err)
	}
	return response.GetToken(), nil
}

// devClient waits for the configuration that the server writes when it makes its
// cluster. Where the server is, the options know better: it may have been another
// address when the file was written.
func devClient(ctx context.Context, options DevOptions) (*client.Client, error) {
	path := adminOf(options.DataDir)
	for {
		_, err := os.Stat(path)
		if err == nil {
			c, err := client.FromFile(path)
			if err == nil {
				c.SetServers([]string{options.Listen})
			}
			return c, err
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return nil, fmt.Errorf("the server has not written %s: %w", path, err)
		}
	}
}

func tellReady(ctx context.Context, options DevOptions, started time.Time) {
	c, err := devClient(ctx, options)
	if err != nil {
		return
	}
	defer c.Close()
	_, err = client.Wait(ctx, c, "", devName, func(node *balsav1.Node, exists bool) (bool, string) {
		return exists && object.NodeReady(node), "the node is not Ready"
	})
	if err == nil && options.Out != nil {
		fmt.Fprintf(options.Out, "balsa dev is ready after %v; in this folder: balsa get nodes\n", time.Since(started).Round(time.Millisecond))
	}
}
