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
	noFile      uint64 // hard RLIMIT_NOFILE
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
	m.caps, err = boundingSet(status)
	return m, err
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
	privileged := slices.Contains(m.caps, "CAP_SYS_RESOURCE")
	for i := range p.Rlimits {
		if l := &p.Rlimits[i]; l.Type == "RLIMIT_NOFILE" && !privileged {
			l.Hard = min(l.Hard, m.noFile)
			l.Soft = min(l.Soft, l.Hard)
		}
	}
	if p.OOMScoreAdj != nil && *p.OOMScoreAdj < m.oomScoreAdj && !privileged {
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
