package object

import (
	"path"
	"slices"
	"strconv"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// podParts is what a pod's parts may refer to.
type podParts struct {
	spec *balsav1.PodSpec
	// containers are the names of main and init containers.
	containers map[string]bool
	volumes    map[string]bool
	// names are those that were seen, in whichever list.
	names map[string]bool
	// hostPorts are the node's ports that were seen.
	hostPorts []HostPort
}

func newPodParts(spec *balsav1.PodSpec) *podParts {
	p := &podParts{spec: spec, containers: map[string]bool{}, volumes: map[string]bool{}, names: map[string]bool{}}
	for role, c := range AllContainers(spec) {
		if role != RoleEphemeral {
			p.containers[c.GetName()] = true
		}
	}
	for _, v := range spec.GetVolumes() {
		p.volumes[v.GetName()] = true
	}
	return p
}

// containers checks the lists of containers of a pod.
func (c *check) containers(path string, pod *podParts) {
	spec := pod.spec
	here := field(path, "containers")
	if len(spec.GetContainers()) == 0 {
		c.required(here, "a pod needs at least one container")
	}
	if c.atMost(here, len(spec.GetContainers()), maxContainers, "containers") {
		for i, container := range spec.GetContainers() {
			c.container(index(here, i), container, RoleMain, pod)
		}
	}
	here = field(path, "initContainers")
	if c.atMost(here, len(spec.GetInitContainers()), maxContainers, "containers") {
		for i, container := range spec.GetInitContainers() {
			c.container(index(here, i), container, initRole(container), pod)
		}
	}
	here = field(path, "ephemeralContainers")
	if c.atMost(here, len(spec.GetEphemeralContainers()), maxContainers, "containers") {
		for i, container := range spec.GetEphemeralContainers() {
			c.ephemeralContainer(index(here, i), container, pod)
		}
	}
}

func (c *check) container(path string, container *balsav1.Container, role ContainerRole, pod *podParts) {
	c.program(path, container, pod)
	c.containerRestart(field(path, "restartPolicy"), container.GetRestartPolicy(), role)
	c.containerPorts(field(path, "ports"), container.GetPorts(), role, pod)
	c.resources(field(path, "resources"), container.GetResources())
	c.volumeMounts(field(path, "volumeMounts"), container.GetVolumeMounts(), container.GetSecurityContext(), pod)
	if role == RoleInit {
		c.initOnly(path, container)
		return
	}
	for _, p := range []struct {
		name  string
		probe *balsav1.Probe
	}{{probeReadiness, container.GetReadinessProbe()}, {probeLiveness, container.GetLivenessProbe()}, {probeStartup, container.GetStartupProbe()}} {
		c.probe(path, p.name, p.probe, container.GetPorts())
	}
	c.lifecycle(field(path, "lifecycle"), container.GetLifecycle(), container.GetPorts(), pod.spec.GetTerminationGracePeriodSeconds())
}

// program checks what every container has, ephemeral ones too.
func (c *check) program(path string, container *balsav1.Container, pod *podParts) {
	c.containerName(field(path, "name"), container.GetName(), pod)
	c.image(field(path, "image"), container.GetImage())
	c.oneOf(field(path, "imagePullPolicy"), container.GetImagePullPolicy(), []string{PullAlways, PullIfNotPresent, PullNever})
	for i, s := range container.GetCommand() {
		c.noNUL(index(field(path, "command"), i), s)
	}
	for i, s := range container.GetArgs() {
		c.noNUL(index(field(path, "args"), i), s)
	}
	c.noNUL(field(path, "workingDir"), container.GetWorkingDir())
	c.envFrom(field(path, "envFrom"), container.GetEnvFrom())
	c.env(field(path, "env"), container.GetEnv(), pod)
	if p := container.GetTerminationMessagePath(); p != "" {
		c.absolutePath(field(path, "terminationMessagePath"), p)
	}
	c.optional(field(path, "terminationMessagePolicy"), container.GetTerminationMessagePolicy(), MessageFile, MessageFallbackToLogsOnError)
	if container.GetStdinOnce() && !container.GetStdin() {
		c.add(Violation{Field: field(path, "stdinOnce"), Message: "needs stdin", Hint: "set stdin: true, or remove stdinOnce"})
	}
	c.securityContext(field(path, "securityContext"), container.GetSecurityContext(), pod.spec)
}

func (c *check) containerName(path, name string, pod *podParts) {
	switch {
	case name == "":
		c.required(path, "")
	case pod.names[name]:
		c.duplicate(path, quoted(name))
	default:
		c.text(path, name, dnsLabelProblem(name))
	}
	pod.names[name] = true
}

// containerRestart: the pod's policy holds, but for sidecars.
func (c *check) containerRestart(path, policy string, role ContainerRole) {
	switch {
	case policy == "":
	case role == RoleMain:
		c.add(Violation{Field: path, Message: "is not supported yet for containers that are no init containers", Found: quoted(policy), Hint: "use the pod's restartPolicy"})
	default:
		c.oneOf(path, policy, []string{RestartAlways}, RestartOnFailure, RestartNever)
	}
}

// initOnly refuses what makes no sense in a container that runs to its end.
func (c *check) initOnly(path string, container *balsav1.Container) {
	for _, f := range []struct {
		name string
		set  bool
	}{
		{probeReadiness, container.GetReadinessProbe() != nil}, {probeLiveness, container.GetLivenessProbe() != nil},
		{probeStartup, container.GetStartupProbe() != nil}, {"lifecycle", container.GetLifecycle() != nil},
	} {
		if f.set {
			c.add(Violation{
				Field: field(path, f.name), Message: "is allowed in a sidecar only, an init container with restartPolicy: Always",
				Hint: "remove the field, or make it a sidecar",
			})
		}
	}
}

func (c *check) ephemeralContainer(path string, e *balsav1.EphemeralContainer, pod *podParts) {
	c.program(path, EphemeralAsContainer(e), pod)
	here := field(path, "volumeMounts")
	c.volumeMounts(here, e.GetVolumeMounts(), e.GetSecurityContext(), pod)
	for i, m := range e.GetVolumeMounts() {
		if m.GetSubPath() != "" || m.GetSubPathExpr() != "" {
			c.add(Violation{Field: index(here, i), Message: "an ephemeral container takes whole volumes", Hint: "remove subPath and subPathExpr"})
		}
	}
	if target := e.GetTargetContainerName(); target != "" && !pod.containers[target] {
		c.add(Violation{Field: field(path, "targetContainerName"), Message: "names no container of the pod", Found: quoted(target), Allowed: nameList(pod.containers)})
	}
}

func nameList(names map[string]bool) string {
	list := slices.DeleteFunc(sortedKeys(names), func(s string) bool { return s == "" })
	if len(list) == 0 {
		return "none: the pod has none"
	}
	return strings.Join(list, ", ")
}

func (c *check) image(path, image string) {
	switch {
	case image == "":
		c.required(path, "name an image that was imported, for example balsa/echo:1")
	case len(image) > maxImageLength || strings.ContainsAny(image, " \t\r\n\x00"):
		c.text(path, image, "an image's name without spaces, at most "+strconv.Itoa(maxImageLength)+" characters")
	}
}

func (c *check) containerPorts(path string, ports []*balsav1.ContainerPort, role ContainerRole, pod *podParts) {
	if !c.atMost(path, len(ports), maxContainerPorts, "ports") {
		return
	}
	names, numbers := map[string]bool{}, map[containerPortKey]bool{}
	for i, p := range ports {
		here := index(path, i)
		if name := p.GetName(); name != "" {
			c.text(field(here, "name"), name, portNameProblem(name))
			if names[name] {
				c.duplicate(field(here, "name"), quoted(name))
			}
			names[name] = true
		}
		c.port(field(here, "containerPort"), p.GetContainerPort())
		c.protocol(field(here, "protocol"), p.GetProtocol())
		c.hostPort(here, p, role, pod.spec)
		key := containerPortKey{p.GetContainerPort(), p.GetProtocol()}
		if numbers[key] {
			c.duplicate(field(here, "containerPort"), strconv.Itoa(int(key.port))+"/"+key.protocol)
			continue
		}
		numbers[key] = true
		if role != RoleInit {
			c.takesHostPort(here, p, pod)
		}
	}
}

// containerPortKey is what Apply tells a container's ports apart by.
type containerPortKey struct {
	port     int32
	protocol string
}

// hostPort checks what a port asks of the node.
func (c *check) hostPort(path string, p *balsav1.ContainerPort, role ContainerRole, spec *balsav1.PodSpec) {
	at := field(path, "hostPort")
	switch {
	case p.GetHostPort() == 0: // as good as nothing, as in Kubernetes
	case role == RoleInit:
		c.add(Violation{Field: at, Message: "has no meaning in an init container, which is gone when the pod is served", Hint: "remove the field, or make it a sidecar"})
	case spec.GetHostNetwork() && p.GetHostPort() != p.GetContainerPort():
		c.add(Violation{Field: at, Message: "differs from containerPort, and with hostNetwork they are one", Found: strconv.Itoa(int(p.GetHostPort())), Allowed: strconv.Itoa(int(p.GetContainerPort())), Hint: "remove the field"})
	default:
		c.port(at, p.GetHostPort())
	}
	ip, at := p.GetHostIp(), field(path, "hostIP")
	switch {
	case ip == "":
	case p.GetHostPort() == 0:
		c.add(Violation{Field: at, Message: "has no meaning without hostPort", Hint: "add hostPort, or remove hostIP"})
	case spec.GetHostNetwork():
		c.add(Violation{Field: at, Message: "has no meaning with hostNetwork: the container itself decides where it listens", Hint: "remove the field"})
	case ip != anyIP:
		c.ipv4(at, ip, "an IPv4 address of the nodes, 0.0.0.0, or nothing for every address")
	}
}

// takesHostPort: two containers of a pod cannot have the same port of the node.
func (c *check) takesHostPort(path string, p *balsav1.ContainerPort, pod *podParts) {
	mine, ok := hostPortOf(pod.spec, p)
	if !ok {
		return
	}
	if slices.ContainsFunc(pod.hostPorts, mine.Clashes) {
		at, why := field(path, "hostPort"), "is taken by another port of the pod"
		if pod.spec.GetHostNetwork() {
			at, why = field(path, "containerPort"), "another container has the port, and with hostNetwork they share the node's"
		}
		c.add(Violation{Field: at, Message: why, Found: mine.String()})
	}
	pod.hostPorts = append(pod.hostPorts, mine)
}

func (c *check) protocol(path, protocol string) {
	c.oneOf(path, protocol, []string{ProtocolTCP, ProtocolUDP}, "SCTP")
}

// absolutePath checks a path in a container or on a node.
func (c *check) absolutePath(at, p string) {
	if !path.IsAbs(p) || len(p) > maxPathLength || strings.IndexByte(p, 0) >= 0 || slices.Contains(strings.Split(p, "/"), "..") {
		c.text(at, p, "a path that begins with / and has no .., at most "+strconv.Itoa(maxPathLength)+" characters")
	}
}

// relativePath checks a path below some folder.
func (c *check) relativePath(at, p string) {
	if p == "" {
		c.required(at, "")
		return
	}
	if path.IsAbs(p) || len(p) > maxPathLength || strings.IndexByte(p, 0) >= 0 || slices.Contains(strings.Split(p, "/"), "..") {
		c.text(at, p, "a path that does not begin with / and has no .., at most "+strconv.Itoa(maxPathLength)+" characters")
	}
}
