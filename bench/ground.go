package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/balsa-run/balsa/chaos/stage"
	"github.com/balsa-run/balsa/chaos/world/host"
)

// Ground is where measures take place.
type Ground struct {
	Programs stage.Programs
	// Prefix is the lab's, Dir holds all that is written. Neither may be in use by
	// anybody else.
	Prefix string
	Dir    string
}

// Take copies the programs below dir, so that who builds meanwhile does not
// change what is measured.
func Take(programs stage.Programs, prefix, dir string) (*Ground, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	g := &Ground{Prefix: prefix, Dir: dir}
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		return nil, err
	}
	for from, to := range map[string]*string{programs.Balsa: &g.Programs.Balsa, programs.Chaos: &g.Programs.Chaos, programs.Echo: &g.Programs.Echo} {
		*to = filepath.Join(dir, "bin", filepath.Base(from))
		if err := copyFile(from, *to); err != nil {
			return nil, err
		}
	}
	return g, nil
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

func (g *Ground) labDir() string { return filepath.Join(g.Dir, "lab") }

// lab lends hosts without a cluster.
func (g *Ground) lab(use func(*host.Lab) error) (err error) {
	lab, err := host.New(g.Prefix, g.labDir())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Close(), os.RemoveAll(g.labDir())) }()
	return use(lab)
}

// cluster lends a new cluster of which every node is Ready.
func (g *Ground) cluster(ctx context.Context, servers, agents int, use func(*stage.Stage) error) error {
	return g.clusterWith(ctx, stage.Options{Servers: servers, Agents: agents}, use)
}

// clusterWith is cluster with further options; where and of what it is made is
// the ground's.
func (g *Ground) clusterWith(ctx context.Context, options stage.Options, use func(*stage.Stage) error) (err error) {
	options.Prefix, options.Dir, options.Binary = g.Prefix, g.labDir(), g.Programs.Balsa
	s, err := stage.Up(ctx, options)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w%s", err, s.Logs(10))
		}
		err = errors.Join(err, s.Down(), os.RemoveAll(g.labDir()))
	}()
	return use(s)
}

// load plays a load of balsa-chaos to its end on the operator's host and reads
// its report.
func (g *Ground) load(ctx context.Context, s *stage.Stage, into any, args ...string) error {
	out := filepath.Join(s.Lab.Dir, "load.json")
	args = append(append([]string{"load"}, args...), "--config", s.Admin(), "--out", out)
	if _, err := s.Operator.Run(ctx, g.Programs.Chaos, args...); err != nil {
		return err
	}
	text, err := os.ReadFile(out)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

// play runs a client on a host to its end and reads its report.
func (g *Ground) play(ctx context.Context, h *host.Host, into any, program string, args ...string) error {
	out := filepath.Join(h.Dir, "report.json")
	if _, err := h.Run(ctx, program, append([]string{"-out", out}, args...)...); err != nil {
		return err
	}
	text, err := os.ReadFile(out)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

// pause waits, or less when ctx ends.
func pause(ctx context.Context, length time.Duration) error {
	timer := time.NewTimer(length)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func readJSON(path string, into any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}
