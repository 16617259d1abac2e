package object

import (
	"maps"
	"slices"

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
	maxImageLength       = 512
	maxPathLength        = 4096
	maxPullSecrets       = 32
	// minPriority and maxPriority are what Kubernetes leaves to users.
	minPriority = -1 << 31
	maxPriority = 1_000_000_000
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
	c.drainConnections("metadata", pod.GetMetadata())
	c.bandwidth("metadata", pod.GetMetadata())
	c.podSpec("spec", pod.GetSpec(), RestartAlways, RestartOnFailure, RestartNever)
}

// template checks a workload's pod template.
func (c *check) template(path string, t *balsav1.PodTemplateSpec, selector *balsav1.LabelSelector) {
	if t.GetSpec() == nil {
		c.required(field(path, "spec"), "describe the pods' containers")
		return
	}
	if len(t.GetSpec().GetEphemeralContainers()) > 0 {
		c.noEphemeral(field(path, "spec.ephemeralContainers"))
	}
	c.templateMetadata(field(path, "metadata"), t.GetMetadata())
	c.podSpec(field(path, "spec"), t.GetSpec(), RestartAlways)
	c.workloadSelector(selector, field(path, "metadata.labels"), t.GetMetadata().GetLabels())
}

// templateMetadata: only labels and annotations reach the pods.
func (c *check) templateMetadata(path string, meta *balsav1.ObjectMeta) {
	c.labelsAndAnnotations(path, meta)
	c.drainConnections(path, meta)
	c.bandwidth(path, meta)
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
	parts := newPodParts(spec)
	c.volumes(field(path, "volumes"), spec.GetVolumes(), parts)
	c.containers(path, parts)
	c.oneOf(field(path, "restartPolicy"), spec.GetRestartPolicy(), restartPolicies)
	c.between(field(path, "terminationGracePeriodSeconds"), spec.GetTerminationGracePeriodSeconds(), 0, maxSeconds)
	if spec.ActiveDeadlineSeconds != nil {
		c.between(field(path, "activeDeadlineSeconds"), spec.GetActiveDeadlineSeconds(), 1, maxInt32)
	}
	c.placement(path, spec)
	c.hostName(path, spec)
	c.dns(path, spec)
	c.hostAliases(field(path, "hostAliases"), spec.GetHostAliases())
	c.namespaces(path, spec)
	c.podSecurity(field(path, "securityContext"), spec)
	c.pullSecrets(field(path, "imagePullSecrets"), spec.GetImagePullSecrets())
	c.onlyFalse(field(path, "enableServiceLinks"), spec.GetEnableServiceLinks(), "variables for services are not made; use their DNS names")
	c.onlyFalse(field(path, "automountServiceAccountToken"), spec.GetAutomountServiceAccountToken(), "there are no service accounts")
}

// placement checks what the scheduler looks at.
func (c *check) placement(path string, spec *balsav1.PodSpec) {
	c.labels(field(path, "nodeSelector"), spec.GetNodeSelector())
	if name := spec.GetNodeName(); name != "" {
		c.text(field(path, "nodeName"), name, dnsSubdomainProblem(name))
	}
	c.spreadConstraints(field(path, "topologySpreadConstraints"), spec.GetTopologySpreadConstraints())
	c.tolerations(field(path, "tolerations"), spec.GetTolerations())
	c.between(field(path, "priority"), int64(spec.GetPriority()), minPriority, maxPriority)
}

func (c *check) hostName(path string, spec *balsav1.PodSpec) {
	if name := spec.GetHostname(); name != "" {
		c.text(field(path, "hostname"), name, dnsLabelProblem(name))
	}
	if name := spec.GetSubdomain(); name != "" {
		c.text(field(path, "subdomain"), name, dnsLabelProblem(name))
	}
}

// namespaces: which of the node's namespaces a pod joins.
func (c *check) namespaces(path string, spec *balsav1.PodSpec) {
	host := []struct {
		name string
		set  bool
	}{{"hostNetwork", spec.GetHostNetwork()}, {"hostPID", spec.GetHostPid()}, {"hostIPC", spec.GetHostIpc()}}
	for _, h := range host {
		if h.set && spec.HostUsers != nil && !spec.GetHostUsers() {
			c.add(Violation{Field: field(path, h.name), Message: "excludes hostUsers: false, since a namespace of the node belongs to the node's users", Hint: "remove one of the two"})
		}
	}
	if spec.GetHostPid() && spec.GetShareProcessNamespace() {
		c.add(Violation{Field: field(path, "shareProcessNamespace"), Message: "excludes hostPID, which is also set", Allowed: "one of the two"})
	}
}

func (c *check) onlyFalse(path string, value bool, why string) {
	if value {
		c.add(Violation{Field: path, Message: "is not supported yet", Found: "true", Allowed: "false", Hint: "remove the field: " + why})
	}
}

func (c *check) pullSecrets(path string, refs []*balsav1.LocalObjectReference) {
	if !c.atMost(path, len(refs), maxPullSecrets, "Secrets") {
		return
	}
	seen := map[string]bool{}
	for i, ref := range refs {
		here := field(index(path, i), "name")
		c.refName(here, ref.GetName())
		if seen[ref.GetName()] {
			c.duplicate(here, quoted(ref.GetName()))
		}
		seen[ref.GetName()] = true
	}
}

func (c *check) resources(path string, r *balsav1.ResourceRequirements) {
	limits := c.quantities(field(path, "limits"), r.GetLimits(), true)
	requests := c.quantities(field(path, "requests"), ownRequests(r, limits), false)
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

// ownRequests leaves out those that Default copied from limits which were refused:
// a mistake is reported once, where it was made.
func ownRequests(r *balsav1.ResourceRequirements, good map[string]quantity.Quantity) map[string]*balsav1.Quantity {
	own := maps.Clone(r.GetRequests())
	for name, limit := range r.GetLimits() {
		if _, ok := good[name]; !ok && proto.Equal(own[name], limit) {
			delete(own, name)
		}
	}
	return own
}

func (c *check) quantities(path string, list map[string]*balsav1.Quantity, positive bool) map[string]quantity.Quantity {
	good := map[string]quantity.Quantity{}
	for _, name := range sortedKeys(list) {
		here := mapKey(path, name)
		if !slices.Contains(containerResources(), name) {
			c.oneOf(here, name, containerResources(), "storage", "pods", "hugepages-2Mi", "hugepages-1Gi")
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

func containerResources() []string {
	return []string{ResourceCPU, ResourceMemory, ResourceEphemeralStorage}
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
