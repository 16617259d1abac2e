package object

import (
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object/quantity"
)

// Limits of a pod.
const (
	maxContainers        = 32
	maxContainerPorts    = 256
	maxEnv               = 1024
	maxSpreadConstraints = 16
	maxHTTPHeaders       = 64
	maxImageLength       = 512
	// maxSeconds bounds durations: a year.
	maxSeconds = 365 * 24 * 3600
	// maxMilliCPU is a million cores.
	maxMilliCPU = 1_000_000_000
	// maxMemory is 1 Pi, so that sums over pods and nodes fit 64 bits.
	maxMemory = 1 << 50
)

func (c *check) pod(pod *balsav1.Pod) {
	if pod.GetSpec() == nil {
		c.required("spec", "describe the pod's containers")
		return
	}
	c.podSpec("spec", pod.GetSpec(), RestartAlways, RestartOnFailure, RestartNever)
}

// podUpdate: nothing of a pod's spec changes but for nodeName, once, by the
// binding.
func (c *check) podUpdate(old, next *balsav1.Pod) {
	if proto.Equal(old.GetSpec(), next.GetSpec()) {
		return
	}
	from, to := old.GetSpec().GetNodeName(), next.GetSpec().GetNodeName()
	if from != to && (c.writer != System || from != "") {
		c.add(Violation{Field: "spec.nodeName", Message: "is written once, by the scheduler", Found: quoted(to), Allowed: quoted(from)})
	}
	bound := proto.CloneOf(old.GetSpec())
	if bound != nil {
		bound.NodeName = to
	}
	if !proto.Equal(bound, next.GetSpec()) {
		c.add(Violation{Field: "spec", Message: "a pod's spec never changes", Hint: "delete the pod and create it again, or change the Deployment that made it"})
	}
}

// template checks a workload's pod template.
func (c *check) template(path string, t *balsav1.PodTemplateSpec, selector *balsav1.LabelSelector) {
	if t.GetSpec() == nil {
		c.required(field(path, "spec"), "describe the pods' containers")
		return
	}
	c.templateMetadata(field(path, "metadata"), t.GetMetadata())
	c.podSpec(field(path, "spec"), t.GetSpec(), RestartAlways)
	c.workloadSelector(selector, field(path, "metadata.labels"), t.GetMetadata().GetLabels())
}

// templateMetadata: only labels and annotations reach the pods.
func (c *check) templateMetadata(path string, meta *balsav1.ObjectMeta) {
	c.labelsAndAnnotations(path, meta)
	rest := proto.CloneOf(meta)
	if rest == nil {
		return
	}
	rest.Labels, rest.Annotations = nil, nil
	for _, name := range setFields(rest) {
		c.add(Violation{Field: field(path, name), Message: "has no meaning in a template", Allowed: "labels, annotations", Hint: "remove the field"})
	}
}

// setFields lists the JSON names of the fields of m that are set.
func setFields(m proto.Message) []string {
	r := m.ProtoReflect()
	var names []string
	for fields, i := r.Descriptor().Fields(), 0; i < fields.Len(); i++ {
		if r.Has(fields.Get(i)) {
			names = append(names, fields.Get(i).JSONName())
		}
	}
	return names
}

func (c *check) podSpec(path string, spec *balsav1.PodSpec, restartPolicies ...string) {
	c.containers(field(path, "containers"), spec.GetContainers())
	c.oneOf(field(path, "restartPolicy"), spec.GetRestartPolicy(), restartPolicies)
	c.between(field(path, "terminationGracePeriodSeconds"), spec.GetTerminationGracePeriodSeconds(), 0, maxSeconds)
	c.labels(field(path, "nodeSelector"), spec.GetNodeSelector())
	if name := spec.GetNodeName(); name != "" {
		c.text(field(path, "nodeName"), name, dnsSubdomainProblem(name))
	}
	if name := spec.GetHostname(); name != "" {
		c.text(field(path, "hostname"), name, dnsLabelProblem(name))
	}
	c.spreadConstraints(field(path, "topologySpreadConstraints"), spec.GetTopologySpreadConstraints())
}

func (c *check) containers(path string, containers []*balsav1.Container) {
	if len(containers) == 0 {
		c.required(path, "a pod needs at least one container")
	}
	if !c.atMost(path, len(containers), maxContainers, "containers") {
		return
	}
	names := map[string]bool{}
	for i, container := range containers {
		here := index(path, i)
		if name := container.GetName(); name != "" && names[name] {
			c.duplicate(field(here, "name"), quoted(name))
		}
		names[container.GetName()] = true
		c.container(here, container)
	}
}

func (c *check) container(path string, container *balsav1.Container) {
	if container.GetName() == "" {
		c.required(field(path, "name"), "")
	} else {
		c.text(field(path, "name"), container.GetName(), dnsLabelProblem(container.GetName()))
	}
	c.image(field(path, "image"), container.GetImage())
	c.oneOf(field(path, "imagePullPolicy"), container.GetImagePullPolicy(), []string{PullIfNotPresent, PullNever}, "Always")
	for i, s := range container.GetCommand() {
		c.noNUL(index(field(path, "command"), i), s)
	}
	for i, s := range container.GetArgs() {
		c.noNUL(index(field(path, "args"), i), s)
	}
	c.noNUL(field(path, "workingDir"), container.GetWorkingDir())
	c.containerPorts(field(path, "ports"), container.GetPorts())
	c.envFrom(field(path, "envFrom"), container.GetEnvFrom())
	c.env(field(path, "env"), container.GetEnv())
	c.resources(field(path, "resources"), container.GetResources())
	c.probe(field(path, "readinessProbe"), container.GetReadinessProbe(), container.GetPorts())
}

