package object

import (
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

const podImmutableHint = "delete the pod and create it again, or change the Deployment that made it"

// podUpdate: of a pod's spec only these change: nodeName, once, by the binding;
// ephemeralContainers and tolerations grow; activeDeadlineSeconds comes nearer.
func (c *check) podUpdate(old, next *balsav1.Pod) {
	// An earlier version stored pods without the defaults of this one.
	old, next = Clone(old), Clone(next)
	defaultPod(old.Spec)
	defaultPod(next.Spec)
	if proto.Equal(old.GetSpec(), next.GetSpec()) {
		return
	}
	from, to := old.GetSpec(), next.GetSpec()
	if from.GetNodeName() != to.GetNodeName() && (c.writer != System || from.GetNodeName() != "") {
		c.add(Violation{Field: "spec.nodeName", Message: "is written once, by the scheduler", Found: quoted(to.GetNodeName()), Allowed: quoted(from.GetNodeName())})
	}
	c.deadlineUpdate(from, to)
	c.tolerationsUpdate(from.GetTolerations(), to.GetTolerations())
	c.ephemeralUpdate(from.GetEphemeralContainers(), to.GetEphemeralContainers())
	c.restOfPod(from, to)
}

func (c *check) deadlineUpdate(old, next *balsav1.PodSpec) {
	const path = "spec.activeDeadlineSeconds"
	switch {
	case old == nil || old.ActiveDeadlineSeconds == nil:
	case next == nil || next.ActiveDeadlineSeconds == nil:
		c.add(Violation{Field: path, Message: "cannot be taken back", Hint: podImmutableHint})
	case next.GetActiveDeadlineSeconds() > old.GetActiveDeadlineSeconds():
		c.between(path, next.GetActiveDeadlineSeconds(), 1, old.GetActiveDeadlineSeconds())
	}
}

// tolerationsUpdate: those that are there stay, but for their seconds.
func (c *check) tolerationsUpdate(old, next []*balsav1.Toleration) {
	for i, o := range old {
		found := false
		for _, n := range next {
			found = found || o.GetKey() == n.GetKey() && o.GetOperator() == n.GetOperator() && o.GetValue() == n.GetValue() && o.GetEffect() == n.GetEffect()
		}
		if !found {
			c.add(Violation{Field: "spec.tolerations", Message: "of a pod can be added, not changed or removed", Found: "nothing like the one at " + index("tolerations", i), Hint: podImmutableHint})
			return
		}
	}
}

func (c *check) ephemeralUpdate(old, next []*balsav1.EphemeralContainer) {
	const path = "spec.ephemeralContainers"
	for i, o := range old {
		if i >= len(next) || !proto.Equal(o, next[i]) {
			c.add(Violation{Field: index(path, i), Message: "never changes and is never removed", Found: quoted(o.GetName()), Hint: "add another one at the end"})
			return
		}
	}
}

// restOfPod names each field that changed and never does.
func (c *check) restOfPod(old, next *balsav1.PodSpec) {
	a, b := ensure(old).ProtoReflect(), ensure(next).ProtoReflect()
	fields := a.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		switch fd.Name() {
		case "node_name", "active_deadline_seconds", "tolerations", "ephemeral_containers":
			continue
		}
		if a.Has(fd) == b.Has(fd) && a.Get(fd).Equal(b.Get(fd)) {
			continue
		}
		path := field("spec", fd.JSONName())
		switch fd.Name() {
		case "containers":
			c.containersUpdate(path, old.GetContainers(), next.GetContainers())
		case "init_containers":
			c.containersUpdate(path, old.GetInitContainers(), next.GetInitContainers())
		default:
			c.add(Violation{Field: path, Message: "never changes in a pod", Hint: podImmutableHint})
		}
	}
}

// containersUpdate names what changed in a container. Kubernetes would take
// another image; here a container runs what its pod was created with.
func (c *check) containersUpdate(path string, old, next []*balsav1.Container) {
	if len(old) != len(next) {
		c.add(Violation{Field: path, Message: "never grows or shrinks in a pod", Hint: podImmutableHint})
		return
	}
	for i := range old {
		a, b := old[i].ProtoReflect(), next[i].ProtoReflect()
		for fields, j := a.Descriptor().Fields(), 0; j < fields.Len(); j++ {
			fd := fields.Get(j)
			if a.Has(fd) != b.Has(fd) || !a.Get(fd).Equal(b.Get(fd)) {
				c.add(Violation{Field: field(index(path, i), fd.JSONName()), Message: "never changes in a pod", Hint: podImmutableHint})
			}
		}
	}
}

func (c *check) noEphemeral(path string) {
	c.add(Violation{Field: path, Message: "are only added to a pod that exists", Hint: "remove the field; use balsa debug once the pod runs"})
}
