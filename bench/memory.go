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
	idleFor    = 15 * time.Second // of quiet before the first reading
	readEvery  = 2 * time.Second
	shimPods   = 10
	rolloutFor = 60 * time.Second
)

// ServerMemory reads the resident memory of idle servers.
type ServerMemory struct {
	Ground   *Ground
	Readings int
}

// Name is "server-rss".
func (ServerMemory) Name() string { return "server-rss" }

// Question is what is measured.
func (ServerMemory) Question() string {
	return fmt.Sprintf("How much resident memory (RSS) has each of three servers, %v after a new cluster of two nodes was ready, without pods or requests? A value is one reading of one server.", idleFor)
}

// Unit is megabytes of a million bytes.
func (ServerMemory) Unit() Unit { return megabytes() }

// Targets is the promise, for every reading.
func (ServerMemory) Targets() []Target { return []Target{{Of: Maximum, Under: 60}} }

// Run reads the servers' memory.
func (m ServerMemory) Run(ctx context.Context) (samples Samples, err error) {
	err = m.Ground.cluster(ctx, clusterServers, clusterAgents, func(s *stage.Stage) error {
		samples, err = readIdle(ctx, s.Servers, m.Readings)
		return err
	})
	return samples, err
}

// AgentMemory reads the resident memory of idle agents.
type AgentMemory struct {
	Ground   *Ground
	Readings int
}

// Name is "agent-rss".
func (AgentMemory) Name() string { return "agent-rss" }

// Question is what is measured.
func (AgentMemory) Question() string {
	return fmt.Sprintf("How much resident memory (RSS) has each of two agents, %v after a new cluster was ready, without pods? A value is one reading of one agent.", idleFor)
}

// Unit is megabytes of a million bytes.
func (AgentMemory) Unit() Unit { return megabytes() }

// Targets is the promise, for every reading.
func (AgentMemory) Targets() []Target { return []Target{{Of: Maximum, Under: 40}} }

// Run reads the agents' memory.
func (m AgentMemory) Run(ctx context.Context) (samples Samples, err error) {
	err = m.Ground.cluster(ctx, clusterServers, clusterAgents, func(s *stage.Stage) error {
		samples, err = readIdle(ctx, s.Agents, m.Readings)
		return err
	})
	return samples, err
}

// readIdle reads each member's memory again and again.
func readIdle(ctx context.Context, members []*stage.Member, readings int) (Samples, error) {
	samples := Samples{}
	if err := pause(ctx, idleFor); err != nil {
		return samples, err
	}
	var last []mapped
	for range readings {
		last = last[:0]
		for _, member := range members {
			memory, err := memoryOf(member.Process.Pid())
			if err != nil {
				return samples, fmt.Errorf("%s: %w", member.Host.Name, err)
			}
			last = append(last, memory)
			samples.Values = append(samples.Values, memory.rss)
		}
		if err := pause(ctx, readEvery); err != nil {
			return samples, err
		}
	}
	samples.Notes = append(samples.Notes, "at the last reading, "+describe(last))
	return samples, nil
}

// ShimMemory reads what each pod's shim adds to the machine's memory.
type ShimMemory struct {
	Ground   *Ground
	Readings int
}

// Name is "shim-pss".
func (ShimMemory) Name() string { return "shim-pss" }

// Question is what is measured.
func (ShimMemory) Question() string {
	return fmt.Sprintf("How much memory, with what is shared counted in equal parts (PSS), has each shim of %d running pods on one node? A value is one reading of one shim.", shimPods)
}

// Unit is megabytes of a million bytes.
func (ShimMemory) Unit() Unit { return Unit{Name: "MB", Decimals: 2} }

// Targets is the promise, for every reading.
func (ShimMemory) Targets() []Target { return []Target{{Of: Maximum, Under: 2.5}} }

// Run starts pods and reads the memory of their shims.
func (m ShimMemory) Run(ctx context.Context) (samples Samples, err error) {
	err = m.Ground.cluster(ctx, 1, 1, func(s *stage.Stage) error {
		if err := startPods(ctx, s, m.Ground.Programs.Echo, shimPods); err != nil {
			return err
		}
		var last []mapped
		for range m.Readings {
			if err := pause(ctx, readEvery); err != nil {
				return err
			}
			if last, err = shims(s.Lab.Dir); err != nil {
				return err
			}
			for _, memory := range last {
				samples.Values = append(samples.Values, memory.pss)
			}
		}
		samples.Notes = append(samples.Notes, "at the last reading, "+describe(last))
		return nil
	})
	return samples, err
}

