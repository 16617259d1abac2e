package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/object"
)

// node prints a node with the pods on it that have not ended.
func (s *sheet) node(n *balsav1.Node, pods []*balsav1.Pod, now time.Time) {
	meta, spec, status := n.GetMetadata(), n.GetSpec(), n.GetStatus()
	s.identity(meta)
	s.row("Roles", nodeRoles(n))
	s.marks(meta)
	s.row("Created", timeText(meta.GetCreationTimestamp()))
	var taints []string
	for _, t := range spec.GetTaints() {
		taints = append(taints, taintText(t))
	}
	s.list("Taints", taints)
	s.row("Unschedulable", fmt.Sprint(spec.GetUnschedulable()))
	s.conditions(status.GetConditions())
	var addresses []string
	for _, address := range status.GetAddresses() {
		addresses = append(addresses, address.GetType()+" "+address.GetAddress())
	}
	s.list("Addresses", addresses)
	s.list("Capacity", quantities(status.GetCapacity()))
	s.list("Allocatable", quantities(status.GetAllocatable()))
	s.systemInfo(status.GetNodeInfo())
	s.row("Pod CIDR", spec.GetPodCidr())
	s.table("Images", imageRows(status.GetImages())...)
	pods = slices.DeleteFunc(pods, object.PodFinished)
	s.table(fmt.Sprintf("Pods (%d, but for those that have ended)", len(pods)), podRows(pods, status.GetAllocatable(), now)...)
	s.allocated(pods, status.GetAllocatable())
}

func (s *sheet) systemInfo(info *balsav1.NodeSystemInfo) {
	s.part("System", func() {
		s.row("Machine ID", info.GetMachineId())
		s.row("Boot ID", info.GetBootId())
		s.row("Kernel", info.GetKernelVersion())
		s.row("OS", info.GetOsImage())
		s.row("Architecture", info.GetOperatingSystem()+"/"+info.GetArchitecture())
		s.row("Container runtime", info.GetContainerRuntimeVersion())
		s.row("Balsa", info.GetKubeletVersion())
	})
}

func imageRows(images []*balsav1.ContainerImage) [][]string {
	rows := [][]string{{"NAME", "SIZE"}}
	for _, image := range images {
		rows = append(rows, []string{strings.Join(image.GetNames(), ", "), mebibytes(image.GetSizeBytes())})
	}
	return rows
}

func podRows(pods []*balsav1.Pod, room map[string]*balsav1.Quantity, now time.Time) [][]string {
	rows := [][]string{{"NAMESPACE", "NAME", "CPU REQUESTS", "CPU LIMITS", "MEMORY REQUESTS", "MEMORY LIMITS", "AGE"}}
	slices.SortFunc(pods, func(x, y *balsav1.Pod) int { return strings.Compare(podName(x), podName(y)) })
	for _, pod := range pods {
		asked, most := demandOf(pod)
		rows = append(rows, []string{
			pod.GetMetadata().GetNamespace(), pod.GetMetadata().GetName(),
			cpuShare(asked.MilliCPU, room), cpuShare(most.MilliCPU, room), memoryShare(asked.MemoryBytes, room), memoryShare(most.MemoryBytes, room),
			age(pod.GetMetadata().GetCreationTimestamp(), now),
		})
	}
	return rows
}

// demandOf is what a pod has asked for, and what it may use at most: the sum of
// limits, of which a container may have none.
func demandOf(pod *balsav1.Pod) (asked, most object.Requests) {
	asked, _ = object.PodRequests(pod.GetSpec()) // the server has checked each quantity
	spec := object.Clone(pod).GetSpec()
	for _, c := range append(spec.GetInitContainers(), spec.GetContainers()...) {
		c.Resources = &balsav1.ResourceRequirements{Requests: c.GetResources().GetLimits()}
	}
	most, _ = object.PodRequests(spec)
	return asked, most
}

func cpuShare(milli int64, room map[string]*balsav1.Quantity) string {
	whole, _ := object.MilliCPU(room["cpu"])
	return fmt.Sprintf("%dm (%s)", milli, percent(milli, whole))
}

func memoryShare(bytes int64, room map[string]*balsav1.Quantity) string {
	whole, _ := object.Bytes(room["memory"])
	return fmt.Sprintf("%s (%s)", mebibytes(bytes), percent(bytes, whole))
}

func diskShare(bytes int64, room map[string]*balsav1.Quantity) string {
	whole, _ := object.Bytes(room["ephemeral-storage"])
	return fmt.Sprintf("%s (%s)", mebibytes(bytes), percent(bytes, whole))
}

// allocated sums what pods have asked for: what is left takes new ones.
func (s *sheet) allocated(pods []*balsav1.Pod, room map[string]*balsav1.Quantity) {
	var asked, most object.Requests
	for _, pod := range pods {
		a, m := demandOf(pod)
		asked.MilliCPU, most.MilliCPU = asked.MilliCPU+a.MilliCPU, most.MilliCPU+m.MilliCPU
		asked.MemoryBytes, most.MemoryBytes = asked.MemoryBytes+a.MemoryBytes, most.MemoryBytes+m.MemoryBytes
		asked.EphemeralBytes, most.EphemeralBytes = asked.EphemeralBytes+a.EphemeralBytes, most.EphemeralBytes+m.EphemeralBytes
	}
	s.table("Allocated",
		[]string{"RESOURCE", "REQUESTS", "LIMITS"},
		[]string{"cpu", cpuShare(asked.MilliCPU, room), cpuShare(most.MilliCPU, room)},
		[]string{"memory", memoryShare(asked.MemoryBytes, room), memoryShare(most.MemoryBytes, room)},
		[]string{"ephemeral-storage", diskShare(asked.EphemeralBytes, room), diskShare(most.EphemeralBytes, room)},
		[]string{"pods", count(len(pods)), room["pods"].GetString_()},
	)
}
