package bench

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Machine is where the figures are from.
type Machine struct {
	CPU      string
	Cores    int
	MemoryGB float64
	Kernel   string
	System   string
	Disk     string // file system below the lab
}

// ThisMachine reads what /proc and /etc tell; dir lies on the disk in question.
func ThisMachine(dir string) (Machine, error) {
	cpu, err := field("/proc/cpuinfo", "model name")
	if err != nil {
		return Machine{}, err
	}
	memory, err := field("/proc/meminfo", "MemTotal")
	if err != nil {
		return Machine{}, err
	}
	kib, err := strconv.ParseInt(strings.TrimSuffix(memory, " kB"), 10, 64)
	if err != nil {
		return Machine{}, fmt.Errorf("/proc/meminfo: MemTotal %q: %w", memory, err)
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return Machine{}, err
	}
	disk, err := fileSystem(dir)
	return Machine{
		CPU: cpu, Cores: runtime.NumCPU(), MemoryGB: float64(kib) * 1024 / 1e9,
		Kernel: strings.TrimSpace(string(kernel)), System: osName(), Disk: disk,
	}, err
}

// osName is PRETTY_NAME of os-release(5), or "Linux".
func osName() string {
	text, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(value, `"`)
		}
	}
	return "Linux"
}

// field is the first value of a name in a file of "name: value" lines.
func field(path, name string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value), nil
		}
	}
	return "", errors.Join(fmt.Errorf("%s has no %q", path, name), lines.Err())
}

// fileSystem names the type of the file system that holds dir: the mount whose
// point is its longest prefix.
func fileSystem(dir string) (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	best, kind := "", "unknown"
	for line := range strings.Lines(string(mounts)) {
		words := strings.Fields(line)
		if len(words) < 3 || len(words[1]) < len(best) {
			continue
		}
		if point := strings.TrimSuffix(words[1], "/"); dir == point || strings.HasPrefix(dir, point+"/") {
			best, kind = words[1], words[2]
		}
	}
	return kind, nil
}

// Load is how busy the machine was during a measure: the load average over one
// minute, our own part included.
type Load struct{ Before, Least, Most float64 }

func (l Load) String() string {
	return fmt.Sprintf("load average %.1f before, %.1f to %.1f during", l.Before, l.Least, l.Most)
}

const meterEvery = time.Second

// meter reads the load average again and again.
type meter struct {
	done chan struct{}
	ends sync.WaitGroup
	load Load // read after ends
}

func startMeter() *meter {
	now := loadAverage()
	m := &meter{done: make(chan struct{}), load: Load{Before: now, Least: now, Most: now}}
	m.ends.Go(m.run)
	return m
}

func (m *meter) run() {
	ticker := time.NewTicker(meterEvery)
	defer ticker.Stop()
	for {
		select {
		case <-m.done:
			return
		case <-ticker.C:
			now := loadAverage()
			m.load.Least, m.load.Most = min(m.load.Least, now), max(m.load.Most, now)
		}
	}
}

func (m *meter) stop() Load {
	close(m.done)
	m.ends.Wait()
	return m.load
}

// loadAverage is that of the last minute; a kernel that does not tell has none.
func loadAverage() float64 {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), " ")
	average, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return average
}
