package pod

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/volume"
	"github.com/balsa-run/balsa/object"
)

const (
	resourceStorage = "storage"
	hostsMountPath  = "/etc/hosts"
)

// volumes has the pod's volumes made, and brought up to date when what is in
// them has changed. It tells whether containers can be started with them: once
// they are there, what cannot be brought up to date stays as it is.
func (s *step) volumes() bool {
	if len(s.spec().GetVolumes()) == 0 {
		return true
	}
	there := s.mem.Volumes != "" && !slices.ContainsFunc(s.spec().GetVolumes(), func(v *balsav1.Volume) bool { return s.v.VolumePaths[v.GetName()] == "" })
	want, err := s.wantVolumes()
	digest := ""
	if err == nil {
		digest, err = digestOf(want)
	}
	switch {
	case errors.Is(err, errUnbound) && !there: // nothing is wrong: it takes a moment, or a user who makes a volume
		s.waitAll(s.creating(), err.Error())
		return false
	case err != nil:
		s.told(ReasonFailedMount, err.Error())
		if !there {
			s.waitAll(ReasonConfigError, err.Error())
		}
		return there
	case there && digest == s.mem.Volumes:
		return true
	}
	s.tryTo(PrepareVolumes{Pod: want, Digest: digest})
	if !there {
		s.waitAll("", s.mem.Failures[PrepareVolumes{}.Key()].Message)
	}
	return there
}

