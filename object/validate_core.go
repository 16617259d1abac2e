package object

import (
	"bytes"
	"maps"
	"net/netip"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Limits of the other kinds.
const (
	maxEndpoints         = 1_000
	maxEndpointAddresses = 100
	maxEventMessage      = 1_024
	maxReasonLength      = 128
	maxNodeImages        = 50
)

func (c *check) ipv4(path, ip, allowed string) {
	addr, err := netip.ParseAddr(ip)
	switch {
	case err != nil:
		c.text(path, ip, allowed)
	case !addr.Is4():
		c.add(Violation{Field: path, Message: "IPv6 is not supported yet", Found: quoted(ip), Allowed: allowed})
	}
}

func (c *check) configMap(m *balsav1.ConfigMap) {
	size := 0
	for _, key := range sortedKeys(m.GetData()) {
		size += len(key) + len(m.GetData()[key])
		c.text(mapKey("data", key), key, dataKeyProblem(key))
	}
	for _, key := range sortedKeys(m.GetBinaryData()) {
		here := mapKey("binaryData", key)
		size += len(key) + len(m.GetBinaryData()[key])
		c.text(here, key, dataKeyProblem(key))
		if _, both := m.GetData()[key]; both {
			c.add(Violation{Field: here, Message: "the key is in data as well", Allowed: "every key once", Hint: "remove one of the two"})
		}
	}
	c.size("data", size, MaxDataBytes)
}

const immutableHint = "delete the object and create it again"

func (c *check) configMapUpdate(old, next *balsav1.ConfigMap) {
	if !old.GetImmutable() {
		return
	}
	equal := maps.Equal(old.GetData(), next.GetData()) && maps.EqualFunc(old.GetBinaryData(), next.GetBinaryData(), bytes.Equal)
	if !equal {
		c.add(Violation{Field: "data", Message: "never changes, since immutable is true", Hint: immutableHint})
	}
	if !next.GetImmutable() {
		c.add(Violation{Field: "immutable", Message: "stays true once it is", Hint: immutableHint})
	}
}

// secret never puts a value into a violation.
func (c *check) secret(m *balsav1.Secret) {
	size := 0
	for _, key := range sortedKeys(m.GetData()) {
		size += len(key) + len(m.GetData()[key])
		c.text(mapKey("data", key), key, dataKeyProblem(key))
	}
	for _, key := range sortedKeys(m.GetStringData()) {
		size += len(key) + len(m.GetStringData()[key])
		c.text(mapKey("stringData", key), key, dataKeyProblem(key))
	}
	c.size("data", size, MaxDataBytes)
	if m.GetType() == "" {
		c.required("type", "Opaque is the usual one")
	} else if len(m.GetType()) > maxSubdomainLength || labelKeyProblem(m.GetType()) != "" {
		c.text("type", m.GetType(), allowedLabelKey)
	}
	if m.GetType() == SecretDockerConfigJSON {
		if _, err := parseDockerConfig(m.GetData()[DockerConfigJSONKey]); err != nil {
			c.add(Violation{Field: mapKey("data", DockerConfigJSONKey), Message: err.Error()})
		}
	}
}

func (c *check) secretUpdate(old, next *balsav1.Secret) {
	if old.GetType() != next.GetType() {
		c.add(Violation{Field: "type", Message: "never changes", Found: quoted(next.GetType()), Allowed: quoted(old.GetType()), Hint: immutableHint})
	}
	if !old.GetImmutable() {
		return
	}
	if !maps.EqualFunc(old.GetData(), next.GetData(), bytes.Equal) || len(next.GetStringData()) > 0 {
		c.add(Violation{Field: "data", Message: "never changes, since immutable is true", Hint: immutableHint})
	}
	if !next.GetImmutable() {
		c.add(Violation{Field: "immutable", Message: "stays true once it is", Hint: immutableHint})
	}
}

func (c *check) node(m *balsav1.Node) {
	if cidr := m.GetSpec().GetPodCidr(); cidr != "" {
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil || !prefix.Addr().Is4() || prefix != prefix.Masked() {
			c.text("spec.podCIDR", cidr, "an IPv4 network such as 10.244.1.0/24")
		}
	}
	c.taints("spec.taints", m.GetSpec().GetTaints())
	c.atMost("status.images", len(m.GetStatus().GetImages()), maxNodeImages, "images")
	for _, list := range []struct {
		path string
		q    map[string]*balsav1.Quantity
	}{{"status.capacity", m.GetStatus().GetCapacity()}, {"status.allocatable", m.GetStatus().GetAllocatable()}} {
		for _, name := range sortedKeys(list.q) {
			c.quantity(mapKey(list.path, name), name, list.q[name])
		}
	}
}

// nodeUpdate: a user may cordon a node, label and taint it.
func (c *check) nodeUpdate(old, next *balsav1.Node) {
	from, to := old.GetSpec().GetPodCidr(), next.GetSpec().GetPodCidr()
	if from != to && (c.writer == User || from != "") {
		c.same("spec.podCIDR", from, to)
	}
	if c.writer == User {
		c.taintTimes("spec.taints", old.GetSpec().GetTaints(), next.GetSpec().GetTaints())
	}
}

func (c *check) endpointSlice(m *balsav1.EndpointSlice) {
	c.oneOf("addressType", m.GetAddressType(), []string{AddressIPv4}, "IPv6", "FQDN")
	if !c.atMost("endpoints", len(m.GetEndpoints()), maxEndpoints, "endpoints") {
		return
	}
	for i, e := range m.GetEndpoints() {
		here := field(index("endpoints", i), "addresses")
		if len(e.GetAddresses()) == 0 {
			c.required(here, "")
		}
		if !c.atMost(here, len(e.GetAddresses()), maxEndpointAddresses, "addresses") {
			continue
		}
		for j, ip := range e.GetAddresses() {
			c.ipv4(index(here, j), ip, "an IPv4 address")
		}
	}
	for i, p := range m.GetPorts() {
		here := index("ports", i)
		c.port(field(here, "port"), p.GetPort())
		c.protocol(field(here, "protocol"), p.GetProtocol())
		if p.GetName() != "" {
			c.text(field(here, "name"), p.GetName(), dnsLabelProblem(p.GetName()))
		}
	}
}

func (c *check) event(m *balsav1.Event) {
	involved := m.GetInvolvedObject()
	if involved.GetKind() == "" {
		c.required("involvedObject.kind", "")
	}
	if involved.GetName() == "" {
		c.required("involvedObject.name", "")
	}
	namespace := involved.GetNamespace()
	if namespace == "" {
		namespace = DefaultNamespace
	}
	if got := m.GetMetadata().GetNamespace(); got != namespace {
		c.add(Violation{Field: "metadata.namespace", Message: "does not fit involvedObject", Found: quoted(got), Allowed: quoted(namespace)})
	}
	if m.GetReason() == "" {
		c.required("reason", "one word in CamelCase")
	}
	c.size("reason", len(m.GetReason()), maxReasonLength)
	c.size("message", len(m.GetMessage()), maxEventMessage)
	c.oneOf("type", m.GetType(), []string{EventNormal, EventWarning})
	c.between("count", int64(m.GetCount()), 1, maxInt32)
	if first, last := m.GetFirstTimestamp(), m.GetLastTimestamp(); proto.Size(first) > 0 && first.AsTime().After(last.AsTime()) {
		c.add(Violation{Field: "lastTimestamp", Message: "is before firstTimestamp"})
	}
}
