package placement

import (
	"fmt"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/scheduler"
)

// claims tells where a pod's volumes let it be. A claim whose volume has yet to
// be made gets it on the node of its first pod: until that is written, no other
// pod that uses it may be placed, or they could part.
type claims struct {
	claims  map[string]*balsav1.PersistentVolumeClaim // by namespace/name
	volumes map[string]*balsav1.PersistentVolume
	// first is the pod that an unbound claim, or one for a single pod, is given to.
	first map[string]string
}

func newClaims(v View) *claims {
	c := &claims{
		claims: map[string]*balsav1.PersistentVolumeClaim{}, volumes: map[string]*balsav1.PersistentVolume{}, first: map[string]string{},
	}
	for _, claim := range v.Claims {
		c.claims[claim.GetMetadata().GetNamespace()+"/"+claim.GetMetadata().GetName()] = claim
	}
	for _, volume := range v.Volumes {
		c.volumes[volume.GetMetadata().GetName()] = volume
	}
	return c
}

// take notes what a pod uses that has a node, or is about to get one.
func (c *claims) take(pod *balsav1.Pod) {
	for _, name := range object.ClaimNames(pod.GetSpec()) {
		key := pod.GetMetadata().GetNamespace() + "/" + name
		if _, taken := c.first[key]; !taken {
			c.first[key] = pod.GetMetadata().GetName()
		}
	}
}

// resolve fills in p.Volumes, or p.Blocked. Pods are asked in the order in which
// they will be placed.
func (c *claims) resolve(pod *balsav1.Pod, p *scheduler.Pod) {
	for _, name := range object.ClaimNames(pod.GetSpec()) {
		node, blocked := c.claim(pod, name)
		if blocked != "" {
			p.Blocked, p.Volumes = blocked, nil
			return
		}
		if node != "" {
			p.Volumes = append(p.Volumes, node)
		}
	}
	c.take(pod)
}

func (c *claims) claim(pod *balsav1.Pod, name string) (node, blocked string) {
	key := pod.GetMetadata().GetNamespace() + "/" + name
	claim := c.claims[key]
	what := fmt.Sprintf("persistentvolumeclaim %q", name)
	switch {
	case claim == nil:
		return "", what + " does not exist: apply it, or mend spec.volumes"
	case object.IsTerminating(claim):
		return "", what + " is being deleted"
	case claim.GetStatus().GetPhase() == object.ClaimLost:
		return "", what + " has lost its volume: delete the claim and make it anew"
	}
	if first := c.first[key]; first != "" && single(claim) {
		return "", fmt.Sprintf("%s is ReadWriteOncePod and pod %q has it", what, first)
	}
	if claim.GetStatus().GetPhase() != object.ClaimBound {
		return "", c.unbound(claim, key, what)
	}
	volume := c.volumes[claim.GetSpec().GetVolumeName()]
	if volume == nil {
		return "", fmt.Sprintf("%s is bound to persistentvolume %q, which does not exist", what, claim.GetSpec().GetVolumeName())
	}
	return object.VolumeNode(volume.GetSpec()), ""
}

func single(claim *balsav1.PersistentVolumeClaim) bool {
	modes := claim.GetSpec().GetAccessModes()
	return len(modes) == 1 && modes[0] == object.AccessReadWriteOncePod
}

// unbound lets the first pod of a claim be placed if a volume will then be made.
func (c *claims) unbound(claim *balsav1.PersistentVolumeClaim, key, what string) string {
	if first := c.first[key]; first != "" {
		return fmt.Sprintf("%s gets its volume where pod %q is placed", what, first)
	}
	why := object.FindCondition(claim.GetStatus().GetConditions(), conditionBound)
	if why.GetReason() == reasonWaits {
		return ""
	}
	if why.GetMessage() == "" {
		return what + " has no volume yet"
	}
	return what + " has no volume: " + why.GetMessage()
}

// What reconciler/storage says of a claim whose volume is made for its first pod.
const (
	conditionBound = "Bound"
	reasonWaits    = "WaitForFirstConsumer"
)