// digestOf names volumes and what is in them.
func digestOf(want volume.Pod) (string, error) {
	text, err := json.Marshal(want)
	if err != nil {
		return "", fmt.Errorf("volumes of pod %s: %w", want.UID, err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

// wantVolumes resolves the pod's volumes. An error names what is missing.
func (s *step) wantVolumes() (volume.Pod, error) {
	context := s.spec().GetSecurityContext()
	want := volume.Pod{UID: runtime.PodUID(s.uid()), Users: s.mem.Users, OnRootMismatch: context.GetFsGroupChangePolicy() == object.FSGroupOnRootMismatch}
	if context != nil {
		want.FSGroup = context.FsGroup
	}
	for _, spec := range s.spec().GetVolumes() {
		v, err := s.wantVolume(spec)
		if err != nil {
			return volume.Pod{}, fmt.Errorf("volume %q: %w", spec.GetName(), err)
		}
		want.Volumes = append(want.Volumes, v)
	}
	return want, nil
}

func (s *step) wantVolume(spec *balsav1.Volume) (v volume.Volume, err error) {
	v.Name = spec.GetName()
	switch {
	case spec.GetEmptyDir() != nil:
		v.Scratch = &volume.Scratch{Memory: spec.GetEmptyDir().GetMedium() == object.MediumMemory}
		v.Scratch.SizeBytes, err = object.Bytes(spec.GetEmptyDir().GetSizeLimit())
	case spec.GetHostPath() != nil:
		v.HostPath = &volume.HostPath{Path: spec.GetHostPath().GetPath(), Type: volume.HostPathType(spec.GetHostPath().GetType())}
	case spec.GetPersistentVolumeClaim() != nil:
		v.Persistent, err = s.claimed(spec.GetPersistentVolumeClaim())
	default:
		v.Files, err = s.content(spec)
	}
	return v, err
}

var errUnbound = errors.New("is not bound to a volume yet")

// claimed finds the volume that a claim is bound to.
func (s *step) claimed(ref *balsav1.PersistentVolumeClaimVolumeSource) (*volume.Persistent, error) {
	name := s.v.Pod.GetMetadata().GetNamespace() + "/" + ref.GetClaimName()
	claim, ok := s.v.Sources.Claims[ref.GetClaimName()]
	switch {
	case !ok:
		return nil, fmt.Errorf("persistentvolumeclaim %q not found", name)
	case claim.GetMetadata().GetDeletionTimestamp() != nil && !s.begun():
		return nil, fmt.Errorf("persistentvolumeclaim %q is being deleted", name)
	case claim.GetStatus().GetPhase() != object.ClaimBound || claim.GetSpec().GetVolumeName() == "":
		return nil, fmt.Errorf("persistentvolumeclaim %q %w: its phase is %q", name, errUnbound, claim.GetStatus().GetPhase())
	}
	pv, ok := s.v.Sources.Volumes[claim.GetSpec().GetVolumeName()]
	if !ok || object.VolumeNode(pv.GetSpec()) != s.v.Node.Name {
		return nil, fmt.Errorf("persistentvolumeclaim %q is bound to volume %q, which is not on node %s", name, claim.GetSpec().GetVolumeName(), s.v.Node.Name)
	}
	size, err := object.Bytes(pv.GetSpec().GetCapacity()[resourceStorage])
	if err != nil {
		return nil, fmt.Errorf("persistentvolume %q: spec.capacity.storage: %w", pv.GetMetadata().GetName(), err)
	}
	return &volume.Persistent{Name: pv.GetMetadata().GetName(), Path: pv.GetSpec().GetLocal().GetPath(), FSType: pv.GetSpec().GetLocal().GetFsType(),
		SizeBytes: size, ReadOnly: ref.GetReadOnly()}, nil
}

// mounts are those of a container: outer paths first, so that an inner one is
// not hidden.
func (s *step) mounts(c *container, lookup func(string) (string, bool)) ([]runtime.Mount, error) {
	var out []runtime.Mount
	for _, m := range c.spec.GetVolumeMounts() {
		mount, err := s.mount(m, lookup)
		if err != nil {
			return nil, fmt.Errorf("volumeMount at %s: %w", m.GetMountPath(), err)
		}
		out = append(out, mount)
	}
	own := func(at string) bool {
		return slices.ContainsFunc(out, func(m runtime.Mount) bool { return path.Clean(m.ContainerPath) == at })
	}
	if s.v.HostsPath != "" && !own(hostsMountPath) {
		out = append(out, runtime.Mount{HostPath: s.v.HostsPath, ContainerPath: hostsMountPath})
	}
	if at := messagePath(c.spec); s.v.MessagePath != nil && !own(at) {
		if file := s.v.MessagePath(AttemptKey{c.name(), nextAttempt(c)}); file != "" {
			out = append(out, runtime.Mount{HostPath: file, ContainerPath: at})
		}
	}
	slices.SortStableFunc(out, func(a, b runtime.Mount) int { return depth(a.ContainerPath) - depth(b.ContainerPath) })
	return out, nil
}

func messagePath(c *balsav1.Container) string {
	if p := c.GetTerminationMessagePath(); p != "" {
		return path.Clean(p)
	}
	return object.DefaultTerminationMessagePath
}

func depth(p string) int { return strings.Count(path.Clean(p), "/") }

func (s *step) mount(m *balsav1.VolumeMount, lookup func(string) (string, bool)) (runtime.Mount, error) {
	at := slices.IndexFunc(s.spec().GetVolumes(), func(v *balsav1.Volume) bool { return v.GetName() == m.GetName() })
	if at < 0 || s.v.VolumePaths[m.GetName()] == "" {
		return runtime.Mount{}, fmt.Errorf("the pod has no volume %q", m.GetName())
	}
	v := s.spec().GetVolumes()[at]
	sub, err := subPath(m, lookup)
	if err != nil {
		return runtime.Mount{}, err
	}
	kept := v.GetHostPath() != nil || v.GetPersistentVolumeClaim() != nil
	mount := runtime.Mount{
		HostPath: s.v.VolumePaths[m.GetName()], ContainerPath: m.GetMountPath(), SubPath: sub,
		ReadOnly: m.GetReadOnly() || v.GetPersistentVolumeClaim().GetReadOnly() || v.GetEmptyDir() == nil && !kept,
		Mapped:   kept && s.mem.Users != nil,
	}
	if p := runtime.Propagation(m.GetMountPropagation()); p == runtime.PropagationHostToContainer || p == runtime.PropagationBidirectional {
		mount.Propagation = p
	}
	return mount, nil
}

// subPath expands subPathExpr: every variable has to be known, and the path
// stays within the volume.
func subPath(m *balsav1.VolumeMount, lookup func(string) (string, bool)) (string, error) {
	if m.GetSubPathExpr() == "" {
		return m.GetSubPath(), nil
	}
	unknown := ""
	sub := Expand(m.GetSubPathExpr(), func(name string) (string, bool) {
		value, ok := lookup(name)
		if !ok && unknown == "" {
			unknown = name
		}
		return value, ok
	})
	switch {
	case unknown != "":
		return "", fmt.Errorf("subPathExpr %q: the container has no variable %s", m.GetSubPathExpr(), unknown)
	case path.IsAbs(sub) || slices.Contains(strings.Split(sub, "/"), ".."):
		return "", fmt.Errorf("subPathExpr %q is %q, which leaves the volume", m.GetSubPathExpr(), sub)
	}
	return sub, nil
}
