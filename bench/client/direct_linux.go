package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/balsa-run/balsa/internal/helpers"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/runtime/runc"
)

// timings are what the peers' clients report as well, in milliseconds.
type timings struct {
	TookMS []float64 `json:"tookMS"`
	WallMS []float64 `json:"wallMS,omitempty"`
}

const container = "main"

// node is a node's runtime by itself.
type node struct {
	rt    *runc.Runtime
	image runtime.Image
	args  []string
}

// direct does without servers and agent.
func direct(ctx context.Context, o options) (report timings, err error) {
	n, err := open(ctx, o)
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, n.rt.Close()) }()
	if o.what == "direct-execs" {
		n.args = []string{"sleep", "3600"}
		return n.execs(ctx, o)
	}
	for round := range o.count + 1 {
		took, wall, err := n.round(ctx, round, o.size)
		if err != nil {
			return report, err
		}
		if round > 0 {
			report.TookMS, report.WallMS = append(report.TookMS, took...), append(report.WallMS, wall)
		}
	}
	return report, nil
}

func open(ctx context.Context, o options) (*node, error) {
	programs := helpers.Paths{}
	for pattern, to := range map[string]*string{"balsa-shim-*": &programs.Shim, "balsa-runc-*": &programs.Runc} {
		found, err := filepath.Glob(filepath.Join(o.helpers, pattern))
		if err != nil || len(found) != 1 {
			return nil, errors.Join(fmt.Errorf("%s has %d programs %s, want one", o.helpers, len(found), pattern), err)
		}
		*to = found[0]
	}
	entries, err := os.ReadDir(o.layer)
	if err != nil {
		return nil, err
	}
	image := runtime.Image{Digest: "sha256:bench", Layers: []string{o.layer}, Env: []string{"PATH=/"}, User: "65534:65534"}
	for _, entry := range entries {
		if !entry.IsDir() {
			image.Entrypoint = []string{"/" + entry.Name()}
		}
	}
	rt, err := runc.Open(ctx, runc.Options{Dir: o.dir, CgroupPrefix: o.cgroup, Helpers: programs, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return nil, err
	}
	return &node{rt: rt, image: image}, nil
}

// one brings a pod from nothing to a running container.
func (n *node) one(ctx context.Context, name string) error {
	uid := runtime.PodUID(name)
	if _, err := n.rt.RunPod(ctx, runtime.PodConfig{UID: uid, Namespace: "default", Name: name, Hostname: name}); err != nil {
		return err
	}
	return n.rt.RunContainer(ctx, uid, runtime.ContainerConfig{Name: container, Image: n.image, Args: n.args})
}

// round starts pods at once and removes them.
func (n *node) round(ctx context.Context, round, size int) (took []float64, wall float64, err error) {
	took = make([]float64, size)
	failed := make([]error, size)
	began := time.Now()
	var starts sync.WaitGroup
	for i := range size {
		starts.Go(func() {
			began := time.Now()
			failed[i] = n.one(ctx, podName(round, i))
			took[i] = since(began)
		})
	}
	starts.Wait()
	wall = since(began)
	for i := range size {
		failed[i] = errors.Join(failed[i], n.rt.RemovePod(context.WithoutCancel(ctx), runtime.PodUID(podName(round, i))))
	}
	return took, wall, errors.Join(failed...)
}

func podName(round, i int) string { return fmt.Sprintf("r%d-%d", round, i) }

func since(began time.Time) float64 { return float64(time.Since(began)) / float64(time.Millisecond) }

// execs runs a program again and again in one container.
func (n *node) execs(ctx context.Context, o options) (report timings, err error) {
	const name = "exec"
	defer func() { err = errors.Join(err, n.rt.RemovePod(context.WithoutCancel(ctx), name)) }()
	if err := n.one(ctx, name); err != nil {
		return report, err
	}
	for range o.count {
		began := time.Now()
		exit, err := n.rt.Exec(ctx, name, container, runtime.ExecConfig{Args: o.args})
		if err != nil {
			return report, err
		}
		if exit.Code != 0 {
			return report, fmt.Errorf("%v ended with exit code %d", o.args, exit.Code)
		}
		report.TookMS = append(report.TookMS, since(began))
	}
	return report, nil
}
