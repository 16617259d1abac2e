package runtime

import (
	"fmt"
	"path"
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
			return fmt.Errorf("pod %s: %s has %d bytes, at most %d are allowed: %w", p.UID, name, len(content), MaxPodFileBytes, ErrInvalid)
		}
	}
	return nil
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
	return nil
}

func (c ContainerConfig) checkLimits() error {
	r := c.Resources
	switch {
	case r.MemoryLimitBytes != 0 && r.MemoryLimitBytes < MinMemoryLimitBytes:
		return c.invalid("memory limit of %d bytes: at least %d are needed to start a process", r.MemoryLimitBytes, MinMemoryLimitBytes)
	case r.CPUQuotaMicros != 0 && r.CPUQuotaMicros < MinCPUQuotaMicros:
		return c.invalid("cpu quota of %d microseconds: at least %d", r.CPUQuotaMicros, MinCPUQuotaMicros)
	case r.CPUShares == 1 || r.CPUShares > 262144:
		return c.invalid("cpu shares %d: want 2 to 262144, or 0 for the default", r.CPUShares)
	case r.PidsLimit < 0:
		return c.invalid("pids limit %d: want 1 or more, or 0 for %d", r.PidsLimit, DefaultPidsLimit)
	case r.OOMScoreAdj < -1000 || r.OOMScoreAdj > 1000:
		return c.invalid("oom score adjustment %d: want -1000 to 1000", r.OOMScoreAdj)
	case c.Log.MaxBytes != 0 && c.Log.MaxBytes < MinLogMaxBytes:
		return c.invalid("log file size of %d bytes: at least %d", c.Log.MaxBytes, MinLogMaxBytes)
	case c.Log.MaxFiles < 0 || c.Log.MaxFiles > MaxLogMaxFiles:
		return c.invalid("%d log files: want 1 to %d", c.Log.MaxFiles, MaxLogMaxFiles)
	}
	return nil
}

func (c ContainerConfig) invalid(format string, args ...any) error {
	return fmt.Errorf("container %s: %s: %w", c.Name, fmt.Sprintf(format, args...), ErrInvalid)
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
