package object

import (
	"strconv"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// FieldRef is a field of a pod that a variable takes its value from.
type FieldRef struct {
	// Field is for example "status.podIP" or "metadata.labels".
	Field string
	// Key is the label or annotation; empty for another field, and for all labels or
	// annotations.
	Key string
}

// ParseFieldRef reads a fieldPath such as "metadata.labels['app']".
func ParseFieldRef(path string) (FieldRef, bool) {
	switch path {
	case "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs":
		return FieldRef{Field: path}, true
	}
	for _, name := range []string{"metadata.labels", "metadata.annotations"} {
		inside, ok := strings.CutPrefix(path, name+"['")
		if !ok {
			continue
		}
		key, ok := strings.CutSuffix(inside, "']")
		if ok && labelKeyProblem(key) == "" {
			return FieldRef{Field: name, Key: key}, true
		}
	}
	return FieldRef{}, false
}

// ParseVolumeFieldRef reads a fieldPath of a downwardAPI volume, which may also be
// all labels or annotations, and which knows nothing that only the node does.
func ParseVolumeFieldRef(path string) (FieldRef, bool) {
	if path == "metadata.labels" || path == "metadata.annotations" {
		return FieldRef{Field: path}, true
	}
	ref, ok := ParseFieldRef(path)
	return ref, ok && strings.HasPrefix(ref.Field, "metadata.")
}

// Value reads the field from a pod; "" when it is not known yet.
func (r FieldRef) Value(pod *balsav1.Pod) string {
	switch r.Field {
	case "metadata.name":
		return pod.GetMetadata().GetName()
	case "metadata.namespace":
		return pod.GetMetadata().GetNamespace()
	case "metadata.uid":
		return pod.GetMetadata().GetUid()
	case "metadata.labels":
		return r.entry(pod.GetMetadata().GetLabels())
	case "metadata.annotations":
		return r.entry(pod.GetMetadata().GetAnnotations())
	case "spec.nodeName":
		return pod.GetSpec().GetNodeName()
	case "status.hostIP":
		return pod.GetStatus().GetHostIp()
	case "status.podIP":
		return pod.GetStatus().GetPodIp()
	case "status.hostIPs":
		return addresses(pod.GetStatus().GetHostIp(), pod.GetStatus().GetHostIps())
	case "status.podIPs":
		return addresses(pod.GetStatus().GetPodIp(), pod.GetStatus().GetPodIps())
	}
	return ""
}

// entry is one value, or all of them as key="value" lines.
func (r FieldRef) entry(m map[string]string) string {
	if r.Key != "" {
		return m[r.Key]
	}
	lines := make([]string, 0, len(m))
	for _, key := range sortedKeys(m) {
		lines = append(lines, key+"="+strconv.Quote(m[key]))
	}
	return strings.Join(lines, "\n")
}

// addresses joins a list by commas; only is the address when there is no list.
func addresses[T interface{ GetIp() string }](only string, list []T) string {
	if len(list) == 0 {
		return only
	}
	ips := make([]string, len(list))
	for i, x := range list {
		ips[i] = x.GetIp()
	}
	return strings.Join(ips, ",")
}
