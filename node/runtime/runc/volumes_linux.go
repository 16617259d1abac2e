package runc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/hostmount"
	"github.com/balsa-run/balsa/node/runtime"
)

// stageVolumes turns a container's mounts into plain binds: sub paths are
// resolved and ids mapped here, on mounts of their own below the attempt's
// directory, so that nothing that the pod does to its links meanwhile counts.
func (p *pod) stageVolumes(id string, mounts []runtime.Mount) ([]runtime.Mount, error) {
	out := slices.Clone(mounts)
	for i := range out {
		m := &out[i]
		if err := checkPropagation(*m); err != nil {
			return nil, err
		}
		if m.SubPath == "" && !m.Mapped {
			continue
		}
		dir := filepath.Join(p.dir, containersDir, id, volumesDir)
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		clone := hostmount.Clone{Source: m.HostPath, SubPath: m.SubPath, Target: filepath.Join(dir, strconv.Itoa(i))}
		switch m.Propagation {
		case runtime.PropagationHostToContainer:
			clone.Propagation = unix.MS_SLAVE
		case runtime.PropagationBidirectional:
			clone.Propagation = unix.MS_SHARED
		}
		if m.Mapped {
			clone.UserNS = p.nsFile("user")
		}
		if err := clone.Mount(); err != nil {
			if unusable(err) {
				err = fmt.Errorf("%w: %w", err, runtime.ErrInvalid)
			}
			return nil, fmt.Errorf("mount at %s: %w", m.ContainerPath, err)
		}
		m.HostPath, m.SubPath = clone.Target, ""
	}
	return out, nil
}

// unusable: the same paths would fail again.
func unusable(err error) bool {
	return errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL)
}

// checkPropagation refuses what would silently not happen.
func checkPropagation(m runtime.Mount) error {
	if m.Propagation == "" {
		return nil
	}
	at, shared, slave, err := hostmount.Shared(m.HostPath)
	if err != nil {
		return fmt.Errorf("mount at %s: %w", m.ContainerPath, err)
	}
	if shared || slave && m.Propagation == runtime.PropagationHostToContainer {
		return nil
	}
	return fmt.Errorf("mount at %s: mountPropagation %s: %s lies on the mount %s, which is private: run \"mount --make-rshared %s\" on the node: %w",
		m.ContainerPath, m.Propagation, m.HostPath, at, at, runtime.ErrInvalid)
}
