package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/balsa-run/balsa/chaos/stage"
)

const (
	densePods = 110 // as many as a node takes
	// restFor is after the last pod was ready; then come windows of idleness.
	restFor     = 15 * time.Second
	idleWindow  = 10 * time.Second
	idleWindows = 3
)

// density fills a node and lets it rest; then a containerd does the same.
func (g *PodGround) density(windows int) []Measure {
	t := newTrial(func(ctx context.Context, t *takings) error {
		return g.cluster(ctx, 1, 1, func(s *stage.Stage) error {
			if err := startPods(ctx, s, g.Programs.Echo, densePods); err != nil {
				return err
			}
			if err := pause(ctx, restFor); err != nil {
				return err
			}
			agent := []int{s.Agents[0].Process.Pid()}
			if err := atRest(ctx, t, "density", s.Lab.Dir, shimProgram, agent, windows); err != nil {
				return err
			}
			if err := g.containerdDensity(ctx, s, t, windows); err != nil {
				for _, name := range []string{"rss", "shim-pss", "idle-cpu"} {
					t.failed["containerd-density-"+name] = err
				}
			}
			for _, name := range []string{"rss", "shim-pss", "idle-cpu"} {
				t.compare("density-"+name, "containerd-density-"+name)
			}
			return nil
		})
	})
	who := fmt.Sprintf("With %d pods at rest on one node", densePods)
	peer := fmt.Sprintf("With %d containers of the same image at rest in Debian's containerd, each with a shim of its own", densePods)
	return []Measure{
		part{t, "density-rss", who + ": how much resident memory (RSS) has the agent? It keeps network, services, DNS, images, probes and logs as well. A value is one reading.", megabytes(), []Target{{Of: Maximum, Under: 60}}},
		part{t, "density-shim-pss", who + ": how much memory has each shim, with what is shared counted in equal parts (PSS)? A value is one shim.", fineMegabytes(), []Target{{Of: Maximum, Under: 1.5}}},
		part{t, "density-idle-cpu", fmt.Sprintf("%s: how much CPU do the agent and all shims use together? A value is %v.", who, idleWindow), ofACore(), []Target{{Of: Maximum, Under: 2}}},
		part{t, "containerd-density-rss", peer + ": how much resident memory has the daemon? It has no network, no services, no DNS and no connection to a cluster.", megabytes(), nil},
		part{t, "containerd-density-shim-pss", peer + ": how much memory has each containerd-shim-runc-v2 (PSS)?", fineMegabytes(), nil},
		part{t, "containerd-density-idle-cpu", fmt.Sprintf("%s: how much CPU do the daemon and all shims use together? A value is %v.", peer, idleWindow), ofACore(), nil},
	}
}

func (g *PodGround) containerdDensity(ctx context.Context, s *stage.Stage, t *takings, windows int) error {
	c, err := g.startContainerd(ctx, s, g.Programs.Echo)
	if err != nil {
		return err
	}
	out := filepath.Join(c.dir, "hold.json")
	holder, err := c.host.Start("hold", g.Peers.program("containerd-client"),
		append([]string{"-out", out, "-count", strconv.Itoa(densePods)}, c.flags("hold", containerdHub+echoImage)...)...)
	if err != nil {
		return err
	}
	err = s.Until(ctx, rolloutFor, "containerd's containers to run", func(context.Context) error {
		if !holder.Running() {
			return fmt.Errorf("its client has ended: %s", holder.Tail(5))
		}
		_, err := os.Stat(out)
		return err
	})
	if err != nil {
		return err
	}
	if err := pause(ctx, restFor); err != nil {
		return err
	}
	return atRest(ctx, t, "containerd-density", g.Peers.debian(), containerdShim, []int{c.pid}, windows)
}

// atRest reads the memory of a daemon and its shims, and what they use while
// nothing happens.
func atRest(ctx context.Context, t *takings, name, dir, shim string, daemon []int, windows int) error {
	pids, err := processesOf(dir, shim, densePods)
	if err != nil {
		return err
	}
	memory, err := memoryOfAll(pids)
	if err != nil {
		return err
	}
	for _, m := range memory {
		t.add(name+"-shim-pss", m.pss)
	}
	t.note(name+"-shim-pss", "%s", describe(memory))
	var last []mapped
	for range windows {
		before, err := cpuOf(daemon, pids)
		if err != nil {
			return err
		}
		began := time.Now()
		if err := pause(ctx, idleWindow); err != nil {
			return err
		}
		after, err := cpuOf(daemon, pids)
		if err != nil {
			return err
		}
		took := time.Since(began)
		t.add(name+"-idle-cpu", 100*float64(after.all()-before.all())/float64(took))
		t.note(name+"-idle-cpu", "in %v the daemon used %.1f ms, all %d shims together %.1f ms", took.Round(time.Millisecond),
			1000*(after.daemon-before.daemon).Seconds(), len(pids), 1000*(after.shims-before.shims).Seconds())
		if last, err = memoryOfAll(daemon); err != nil {
			return err
		}
		t.add(name+"-rss", last[0].rss)
	}
	t.note(name+"-rss", "%s", describe(last))
	return nil
}

// cpu is what processes have used.
type cpu struct{ daemon, shims time.Duration }

func (c cpu) all() time.Duration { return c.daemon + c.shims }

func cpuOf(daemon, shims []int) (cpu, error) {
	var c cpu
	for _, of := range []struct {
		pids []int
		to   *time.Duration
	}{{daemon, &c.daemon}, {shims, &c.shims}} {
		for _, pid := range of.pids {
			used, err := cpuOfOne(pid)
			if err != nil {
				return c, err
			}
			*of.to += used
		}
	}
	return c, nil
}

// cpuOfOne adds up the threads' time on a processor to the nanosecond:
// /proc/PID/stat counts in hundredths of a second, too coarse for a hundred
// processes that do next to nothing.
func cpuOfOne(pid int) (time.Duration, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		first, _, _ := strings.Cut(string(text), " ")
		used, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		sum += time.Duration(used)
	}
	if sum == 0 {
		return 0, fmt.Errorf("process %d has ended", pid)
	}
	return sum, nil
}
