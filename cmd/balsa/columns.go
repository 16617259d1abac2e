package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/object"
)

// column is one column of a table; wide ones are shown with -o wide only.
type column struct {
	title string
	wide  bool
	value func(object.Message) string
}

// of makes the function of a column from one that knows the kind.
func of[T object.Message](value func(T) string) func(object.Message) string {
	return func(m object.Message) string { return value(m.(T)) }
}

func count[T ~int | ~int32 | ~int64](n T) string { return strconv.FormatInt(int64(n), 10) }

func columnsOf(kind object.Kind) []column {
	switch kind.Name {
	case "Pod":
		return podColumns(time.Now)
	case "Deployment":
		return deploymentColumns()
	case "ReplicaSet":
		return replicaSetColumns()
	case "Service":
		return serviceColumns()
	case "Node":
		return nodeColumns()
	case "Event":
		return eventColumns()
	case "EndpointSlice":
		return endpointColumns()
	case "Namespace":
		return []column{{"STATUS", false, of(func(n *balsav1.Namespace) string { return n.GetStatus().GetPhase() })}}
	case "ConfigMap":
		return []column{{"DATA", false, of(func(c *balsav1.ConfigMap) string { return count(len(c.GetData()) + len(c.GetBinaryData())) })}}
	case "Secret":
		return []column{
			{"TYPE", false, of((*balsav1.Secret).GetType)},
			{"DATA", false, of(func(s *balsav1.Secret) string { return count(len(s.GetData())) })},
		}
	case "PersistentVolumeClaim":
		return claimColumns()
	case "PersistentVolume":
		return volumeColumns()
	case "NetworkPolicy":
		return policyColumns()
	case "NetworkPolicySlice":
		return policySliceColumns()
	case "PodDisruptionBudget":
		return budgetColumns()
	case "AddressPool":
		return poolColumns()
	case "StorageClass":
		return storageClassColumns()
	}
	return nil
}

func deploymentColumns() []column {
	return []column{
		{"READY", false, of(func(d *balsav1.Deployment) string {
			return fmt.Sprintf("%d/%d", d.GetStatus().GetReadyReplicas(), d.GetSpec().GetReplicas())
		})},
		{"UP-TO-DATE", false, of(func(d *balsav1.Deployment) string { return count(d.GetStatus().GetUpdatedReplicas()) })},
		{"AVAILABLE", false, of(func(d *balsav1.Deployment) string { return count(d.GetStatus().GetAvailableReplicas()) })},
		{"IMAGES", true, of(func(d *balsav1.Deployment) string { return images(d.GetSpec().GetTemplate()) })},
		{"SELECTOR", true, of(func(d *balsav1.Deployment) string { return labels(d.GetSpec().GetSelector().GetMatchLabels()) })},
	}
}

func replicaSetColumns() []column {
	return []column{
		{"DESIRED", false, of(func(r *balsav1.ReplicaSet) string { return count(r.GetSpec().GetReplicas()) })},
		{"CURRENT", false, of(func(r *balsav1.ReplicaSet) string { return count(r.GetStatus().GetReplicas()) })},
		{"READY", false, of(func(r *balsav1.ReplicaSet) string { return count(r.GetStatus().GetReadyReplicas()) })},
		{"IMAGES", true, of(func(r *balsav1.ReplicaSet) string { return images(r.GetSpec().GetTemplate()) })},
	}
}

func eventColumns() []column {
	return []column{
		{"TYPE", false, of((*balsav1.Event).GetType)},
		{"REASON", false, of((*balsav1.Event).GetReason)},
		{"OBJECT", false, of(func(e *balsav1.Event) string {
			return strings.ToLower(e.GetInvolvedObject().GetKind()) + "/" + e.GetInvolvedObject().GetName()
		})},
		{"COUNT", true, of(func(e *balsav1.Event) string { return count(e.GetCount()) })},
		{"MESSAGE", false, of((*balsav1.Event).GetMessage)},
	}
}

func endpointColumns() []column {
	return []column{
		{"PORTS", false, of(func(s *balsav1.EndpointSlice) string {
			var ports []string
			for _, port := range s.GetPorts() {
				ports = append(ports, count(port.GetPort()))
			}
			return strings.Join(ports, ",")
		})},
		{"ENDPOINTS", false, of(endpoints)},
	}
}

func endpoints(s *balsav1.EndpointSlice) string {
	const shown = 5
	var ready []string
	for _, endpoint := range s.GetEndpoints() {
		if endpoint.GetConditions().GetReady() {
			ready = append(ready, endpoint.GetAddresses()...)
		}
	}
	if len(ready) > shown {
		return fmt.Sprintf("%s + %d more", strings.Join(ready[:shown], ","), len(ready)-shown)
	}
	return strings.Join(ready, ",")
}

func images(template *balsav1.PodTemplateSpec) string {
	var names []string
	for _, container := range template.GetSpec().GetContainers() {
		names = append(names, container.GetImage())
	}
	return strings.Join(names, ",")
}

func labels(m map[string]string) string {
	var pairs []string
	for key, value := range m {
		pairs = append(pairs, key+"="+value)
	}
	slices.Sort(pairs)
	return strings.Join(pairs, ",")
}
