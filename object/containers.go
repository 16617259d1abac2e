package object

import (
	"iter"
	"strconv"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// ContainerRole tells what a container is in its pod.
type ContainerRole int

const (
	// RoleInit runs to its end before the next one begins.
	RoleInit ContainerRole = iota
	// RoleSidecar begins in the order of init containers and ends after the main
	// ones.
	RoleSidecar
	// RoleMain is one of spec.containers.
	RoleMain
	// RoleEphemeral was added to a pod that runs.
	RoleEphemeral
)

// IsSidecar tells whether an init container is one that stays.
func IsSidecar(c *balsav1.Container) bool { return c.GetRestartPolicy() == RestartAlways }

// AllContainers goes through the containers of a pod: init containers and
// sidecars, main ones, ephemeral ones, each list in its order. An ephemeral
// container comes as a container that shares its parts; do not change it.
func AllContainers(spec *balsav1.PodSpec) iter.Seq2[ContainerRole, *balsav1.Container] {
	return func(yield func(ContainerRole, *balsav1.Container) bool) {
		for _, c := range spec.GetInitContainers() {
			if !yield(initRole(c), c) {
				return
			}
		}
		for _, c := range spec.GetContainers() {
			if !yield(RoleMain, c) {
				return
			}
		}
		for _, e := range spec.GetEphemeralContainers() {
			if !yield(RoleEphemeral, EphemeralAsContainer(e)) {
				return
			}
		}
	}
}

func initRole(c *balsav1.Container) ContainerRole {
	if IsSidecar(c) {
		return RoleSidecar
	}
	return RoleInit
}

// EphemeralAsContainer is an ephemeral container as a container, whose parts it
// shares. What only ephemeral ones have, the target, is left out.
func EphemeralAsContainer(e *balsav1.EphemeralContainer) *balsav1.Container {
	return &balsav1.Container{
		Name: e.GetName(), Image: e.GetImage(), ImagePullPolicy: e.GetImagePullPolicy(), Command: e.GetCommand(), Args: e.GetArgs(),
		WorkingDir: e.GetWorkingDir(), EnvFrom: e.GetEnvFrom(), Env: e.GetEnv(), SecurityContext: e.GetSecurityContext(), VolumeMounts: e.GetVolumeMounts(),
		Stdin: e.Stdin, StdinOnce: e.StdinOnce, Tty: e.Tty,
		TerminationMessagePath: e.GetTerminationMessagePath(), TerminationMessagePolicy: e.GetTerminationMessagePolicy(),
	}
}

// ContainerStatusFor finds the status of a pod's container in whichever list it
// is; nil when nothing was reported yet.
func ContainerStatusFor(pod *balsav1.Pod, name string) *balsav1.ContainerStatus {
	status := pod.GetStatus()
	for _, list := range [][]*balsav1.ContainerStatus{status.GetContainerStatuses(), status.GetInitContainerStatuses(), status.GetEphemeralContainerStatuses()} {
		for _, s := range list {
			if s.GetName() == name {
				return s
			}
		}
	}
	return nil
}

// ClaimNames lists the PersistentVolumeClaims of a pod's namespace that its
// volumes name, in their order, each once.
func ClaimNames(spec *balsav1.PodSpec) []string {
	var names []string
	seen := map[string]bool{}
	for _, v := range spec.GetVolumes() {
		name := v.GetPersistentVolumeClaim().GetClaimName()
		if name != "" && !seen[name] {
			names = append(names, name)
			seen[name] = true
		}
	}
	return names
}

// HostPort is a port of the node that a pod takes.
type HostPort struct {
	// IP is which of the node's addresses; empty: every one.
	IP       string
	Port     int32
	Protocol string
}

// String is the port as people write it: "80/TCP" or "10.0.0.1:80/TCP".
func (h HostPort) String() string {
	text := strconv.Itoa(int(h.Port)) + "/" + h.Protocol
	if h.IP != "" {
		text = h.IP + ":" + text
	}
	return text
}

// Clashes tells whether two pods of one node cannot have both ports.
func (h HostPort) Clashes(o HostPort) bool {
	return h.Port == o.Port && h.Protocol == o.Protocol && (h.IP == o.IP || h.IP == "" || o.IP == "")
}

// anyIP is how Kubernetes' manifests spell every address.
const anyIP = "0.0.0.0"

// HostPorts lists the ports of the node that a pod takes: with hostNetwork every
// port of its containers, otherwise those that name a hostPort.
func HostPorts(spec *balsav1.PodSpec) []HostPort {
	var ports []HostPort
	for role, c := range AllContainers(spec) {
		if role == RoleInit {
			continue
		}
		for _, p := range c.GetPorts() {
			if h, ok := hostPortOf(spec, p); ok {
				ports = append(ports, h)
			}
		}
	}
	return ports
}

func hostPortOf(spec *balsav1.PodSpec, p *balsav1.ContainerPort) (HostPort, bool) {
	h := HostPort{IP: p.GetHostIp(), Port: p.GetHostPort(), Protocol: keyText(p.GetProtocol(), "protocol")}
	if h.IP == anyIP {
		h.IP = ""
	}
	if spec.GetHostNetwork() {
		h.Port = p.GetContainerPort()
	}
	return h, h.Port != 0
}