func (c *check) image(path, image string) {
	switch {
	case image == "":
		c.required(path, "name an image that was imported, for example balsa/echo:1")
	case len(image) > maxImageLength || strings.ContainsAny(image, " \t\r\n\x00"):
		c.text(path, image, "an image's name without spaces, at most "+strconv.Itoa(maxImageLength)+" characters")
	}
}

func (c *check) containerPorts(path string, ports []*balsav1.ContainerPort) {
	if !c.atMost(path, len(ports), maxContainerPorts, "ports") {
		return
	}
	names, numbers := map[string]bool{}, map[string]bool{}
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
		number := strconv.Itoa(int(p.GetContainerPort())) + "/" + p.GetProtocol()
		if numbers[number] {
			c.duplicate(field(here, "containerPort"), number)
		}
		numbers[number] = true
	}
}

func (c *check) protocol(path, protocol string) {
	c.oneOf(path, protocol, []string{ProtocolTCP, ProtocolUDP}, "SCTP")
}

func (c *check) resources(path string, r *balsav1.ResourceRequirements) {
	limits := c.quantities(field(path, "limits"), r.GetLimits(), true)
	requests := c.quantities(field(path, "requests"), r.GetRequests(), false)
	for _, name := range sortedKeys(requests) {
		limit, limited := limits[name]
		if limited && requests[name].Compare(limit) > 0 {
			c.add(Violation{
				Field: mapKey(field(path, "requests"), name), Message: "is more than the limit",
				Found: quoted(r.Requests[name].GetString_()), Allowed: "at most " + quoted(r.Limits[name].GetString_()),
			})
		}
	}
}

func (c *check) quantities(path string, list map[string]*balsav1.Quantity, positive bool) map[string]quantity.Quantity {
	good := map[string]quantity.Quantity{}
	for _, name := range sortedKeys(list) {
		here := mapKey(path, name)
		if name != ResourceCPU && name != ResourceMemory {
			c.oneOf(here, name, []string{ResourceCPU, ResourceMemory}, "ephemeral-storage", "storage")
			continue
		}
		if q, ok := c.quantity(here, name, list[name]); ok {
			good[name] = q
			if positive && q.Sign() == 0 {
				c.add(Violation{Field: here, Message: "a limit of 0 lets nothing run", Found: quoted(list[name].GetString_()), Allowed: "more than 0", Hint: "remove the limit, or raise it"})
			}
		}
	}
	return good
}

func (c *check) quantity(path, resource string, q *balsav1.Quantity) (quantity.Quantity, bool) {
	v, err := ParseQuantity(q)
	if err != nil {
		c.add(Violation{Field: path, Message: "is not a quantity", Found: quoted(q.GetString_()), Allowed: "a number with a suffix such as m, k, M, G, Ki, Mi, Gi", Hint: quantityHint(resource)})
		return v, false
	}
	highest, scaled := int64(maxMemory), v.Units
	if resource == ResourceCPU {
		highest, scaled = maxMilliCPU, v.Milli
	}
	n, err := scaled()
	if v.Sign() < 0 || err != nil || n > highest {
		c.add(Violation{Field: path, Message: "is out of range", Found: quoted(q.GetString_()), Allowed: "0 to " + quantityLimit(resource)})
		return v, false
	}
	return v, true
}

func quantityHint(resource string) string {
	if resource == ResourceCPU {
		return `"500m" is half a core`
	}
	return `"64Mi" is 64 MiB`
}

func quantityLimit(resource string) string {
	if resource == ResourceCPU {
		return quantity.FormatMilli(maxMilliCPU)
	}
	return quantity.FormatBytes(maxMemory)
}

func (c *check) spreadConstraints(path string, list []*balsav1.TopologySpreadConstraint) {
	if !c.atMost(path, len(list), maxSpreadConstraints, "constraints") {
		return
	}
	seen := map[string]bool{}
	for i, s := range list {
		here := index(path, i)
		c.between(field(here, "maxSkew"), int64(s.GetMaxSkew()), 1, maxInt32)
		if s.GetTopologyKey() == "" {
			c.required(field(here, "topologyKey"), "name a label of nodes, for example kubernetes.io/hostname")
		} else {
			c.text(field(here, "topologyKey"), s.GetTopologyKey(), labelKeyProblem(s.GetTopologyKey()))
		}
		c.oneOf(field(here, "whenUnsatisfiable"), s.GetWhenUnsatisfiable(), []string{DoNotSchedule, ScheduleAnyway})
		c.selector(field(here, "labelSelector"), s.GetLabelSelector())
		pair := s.GetTopologyKey() + ", " + s.GetWhenUnsatisfiable()
		if seen[pair] {
			c.duplicate(here, quoted(pair))
		}
		seen[pair] = true
	}
}
