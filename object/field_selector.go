package object

import (
	"fmt"
	"strconv"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// FieldSelector is a conjunction of conditions on a few fields of a kind. The
// zero value matches everything.
type FieldSelector struct {
	conditions []fieldCondition
}

type fieldCondition struct {
	field   string
	value   string
	negated bool
}

// ParseFieldSelector reads conditions joined by commas, each field=value,
// field==value or field!=value. Which fields there are depends on the kind; see
// SelectableFields.
func ParseFieldSelector(kind Kind, text string) (FieldSelector, error) {
	var s FieldSelector
	if len(text) > maxSelectorLength {
		return s, fmt.Errorf("field selector: %d bytes long, allowed: %d", len(text), maxSelectorLength)
	}
	if strings.TrimSpace(text) == "" {
		return s, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		c, err := parseFieldCondition(kind, strings.TrimSpace(part))
		if err != nil {
			return FieldSelector{}, fmt.Errorf("field selector %q: %w", text, err)
		}
		s.conditions = append(s.conditions, c)
		if len(s.conditions) > maxSelectorRequirements {
			return FieldSelector{}, fmt.Errorf("field selector: more than %d conditions", maxSelectorRequirements)
		}
	}
	return s, nil
}

func parseFieldCondition(kind Kind, part string) (fieldCondition, error) {
	i := strings.IndexAny(part, "!=")
	if i < 0 {
		return fieldCondition{}, fmt.Errorf("found %q, allowed: field=value or field!=value", part)
	}
	c := fieldCondition{field: strings.TrimSpace(part[:i])}
	rest := part[i:]
	switch {
	case strings.HasPrefix(rest, "!="):
		c.negated, c.value = true, rest[2:]
	case strings.HasPrefix(rest, "=="):
		c.value = rest[2:]
	case strings.HasPrefix(rest, "="):
		c.value = rest[1:]
	default:
		return fieldCondition{}, fmt.Errorf("found %q, allowed: field=value or field!=value", part)
	}
	c.value = strings.TrimSpace(c.value)
	if _, ok := selectableField(kind.New(), c.field); !ok {
		return fieldCondition{}, fmt.Errorf("found field %q, allowed for %s: %s", c.field, kind.Plural, strings.Join(SelectableFields(kind), ", "))
	}
	return c, nil
}

// SelectableFields lists the fields that a field selector of a kind may name.
func SelectableFields(kind Kind) []string {
	fields := []string{"metadata.name"}
	if kind.Namespaced {
		fields = append(fields, "metadata.namespace")
	}
	switch kind.Name {
	case "Pod":
		fields = append(fields, "spec.nodeName", "spec.restartPolicy", "spec.hostNetwork", "status.phase", "status.podIP")
	case "Node":
		fields = append(fields, "spec.unschedulable")
	case "Service":
		fields = append(fields, "spec.clusterIP", "spec.type")
	case "Secret":
		fields = append(fields, "type")
	case "Event":
		fields = append(fields, "involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid", "reason", "type")
	}
	return fields
}

// Empty tells whether the selector matches everything.
func (s FieldSelector) Empty() bool { return len(s.conditions) == 0 }

// Matches tells whether an object meets every condition.
func (s FieldSelector) Matches(m Message) bool {
	for _, c := range s.conditions {
		value, _ := selectableField(m, c.field)
		if (value == c.value) == c.negated {
			return false
		}
	}
	return true
}

// Exact returns the value that every match has in a field, so that a reader can
// use an index or a key.
func (s FieldSelector) Exact(field string) (value string, ok bool) {
	for _, c := range s.conditions {
		if c.field == field && !c.negated {
			return c.value, true
		}
	}
	return "", false
}

func selectableField(m Message, field string) (string, bool) {
	switch field {
	case "metadata.name":
		return m.GetMetadata().GetName(), true
	case "metadata.namespace":
		return m.GetMetadata().GetNamespace(), kinds[kindIndex(m)].Namespaced
	}
	switch m := m.(type) {
	case *balsav1.Pod:
		return podField(m, field)
	case *balsav1.Node:
		return strconv.FormatBool(m.GetSpec().GetUnschedulable()), field == "spec.unschedulable"
	case *balsav1.Service:
		return serviceField(m, field)
	case *balsav1.Secret:
		return m.GetType(), field == "type"
	case *balsav1.Event:
		return eventField(m, field)
	}
	return "", false
}

func podField(pod *balsav1.Pod, field string) (string, bool) {
	switch field {
	case "spec.nodeName":
		return pod.GetSpec().GetNodeName(), true
	case "spec.restartPolicy":
		return pod.GetSpec().GetRestartPolicy(), true
	case "spec.hostNetwork":
		return strconv.FormatBool(pod.GetSpec().GetHostNetwork()), true
	case "status.podIP":
		return pod.GetStatus().GetPodIp(), true
	case "status.phase":
		return pod.GetStatus().GetPhase(), true
	}
	return "", false
}

func serviceField(svc *balsav1.Service, field string) (string, bool) {
	switch field {
	case "spec.clusterIP":
		return svc.GetSpec().GetClusterIp(), true
	case "spec.type":
		return svc.GetSpec().GetType(), true
	}
	return "", false
}

func eventField(e *balsav1.Event, field string) (string, bool) {
	switch field {
	case "involvedObject.kind":
		return e.GetInvolvedObject().GetKind(), true
	case "involvedObject.namespace":
		return e.GetInvolvedObject().GetNamespace(), true
	case "involvedObject.name":
		return e.GetInvolvedObject().GetName(), true
	case "involvedObject.uid":
		return e.GetInvolvedObject().GetUid(), true
	case "reason":
		return e.GetReason(), true
	case "type":
		return e.GetType(), true
	}
	return "", false
}
