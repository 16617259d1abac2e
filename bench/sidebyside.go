package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/balsa-run/balsa/chaos/stage"
)

const (
	// Of rounds that alternate between Balsa and containerd.
	startsPerRound = 10
	execsPerRound  = 20
)

// nodeStarts starts containers without API, scheduler and agent: what Balsa's
// runtime and containerd do alike, in turns.
func (g *PodGround) nodeStarts(rounds int) []Measure {
	t := newTrial(func(ctx context.Context, t *takings) error {
		return g.cluster(ctx, 1, 1, func(s *stage.Stage) error {
			direct, err := g.direct(s, g.EchoProgram)
			if err != nil {
				return err
			}
			peer, peerErr := g.startContainerd(ctx, s, g.Programs.Echo)
			for round := range rounds {
				err = inTurn(round, func() error { return g.directStarts(ctx, s, t, direct) }, func() error {
					if peerErr == nil {
						peerErr = peerStarts(ctx, t, peer)
					}
					return nil
				})
				if err != nil {
					return err
				}
			}
			for _, name := range []string{"node-start-1", "node-start-20"} {
				if peerErr != nil {
					t.failed["containerd-"+name] = peerErr
				}
				t.compare(name, "containerd-"+name)
			}
			return nil
		})
	})
	one := "how long from nothing to a running container of the echo image: root file system, namespaces, an empty network, seccomp filter, shim, program?"
	return []Measure{
		part{t, "node-start-1", "A node's runtime alone, without servers, API, agent and pod network: " + one + " One after the other. Balsa's pods also have hosts and resolv.conf files, a cgroup of their own, limits and a shared /dev/shm.", milliseconds(), nil},
		part{t, "containerd-node-start-1", "Debian's containerd and runc, by containerd's client library: " + one + " One after the other, in turns with node-start-1.", milliseconds(), nil},
		part{t, "node-start-20", fmt.Sprintf("The same as node-start-1 for each of %d at once.", togetherPods), milliseconds(), nil},
		part{t, "containerd-node-start-20", fmt.Sprintf("The same as containerd-node-start-1 for each of %d at once, in turns with node-start-20.", togetherPods), milliseconds(), nil},
	}
}

// inTurn lets another one begin in each round.
func inTurn(round int, turns ...func() error) error {
	for i := range turns {
		if err := turns[(round+i)%len(turns)](); err != nil {
			return err
		}
	}
	return nil
}

func (g *PodGround) directStarts(ctx context.Context, s *stage.Stage, t *takings, direct []string) error {
	for name, size := range map[string][2]int{"node-start-1": {startsPerRound, 1}, "node-start-20": {1, togetherPods}} {
		var report timings
		args := append(append([]string{}, direct...), "-count", strconv.Itoa(size[0]), "-size", strconv.Itoa(size[1]), "starts")
		if err := g.play(ctx, s.Agents[0].Host, &report, g.Client, args...); err != nil {
			return err
		}
		t.addRounds(name, report, size[1])
	}
	return nil
}

// peerStarts lets one start not count, as the client of Balsa's runtime does.
func peerStarts(ctx context.Context, t *takings, c *containerd) error {
	for name, size := range map[string][2]int{"containerd-node-start-1": {startsPerRound, 1}, "containerd-node-start-20": {1, togetherPods}} {
		report, err := c.play(ctx, "-count", strconv.Itoa(size[0]+1), "-parallel", strconv.Itoa(size[1]), "start", containerdHub+echoImage)
		if err != nil {
			return err
		}
		if len(report.WallMS) == 0 || len(report.TookMS) <= size[1] {
			return errors.New("containerd's client reports no starts")
		}
		report.TookMS, report.WallMS = report.TookMS[size[1]:], report.WallMS[1:]
		t.addRounds(name, report, size[1])
	}
	return nil
}

// addRounds also tells of the rate of starts that happened at once.
func (t *takings) addRounds(name string, report timings, size int) {
	t.add(name, report.TookMS...)
	if size > 1 {
		t.note(name, "a round took %.0f ms in all: %.1f starts a second", Median.Of(report.WallMS), float64(size)*1000/Median.Of(report.WallMS))
	}
}

// execs runs a program that does nothing in a running container: through the API,
// by the runtime alone, and by containerd.
func (g *PodGround) execs(rounds int) []Measure {
	t := newTrial(func(ctx context.Context, t *takings) error {
		return g.cluster(ctx, 1, 1, func(s *stage.Stage) error {
			if err := g.shellPod(ctx, s); err != nil {
				return err
			}
			direct, err := g.direct(s, g.Shell)
			if err != nil {
				return err
			}
			peer, peerErr := g.startContainerd(ctx, s, g.ShellImage)
			for round := range rounds {
				err := inTurn(round,
					func() error { return g.apiExecs(ctx, s, t) },
					func() error { return g.directExecs(ctx, s, t, direct) },
					func() error {
						if peerErr == nil {
							peerErr = g.peerExecs(ctx, t, peer)
						}
						return nil
					})
				if err != nil {
					return err
				}
			}
			if peerErr != nil {
				t.failed["containerd-exec"] = peerErr
			}
			t.compare("exec-api", "exec-node")
			t.compare("exec-node", "containerd-exec")
			return nil
		})
	})
	return []Measure{
		part{t, "exec-api", "How long does `true` (busybox) take in a running container through the API: from the first message to the server, which authorises, audits and asks the node, until its exit code is read? One connection, one after the other.", milliseconds(), nil},
		part{t, "exec-node", "How long does the same take by the node's runtime alone, until the exit code is known?", milliseconds(), nil},
		part{t, "containerd-exec", "How long does the same take by containerd's client library, until the exit code is known? In turns with the other two.", milliseconds(), nil},
	}
}

const shellPod = `apiVersion: v1
kind: Pod
metadata: {name: shell, namespace: default}
spec:
  containers: [{name: main, image: "balsa/busybox:1", args: [sleep, "3600"]}]
`

func (g *PodGround) shellPod(ctx context.Context, s *stage.Stage) error {
	if _, err := s.Balsa(ctx, "image", "import", g.ShellImage); err != nil {
		return err
	}
	if err := writeManifest(ctx, s, "shell", shellPod); err != nil {
		return err
	}
	_, err := s.WaitReady(ctx, "default", 1, rolloutFor)
	return err
}

func (g *PodGround) apiExecs(ctx context.Context, s *stage.Stage, t *takings) error {
	var report timings
	err := g.play(ctx, s.Operator, &report, g.Client, "-config", s.Admin(), "-pod", "shell", "-count", strconv.Itoa(execsPerRound), "execs", g.inContainer(), "true")
	t.add("exec-api", report.TookMS...)
	return err
}

func (g *PodGround) directExecs(ctx context.Context, s *stage.Stage, t *takings, direct []string) error {
	var report timings
	args := append(append([]string{}, direct...), "-count", strconv.Itoa(execsPerRound), "direct-execs", g.inContainer(), "true")
	err := g.play(ctx, s.Agents[0].Host, &report, g.Client, args...)
	t.add("exec-node", report.TookMS...)
	return err
}

func (g *PodGround) peerExecs(ctx context.Context, t *takings, c *containerd) error {
	report, err := c.play(ctx, "-count", strconv.Itoa(execsPerRound), "-args", "sleep 3600", "exec", containerdHub+shellImage, g.inContainer(), "true")
	t.add("containerd-exec", report.TookMS...)
	return err
}

// inContainer is where the images have the shell.
func (g *PodGround) inContainer() string { return "/" + filepath.Base(g.Shell) }
