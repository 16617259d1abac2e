package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/hostcap"
)

// machine is what this process may do here: a container cannot be given more
// than its starter has, and asking for it fails the start.
type machine struct {
	noFile      uint64 // the hard RLIMIT_NOFILE, and for who may raise that, fs.nr_open
	oomScoreAdj int
	caps        []string // "CAP_..." of the bounding set
}

func thisMachine() (machine, error) {
	var m machine
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return m, fmt.Errorf("read RLIMIT_NOFILE: %w", err)
	}
	m.noFile = limit.Max
	content, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return m, fmt.Errorf("read oom_score_adj: %w", err)
	}
	if m.oomScoreAdj, err = strconv.Atoi(strings.TrimSpace(string(content))); err != nil {
		return m, fmt.Errorf("read oom_score_adj: %w", err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return m, fmt.Errorf("read capabilities: %w", err)
	}
	if m.caps, err = boundingSet(status); err != nil {
		return m, err
	}
	if m.privileged() {
		m.noFile, err = mostFiles()
	}
	return m, err
}

// privileged: may raise hard limits.
func (m machine) privileged() bool { return slices.Contains(m.caps, "CAP_SYS_RESOURCE") }

// mostFiles is what not even CAP_SYS_RESOURCE gets beyond.
func mostFiles() (uint64, error) {
	content, err := os.ReadFile("/proc/sys/fs/nr_open")
	if err != nil {
		return 0, fmt.Errorf("read fs.nr_open: %w", err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(content)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read fs.nr_open: %w", err)
	}
	return n, nil
}

// boundingSet reads CapBnd from /proc/PID/status.
func boundingSet(status []byte) ([]string, error) {
	_, rest, ok := bytes.Cut(status, []byte("\nCapBnd:\t"))
	if !ok {
		return nil, errors.New("read capabilities: /proc/self/status has no CapBnd")
	}
	digits, _, _ := bytes.Cut(rest, []byte("\n"))
	mask, err := strconv.ParseUint(string(digits), 16, 64)
	if err != nil {
		return nil, fmt.Errorf("read capabilities: %w", err)
	}
	var caps []string
	for i, name := range hostcap.Names() {
		if mask&(1<<i) != 0 {
			caps = append(caps, name)
		}
	}
	return caps, nil
}

// clamp lowers what the machine does not allow; see the fields of machine.
func (m machine) clamp(spec *specs.Spec) {
	p := spec.Process
	for i := range p.Rlimits {
		if l := &p.Rlimits[i]; l.Type == "RLIMIT_NOFILE" {
			l.Hard = min(l.Hard, m.noFile)
			l.Soft = min(l.Soft, l.Hard)
		}
	}
	if p.OOMScoreAdj != nil && *p.OOMScoreAdj < m.oomScoreAdj && !m.privileged() {
		p.OOMScoreAdj = &m.oomScoreAdj
	}
	if p.Capabilities != nil {
		for _, set := range []*[]string{&p.Capabilities.Bounding, &p.Capabilities.Effective, &p.Capabilities.Permitted} {
			*set = slices.DeleteFunc(*set, func(name string) bool { return !slices.Contains(m.caps, name) })
		}
	}
}

// rlimitNumber: the agent asks for open files and core dumps only.
func rlimitNumber(name string) (int, bool) {
	switch name {
	case "RLIMIT_NOFILE":
		return unix.RLIMIT_NOFILE, true
	case "RLIMIT_CORE":
		return unix.RLIMIT_CORE, true
	}
	return 0, false
}