// shimProgram begins the file name of shims; a hash of the content follows.
const shimProgram = "balsa-shim-"

const podsManifest = `apiVersion: apps/v1
kind: Deployment
metadata: {name: shims, namespace: default}
spec:
  replicas: %d
  selector: {matchLabels: {app: shims}}
  template:
    metadata: {labels: {app: shims}}
    spec:
      containers: [{name: main, image: "balsa/echo:1"}]
`

func startPods(ctx context.Context, s *stage.Stage, archive string, count int) error {
	if _, err := s.Balsa(ctx, "image", "import", archive); err != nil {
		return err
	}
	if err := writeManifest(ctx, s, "shims", fmt.Sprintf(podsManifest, count)); err != nil {
		return err
	}
	_, err := s.WaitReady(ctx, "default", count, rolloutFor)
	return err
}

// writeManifest applies it.
func writeManifest(ctx context.Context, s *stage.Stage, name, manifest string) error {
	path := filepath.Join(s.Lab.Dir, name+".yaml")
	if err := os.WriteFile(path, []byte(manifest), 0o644); err != nil {
		return err
	}
	_, err := s.Balsa(ctx, "apply", "-f", path)
	return err
}

// shims reads the memory of every shim whose program lies below dir.
func shims(dir string) ([]mapped, error) {
	pids, err := processesOf(dir, shimProgram, shimPods)
	if err != nil {
		return nil, err
	}
	return memoryOfAll(pids)
}

// processesOf finds the processes whose program lies below dir and has a name
// that begins with prefix; there must be so many.
func processesOf(dir, prefix string, want int) ([]int, error) {
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, link := range links {
		program, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(program, dir+"/") || !strings.HasPrefix(filepath.Base(program), prefix) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	if len(pids) != want {
		return nil, fmt.Errorf("%d processes of %s* run for %d pods", len(pids), prefix, want)
	}
	return pids, nil
}

func memoryOfAll(pids []int) ([]mapped, error) {
	var found []mapped
	for _, pid := range pids {
		memory, err := memoryOf(pid)
		if err != nil {
			return nil, err
		}
		found = append(found, memory)
	}
	return found, nil
}

// mapped is what a process has in memory, in megabytes of a million bytes.
type mapped struct {
	rss, pss float64
	program  float64 // resident pages of the program's file
	files    float64 // of other files, such as a database that is mapped
	own      float64 // of no file: heap and stacks
}

func memoryOf(pid int) (mapped, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return mapped{}, err
	}
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return mapped{}, err
	}
	memory := parseSmaps(string(text), program)
	if memory.rss == 0 {
		return memory, fmt.Errorf("process %d has no memory: it has ended", pid)
	}
	return memory, nil
}

// parseSmaps adds up /proc/PID/smaps (proc_pid_smaps(5)): a mapping is a line of
// addresses with a path, or none, and lines of "Name: N kB".
func parseSmaps(text, program string) mapped {
	var m mapped
	path := ""
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) >= 5 && strings.Contains(words[0], "-") {
			path = strings.Join(words[min(5, len(words)):], " ")
			continue
		}
		if len(words) != 3 || words[2] != "kB" {
			continue
		}
		kib, err := strconv.ParseFloat(words[1], 64)
		if err != nil {
			continue
		}
		switch megabytes := kib * 1024 / 1e6; words[0] {
		case "Rss:":
			m.rss += megabytes
			*m.share(path, program) += megabytes
		case "Pss:":
			m.pss += megabytes
		}
	}
	return m
}

func (m *mapped) share(path, program string) *float64 {
	switch {
	case path == program:
		return &m.program
	case strings.HasPrefix(path, "/"):
		return &m.files
	}
	return &m.own
}

// describe tells what the memory of several processes consists of.
func describe(all []mapped) string {
	part := func(of func(mapped) float64) float64 {
		values := make([]float64, 0, len(all))
		for _, m := range all {
			values = append(values, of(m))
		}
		return Median.Of(values)
	}
	return fmt.Sprintf("the median process had %.1f MB of heap and stacks, %.1f MB of its program's file (shared by all that run it) and %.1f MB of other files mapped; RSS %.1f MB, PSS %.1f MB",
		part(func(m mapped) float64 { return m.own }), part(func(m mapped) float64 { return m.program }), part(func(m mapped) float64 { return m.files }),
		part(func(m mapped) float64 { return m.rss }), part(func(m mapped) float64 { return m.pss }))
}
