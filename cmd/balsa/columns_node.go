package main

import (
	"slices"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/object"
)

func nodeColumns() []column {
	info := func(value func(*balsav1.NodeSystemInfo) string) func(object.Message) string {
		return of(func(n *balsav1.Node) string { return value(n.GetStatus().GetNodeInfo()) })
	}
	return []column{
		{"STATUS", false, of(nodeStatus)},
		{"ROLES", false, of(nodeRoles)},
		{"VERSION", false, info((*balsav1.NodeSystemInfo).GetKubeletVersion)},
		{"INTERNAL-IP", true, of(nodeAddress)},
		{"POD-CIDR", true, of(func(n *balsav1.Node) string { return n.GetSpec().GetPodCidr() })},
		{"OS-IMAGE", true, info((*balsav1.NodeSystemInfo).GetOsImage)},
		{"KERNEL-VERSION", true, info((*balsav1.NodeSystemInfo).GetKernelVersion)},
		{"CONTAINER-RUNTIME", true, info((*balsav1.NodeSystemInfo).GetContainerRuntimeVersion)},
	}
}

func nodeStatus(n *balsav1.Node) string {
	status := "NotReady"
	switch {
	case object.NodeReady(n):
		status = "Ready"
	case object.FindCondition(n.GetStatus().GetConditions(), object.ConditionReady) == nil:
		status = "Unknown"
	}
	if n.GetSpec().GetUnschedulable() {
		status += ",SchedulingDisabled"
	}
	return status
}

// nodeRoles are labels that people give to nodes; Balsa makes nothing of them.
func nodeRoles(n *balsav1.Node) string {
	var roles []string
	for key := range n.GetMetadata().GetLabels() {
		if role, ok := strings.CutPrefix(key, "node-role.kubernetes.io/"); ok && role != "" {
			roles = append(roles, role)
		}
	}
	slices.Sort(roles)
	return strings.Join(roles, ",")
}

func nodeAddress(n *balsav1.Node) string {
	for _, address := range n.GetStatus().GetAddresses() {
		if address.GetType() == "InternalIP" {
			return address.GetAddress()
		}
	}
	return ""
}
