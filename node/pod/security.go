package pod

import (
	"fmt"
	"slices"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

// security merges what the pod and the container say: the container counts.
func (s *step) security(c *container) (runtime.Security, error) {
	pod, own := s.spec().GetSecurityContext(), c.spec.GetSecurityContext()
	if pod == nil {
		pod = &balsav1.PodSecurityContext{}
	}
	if own == nil {
		own = &balsav1.SecurityContext{}
	}
	out := runtime.Security{
		RunAsUser: either(own.RunAsUser, pod.RunAsUser), RunAsGroup: either(own.RunAsGroup, pod.RunAsGroup),
		ReadOnlyRootFS: own.GetReadOnlyRootFilesystem(), Privileged: own.GetPrivileged(),
		AddCapabilities: own.GetCapabilities().GetAdd(), DropCapabilities: own.GetCapabilities().GetDrop(),
		// As in Kubernetes set-uid programs work unless the container says otherwise.
		AllowPrivilegeEscalation: own.AllowPrivilegeEscalation == nil || *own.AllowPrivilegeEscalation,
		SupplementalGroups:       slices.Clone(pod.GetSupplementalGroups()),
		ImageGroups:              pod.GetSupplementalGroupsPolicy() != object.GroupsStrict,
		UnmaskedProc:             own.GetProcMount() == object.ProcMountUnmasked,
	}
	if nonRoot := either(own.RunAsNonRoot, pod.RunAsNonRoot); nonRoot != nil {
		out.RunAsNonRoot = *nonRoot
	}
	if pod.FsGroup != nil {
		out.SupplementalGroups = append(out.SupplementalGroups, *pod.FsGroup)
	}
	profile := own.GetSeccompProfile()
	if profile == nil {
		profile = pod.GetSeccompProfile()
	}
	return out, s.seccomp(&out, profile)
}

func (s *step) seccomp(out *runtime.Security, profile *balsav1.SeccompProfile) error {
	switch profile.GetType() {
	case object.SeccompUnconfined:
		out.SeccompUnconfined = true
	case object.SeccompLocalhost:
		data, ok := s.v.HostFiles.Seccomp[profile.GetLocalhostProfile()]
		if !ok {
			return fmt.Errorf("seccompProfile: the node has no profile %q that can be read: %s", profile.GetLocalhostProfile(), s.v.HostFiles.Problem)
		}
		out.SeccompProfile = data
	}
	return nil
}

func either[T any](own, general *T) *T {
	if own != nil {
		return own
	}
	return general
}

// SeccompProfiles names the node's profiles that a pod refers to.
func SeccompProfiles(p *balsav1.Pod) []string {
	var names []string
	add := func(profile *balsav1.SeccompProfile) {
		if profile.GetType() == object.SeccompLocalhost && !slices.Contains(names, profile.GetLocalhostProfile()) {
			names = append(names, profile.GetLocalhostProfile())
		}
	}
	add(p.GetSpec().GetSecurityContext().GetSeccompProfile())
	for _, c := range object.AllContainers(p.GetSpec()) {
		add(c.GetSecurityContext().GetSeccompProfile())
	}
	return names
}
