package runtime

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// maxNameLen is that of a DNS label (RFC 1123), which uids and container names are.
const maxNameLen = 63

// Validate refuses what no runtime can make. The object room has checked the
// manifest already; this guards paths and cgroup names that are built from it.
func (p PodConfig) Validate() error {
	if err := checkLabel("pod uid", string(p.UID)); err != nil {
		return err
	}
	if len(p.Hostname) > maxNameLen || strings.ContainsAny(p.Hostname, "\x00\n") {
		return fmt.Errorf("pod %s: hostname %q: want at most %d characters on one line: %w", p.UID, p.Hostname, maxNameLen, ErrInvalid)
	}
	for name, content := range map[string][]byte{"hosts": p.Hosts, "resolvConf": p.ResolvConf} {
		if len(content) > MaxPodFileBytes {
			return p.invalid("%s has %d bytes, at most %d are allowed", name, len(content), MaxPodFileBytes)
		}
	}
	if err := p.checkNamespaces(); err != nil {
		return err
	}
	if err := p.checkSysctls(); err != nil {
		return err
	}
	if message := p.Resources.problem(); message != "" {
		return p.invalid("resources: %s", message)
	}
	return nil
}

func (p PodConfig) invalid(format string, args ...any) error {
	return fmt.Errorf("pod %s: %w: %w", p.UID, fmt.Errorf(format, args...), ErrInvalid)
}

// ValidateUID refuses a uid that could not name a directory or a cgroup.
func ValidateUID(uid PodUID) error { return checkLabel("pod uid", string(uid)) }

// Validate refuses what no runtime can start.
func (c ContainerConfig) Validate() error {
	if err := checkLabel("container name", c.Name); err != nil {
		return err
	}
	if c.Attempt < 0 {
		return c.invalid("attempt %d: want 0 or more", c.Attempt)
	}
	if n := len(c.Image.Layers); n > MaxLayers {
		return c.invalid("image %s has %d layers, the kernel stacks at most %d", c.Image.Digest, n, MaxLayers)
	}
	for _, m := range c.Mounts {
		if err := c.checkMount(m); err != nil {
			return err
		}
	}
	if c.TargetContainer != "" {
		if err := checkLabel("target container", c.TargetContainer); err != nil {
			return err
		}
	}
	if err := c.checkSecurity(); err != nil {
		return err
	}
	return c.checkLimits()
}

func (c ContainerConfig) checkMount(m Mount) error {
	if !path.IsAbs(m.HostPath) || strings.ContainsRune(m.HostPath, 0) {
		return c.invalid("mount of %q: the host path must be absolute", m.HostPath)
	}
	if !path.IsAbs(m.ContainerPath) || strings.ContainsRune(m.ContainerPath, 0) {
		return c.invalid("mount at %q: the container path must be absolute", m.ContainerPath)
	}
	if path.Clean(m.ContainerPath) == "/" {
		return c.invalid("mount at %q: the root file system cannot be replaced", m.ContainerPath)
	}
	if m.SubPath != "" && !isInner(m.SubPath) {
		return c.invalid("mount at %q: subPath %q: want a relative path without \"..\"", m.ContainerPath, m.SubPath)
	}
	switch m.Propagation {
	case "", PropagationHostToContainer, PropagationBidirectional:
		return nil
	}
	return c.invalid("mount at %q: mountPropagation: found %q, want %s, %s or nothing", m.ContainerPath, m.Propagation,
		PropagationHostToContainer, PropagationBidirectional)
}

// isInner tells whether a path is relative and goes down only.
func isInner(p string) bool {
	return !path.IsAbs(p) && !strings.ContainsRune(p, 0) && !slices.Contains(strings.Split(p, "/"), "..")
}

func (c ContainerConfig) checkLimits() error {
	if message := c.Resources.problem(); message != "" {
		return c.invalid("%s", message)
	}
	switch {
	case c.Log.MaxBytes != 0 && c.Log.MaxBytes < MinLogMaxBytes:
		return c.invalid("log file size of %d bytes: at least %d", c.Log.MaxBytes, MinLogMaxBytes)
	case c.Log.MaxFiles < 0 || c.Log.MaxFiles > MaxLogMaxFiles:
		return c.invalid("%d log files: want 1 to %d", c.Log.MaxFiles, MaxLogMaxFiles)
	}
	return nil
}

// problem says what of the limits the kernel would not take, or "".
func (r Resources) problem() string {
	switch {
	case r.MemoryLimitBytes != 0 && r.MemoryLimitBytes < MinMemoryLimitBytes:
		return fmt.Sprintf("memory limit of %d bytes: at least %d are needed to start a process", r.MemoryLimitBytes, MinMemoryLimitBytes)
	case r.CPUQuotaMicros != 0 && r.CPUQuotaMicros < MinCPUQuotaMicros:
		return fmt.Sprintf("cpu quota of %d microseconds: at least %d", r.CPUQuotaMicros, MinCPUQuotaMicros)
	case r.CPUPeriodMicros != 0 && (r.CPUPeriodMicros < MinCPUPeriodMicros || r.CPUPeriodMicros > MaxCPUPeriodMicros):
		return fmt.Sprintf("cpu period of %d microseconds: want %d to %d", r.CPUPeriodMicros, MinCPUPeriodMicros, MaxCPUPeriodMicros)
	case r.CPUShares == 1 || r.CPUShares > 262144:
		return fmt.Sprintf("cpu shares %d: want 2 to 262144, or 0 for the default", r.CPUShares)
	case r.PidsLimit < 0:
		return fmt.Sprintf("pids limit %d: want 1 or more, or 0 for %d", r.PidsLimit, DefaultPidsLimit)
	case r.OOMScoreAdj < -1000 || r.OOMScoreAdj > 1000:
		return fmt.Sprintf("oom score adjustment %d: want -1000 to 1000", r.OOMScoreAdj)
	}
	return ""
}

func (c ContainerConfig) invalid(format string, args ...any) error {
	return fmt.Errorf("container %s: %w: %w", c.Name, fmt.Errorf(format, args...), ErrInvalid)
}

// WithDefaults fills in the limits that were left zero.
func (l LogLimits) WithDefaults() LogLimits {
	if l.MaxBytes == 0 {
		l.MaxBytes = DefaultLogMaxBytes
	}
	if l.MaxFiles == 0 {
		l.MaxFiles = DefaultLogMaxFiles
	}
	return l
}

func checkLabel(what, s string) error {
	if s == "" || len(s) > maxNameLen {
		return fmt.Errorf("%s %q: want 1 to %d characters: %w", what, s, maxNameLen, ErrInvalid)
	}
	for i := range len(s) {
		if !isLabelByte(s[i], i == 0 || i == len(s)-1) {
			return fmt.Errorf("%s %q: want lower-case letters, digits and inner hyphens: %w", what, s, ErrInvalid)
		}
	}
	return nil
}

func isLabelByte(b byte, edge bool) bool {
	return b >= 'a' && b <= 'z' || b >= '0' && b <= '9' || b == '-' && !edge
}
