// Package storage binds PersistentVolumeClaims to PersistentVolumes. A claim of a
// class gets a volume of its own on the node where its first pod was placed; one
// without a class gets a volume that an administrator made.
//
// It refuses to touch contents: the agent makes them when a pod first needs them,
// and removes them when a volume was released and its policy says so.
package storage

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// The classes that every cluster has. They are made once they are missing, so
// that an administrator may change but not lose them.
const (
	ClassLocal     = "local"
	ClassDirectory = "local-directory"
)

// ConditionBound of a claim says why it has no volume yet.
const ConditionBound = "Bound"

// Reasons of the condition.
const (
	ReasonWaitForFirstConsumer = "WaitForFirstConsumer"
	ReasonClassNotFound        = "ClassNotFound"
	ReasonNoVolume             = "NoMatchingVolume"
	ReasonVolumeNotFound       = "VolumeNotFound"
	ReasonVolumeMismatch       = "VolumeMismatch"
	ReasonVolumeTaken          = "VolumeTaken"
	ReasonBound                = "Bound"
	ReasonLost                 = "VolumeLost"
)

// View is what a plan looks at. What it points to is shared and frozen.
type View struct {
	Claims  []*balsav1.PersistentVolumeClaim
	Volumes []*balsav1.PersistentVolume
	Classes []*balsav1.StorageClass
	// Pods are those that use claims and have not ended.
	Pods []*balsav1.Pod
	// Nodes are the names of the nodes that there are.
	Nodes map[string]bool
}

// Step is one transaction.
type Step struct {
	// Create holds new objects, to be stamped; Update and Delete ones that were
	// read; Expect what the step relies on.
	Create, Update, Delete, Expect []object.Message
	// About, Warning, Reason and Message are the event to record, if About is set.
	About           object.Message
	Warning         bool
	Reason, Message string
}

// String prints a step on one line.
func (s Step) String() string {
	var words []string
	add := func(verb string, list []object.Message) {
		for _, m := range list {
			words = append(words, verb+" "+object.KeyOf(m)+describe(m))
		}
	}
	add("create", s.Create)
	add("update", s.Update)
	add("delete", s.Delete)
	if s.About != nil {
		words = append(words, fmt.Sprintf("say %s: %s", s.Reason, s.Message))
	}
	return strings.Join(words, "; ")
}

func describe(m object.Message) string {
	switch m := m.(type) {
	case *balsav1.PersistentVolume:
		return fmt.Sprintf(" (%s, on %s, for %s/%s)", m.GetStatus().GetPhase(), object.VolumeNode(m.GetSpec()), m.GetSpec().GetClaimRef().GetNamespace(), m.GetSpec().GetClaimRef().GetName())
	case *balsav1.PersistentVolumeClaim:
		return fmt.Sprintf(" (%s %s)", m.GetStatus().GetPhase(), m.GetSpec().GetVolumeName())
	}
	return ""
}

// Plan is what has to change now. It is stable: carried out, the next is empty.
func Plan(v View, now time.Time) []Step {
	p := newPlanner(v, now)
	p.classes()
	for _, claim := range v.Claims {
		p.claim(claim)
	}
	for _, volume := range v.Volumes {
		if p.bound[volume.GetMetadata().GetName()] == "" { // this plan's, changed already
			p.volume(volume)
		}
	}
	return p.steps
}

type planner struct {
	View
	now     time.Time
	claims  map[string]*balsav1.PersistentVolumeClaim // by uid
	volumes map[string]*balsav1.PersistentVolume
	class   map[string]*balsav1.StorageClass
	users   map[string][]*balsav1.Pod // by the claim's key
	bound   map[string]string         // the claims of volumes that this plan gave away
	steps   []Step
}

func newPlanner(v View, now time.Time) *planner {
	p := &planner{
		View: v, now: now, claims: map[string]*balsav1.PersistentVolumeClaim{}, volumes: map[string]*balsav1.PersistentVolume{},
		class: map[string]*balsav1.StorageClass{}, users: map[string][]*balsav1.Pod{}, bound: map[string]string{},
	}
	byKey := func(a, b object.Message) int { return strings.Compare(object.KeyOf(a), object.KeyOf(b)) }
	p.Classes = slices.Clone(v.Classes)
	p.Claims = slices.SortedFunc(slices.Values(v.Claims), func(a, b *balsav1.PersistentVolumeClaim) int { return byKey(a, b) })
	p.Volumes = slices.SortedFunc(slices.Values(v.Volumes), func(a, b *balsav1.PersistentVolume) int { return byKey(a, b) })
	for _, c := range p.Claims {
		p.claims[c.GetMetadata().GetUid()] = c
	}
	for _, x := range p.Volumes {
		p.volumes[x.GetMetadata().GetName()] = x
	}
	for _, c := range v.Classes {
		p.class[c.GetMetadata().GetName()] = c
	}
	for _, pod := range v.Pods {
		for _, name := range object.ClaimNames(pod.GetSpec()) {
			key := pod.GetMetadata().GetNamespace() + "/" + name
			p.users[key] = append(p.users[key], pod)
		}
	}
	return p
}

func (p *planner) do(s Step) { p.steps = append(p.steps, s) }

// classes makes the built-in ones.
func (p *planner) classes() {
	for _, name := range []string{ClassLocal, ClassDirectory} {
		if p.class[name] != nil {
			continue
		}
		class := &balsav1.StorageClass{
			Metadata: &balsav1.ObjectMeta{Name: name}, Provisioner: object.ProvisionerLocal,
			Parameters: map[string]string{object.ParameterType: object.FSTypeExt4},
		}
		if name == ClassDirectory {
			class.Parameters[object.ParameterType] = object.TypeDirectory
		} else {
			class.Metadata.Annotations = map[string]string{object.AnnotationDefaultClass: "true"}
		}
		p.do(Step{Create: []object.Message{class}})
		p.class[name], p.Classes = class, append(p.Classes, class)
	}
}

// DefaultClass is the class of claims that name none: the newest of those that
// are marked, or nil.
func DefaultClass(classes []*balsav1.StorageClass) *balsav1.StorageClass {
	var found *balsav1.StorageClass
	for _, c := range classes {
		if c.GetMetadata().GetAnnotations()[object.AnnotationDefaultClass] != "true" {
			continue
		}
		if found == nil || newer(c, found) {
			found = c
		}
	}
	return found
}

func newer(a, b object.Message) bool {
	x, y := a.GetMetadata().GetCreationTimestamp().AsTime(), b.GetMetadata().GetCreationTimestamp().AsTime()
	if !x.Equal(y) {
		return x.After(y)
	}
	return a.GetMetadata().GetName() < b.GetMetadata().GetName()
}

func claimID(c *balsav1.PersistentVolumeClaim) string {
	return c.GetMetadata().GetNamespace() + "/" + c.GetMetadata().GetName()
}

// claim decides about one claim.
func (p *planner) claim(c *balsav1.PersistentVolumeClaim) {
	if object.IsTerminating(c) {
		if len(p.users[claimID(c)]) == 0 {
			p.do(Step{Delete: []object.Message{c}})
		}
		return
	}
	name := c.GetSpec().GetVolumeName()
	if name == "" {
		p.unbound(c)
		return
	}
	volume := p.volumes[name]
	if volume == nil {
		p.withoutVolume(c, name)
		return
	}
	if refersTo(volume, c) {
		p.bind(c, volume, false)
		return
	}
	if why, reason := p.mismatch(volume, c); reason != "" {
		p.wait(c, reason, why)
		return
	}
	p.bind(c, volume, false)
}

func (p *planner) withoutVolume(c *balsav1.PersistentVolumeClaim, name string) {
	if phase := c.GetStatus().GetPhase(); phase != object.ClaimBound && phase != object.ClaimLost {
		p.wait(c, ReasonVolumeNotFound, fmt.Sprintf("persistentvolume %q does not exist", name))
		return
	}
	next := object.Clone(c)
	next.Status.Phase = object.ClaimLost
	p.tell(c, next, ReasonLost, fmt.Sprintf("persistentvolume %q, and what was in it, is gone", name))
}

// unbound finds or makes a volume.
func (p *planner) unbound(c *balsav1.PersistentVolumeClaim) {
	if volume := p.reserved(c); volume != nil {
		p.bind(c, volume, false)
		return
	}
	class, reason, message := p.classOf(c)
	if class == nil && reason == "" {
		p.unboundWithoutClass(c)
		return
	}
	if class == nil {
		p.wait(c, reason, message)
		return
	}
	pod := p.firstConsumer(c)
	if pod == nil {
		p.wait(c, ReasonWaitForFirstConsumer, "its volume is made where its first pod is placed; no pod that uses it has been placed yet")
		return
	}
	p.bind(c, p.newVolume(c, class, pod.GetSpec().GetNodeName()), true)
}

func (p *planner) unboundWithoutClass(c *balsav1.PersistentVolumeClaim) {
	volume := p.smallest(c)
	if volume == nil {
		p.wait(c, ReasonNoVolume, "no persistentvolume without a class is free, large enough and of its access mode: make one, or name a storageClassName")
		return
	}
	p.bind(c, volume, false)
}

// classOf is the claim's class. None and no reason: it asks for none.
func (p *planner) classOf(c *balsav1.PersistentVolumeClaim) (class *balsav1.StorageClass, reason, message string) {
	if c.GetSpec().StorageClassName == nil {
		if class = DefaultClass(p.Classes); class == nil {
			return nil, ReasonClassNotFound, "it names no storageClassName and no class is marked as the default"
		}
		return class, "", ""
	}
	name := c.GetSpec().GetStorageClassName()
	if name == "" {
		return nil, "", ""
	}
	if class = p.class[name]; class == nil {
		return nil, ReasonClassNotFound, fmt.Sprintf("storageclass %q does not exist", name)
	}
	return class, "", ""
}

// firstConsumer is the oldest pod that uses the claim and was placed on a node
// that there is.
func (p *planner) firstConsumer(c *balsav1.PersistentVolumeClaim) *balsav1.Pod {
	var first *balsav1.Pod
	for _, pod := range p.users[claimID(c)] {
		if !p.Nodes[pod.GetSpec().GetNodeName()] || object.IsTerminating(pod) {
			continue
		}
		if first == nil || newer(first, pod) {
			first = pod
		}
	}
	return first
}

func refersTo(v *balsav1.PersistentVolume, c *balsav1.PersistentVolumeClaim) bool {
	return v.GetSpec().GetClaimRef().GetUid() != "" && v.GetSpec().GetClaimRef().GetUid() == c.GetMetadata().GetUid()
}

// reserved is a volume that names the claim: a plan that was carried out in half,
// or an administrator's wish.
func (p *planner) reserved(c *balsav1.PersistentVolumeClaim) *balsav1.PersistentVolume {
	for _, v := range p.Volumes {
		ref := v.GetSpec().GetClaimRef()
		if refersTo(v, c) {
			return v
		}
		if ref == nil || ref.GetUid() != "" || ref.GetNamespace() != c.GetMetadata().GetNamespace() || ref.GetName() != c.GetMetadata().GetName() {
			continue
		}
		if _, reason := p.mismatch(v, c); reason == "" {
			return v
		}
	}
	return nil
}

// smallest is the smallest free volume without a class that is good for a claim.
func (p *planner) smallest(c *balsav1.PersistentVolumeClaim) *balsav1.PersistentVolume {
	var best *balsav1.PersistentVolume
	for _, v := range p.Volumes {
		if v.GetSpec().GetStorageClassName() != "" || v.GetSpec().GetClaimRef() != nil {
			continue
		}
		if _, reason := p.mismatch(v, c); reason != "" {
			continue
		}
		if best == nil || storage(v.GetSpec().GetCapacity()) < storage(best.GetSpec().GetCapacity()) {
			best = v
		}
	}
	return best
}

// storage is a quantity of storage in bytes; what was never validated counts 0.
func storage(resources map[string]*balsav1.Quantity) int64 {
	n, err := object.Bytes(resources[object.ResourceStorage])
	if err != nil {
		return 0
	}
	return n
}

// mismatch says why a claim cannot have a volume; an empty reason: it can.
func (p *planner) mismatch(v *balsav1.PersistentVolume, c *balsav1.PersistentVolumeClaim) (why, reason string) {
	name, ref := v.GetMetadata().GetName(), v.GetSpec().GetClaimRef()
	ours := ref.GetNamespace() == c.GetMetadata().GetNamespace() && ref.GetName() == c.GetMetadata().GetName() && ref.GetUid() == ""
	switch {
	case p.bound[name] != "":
		return fmt.Sprintf("persistentvolume %q belongs to claim %s", name, p.bound[name]), ReasonVolumeTaken
	case ref != nil && !ours:
		return fmt.Sprintf("persistentvolume %q belongs to claim %s/%s", name, ref.GetNamespace(), ref.GetName()), ReasonVolumeTaken
	case object.IsTerminating(v):
		return fmt.Sprintf("persistentvolume %q is being deleted", name), ReasonVolumeTaken
	case storage(v.GetSpec().GetCapacity()) < storage(c.GetSpec().GetResources().GetRequests()):
		return fmt.Sprintf("persistentvolume %q has %s, the claim asks for %s", name,
			v.GetSpec().GetCapacity()[object.ResourceStorage].GetString_(), c.GetSpec().GetResources().GetRequests()[object.ResourceStorage].GetString_()), ReasonVolumeMismatch
	case v.GetSpec().GetStorageClassName() != c.GetSpec().GetStorageClassName():
		return fmt.Sprintf("persistentvolume %q is of class %q, the claim of class %q", name,
			v.GetSpec().GetStorageClassName(), c.GetSpec().GetStorageClassName()), ReasonVolumeMismatch
	}
	for _, mode := range c.GetSpec().GetAccessModes() {
		if !slices.Contains(v.GetSpec().GetAccessModes(), mode) {
			return fmt.Sprintf("persistentvolume %q does not offer access mode %s", name, mode), ReasonVolumeMismatch
		}
	}
	return "", ""
}

// newVolume is the volume of a claim of a class, named after the claim's uid, so
// that a plan that is carried out twice makes one.
func (p *planner) newVolume(c *balsav1.PersistentVolumeClaim, class *balsav1.StorageClass, node string) *balsav1.PersistentVolume {
	fsType := class.GetParameters()[object.ParameterType]
	if fsType == object.TypeDirectory {
		fsType = ""
	}
	policy := class.GetReclaimPolicy()
	if policy == "" {
		policy = object.ReclaimDelete
	}
	return &balsav1.PersistentVolume{
		Metadata: &balsav1.ObjectMeta{Name: "pvc-" + c.GetMetadata().GetUid()},
		Spec: &balsav1.PersistentVolumeSpec{
			Capacity:    map[string]*balsav1.Quantity{object.ResourceStorage: c.GetSpec().GetResources().GetRequests()[object.ResourceStorage]},
			AccessModes: slices.Clone(c.GetSpec().GetAccessModes()), StorageClassName: class.GetMetadata().GetName(),
			PersistentVolumeReclaimPolicy: policy, VolumeMode: object.VolumeFilesystem,
			NodeAffinity: object.VolumeOnNode(node), Local: &balsav1.LocalVolumeSource{FsType: fsType},
		},
	}
}

// bind makes claim and volume name each other, in one transaction, unless they do.
func (p *planner) bind(c *balsav1.PersistentVolumeClaim, v *balsav1.PersistentVolume, fresh bool) {
	p.bound[v.GetMetadata().GetName()] = claimID(c)
	claim, volume := object.Clone(c), object.Clone(v)
	volume.Spec.ClaimRef = &balsav1.ClaimReference{Namespace: c.GetMetadata().GetNamespace(), Name: c.GetMetadata().GetName(), Uid: c.GetMetadata().GetUid()}
	volume.Status = &balsav1.PersistentVolumeStatus{Phase: object.VolumeBound}
	claim.Spec.VolumeName = v.GetMetadata().GetName()
	if claim.Spec.StorageClassName == nil {
		claim.Spec.StorageClassName = proto.String(v.GetSpec().GetStorageClassName())
	}
	if claim.Status == nil {
		claim.Status = &balsav1.PersistentVolumeClaimStatus{}
	}
	claim.Status.Phase, claim.Status.AccessModes, claim.Status.Capacity = object.ClaimBound, v.GetSpec().GetAccessModes(), v.GetSpec().GetCapacity()
	message := fmt.Sprintf("bound to persistentvolume %s on node %s", v.GetMetadata().GetName(), object.VolumeNode(v.GetSpec()))
	claim.Status.Conditions, _ = object.SetCondition(claim.Status.Conditions, &balsav1.Condition{
		Type: ConditionBound, Status: object.ConditionTrue, Reason: ReasonBound, Message: message,
	}, p.now)
	s := Step{}
	switch {
	case fresh:
		s.Create = append(s.Create, volume)
	case !proto.Equal(volume, v):
		s.Update = append(s.Update, volume)
	default:
		s.Expect = append(s.Expect, v)
	}
	if !proto.Equal(claim, c) {
		s.Update = append(s.Update, claim)
		s.About, s.Reason, s.Message = claim, ReasonBound, message
	}
	if len(s.Create)+len(s.Update) > 0 {
		p.do(s)
	}
}

// wait says why a claim has no volume yet.
func (p *planner) wait(c *balsav1.PersistentVolumeClaim, reason, message string) {
	next := object.Clone(c)
	if next.Status == nil {
		next.Status = &balsav1.PersistentVolumeClaimStatus{}
	}
	next.Status.Phase = object.ClaimPending
	p.tell(c, next, reason, message)
}

func (p *planner) tell(c, next *balsav1.PersistentVolumeClaim, reason, message string) {
	conditions, changed := object.SetCondition(next.Status.Conditions, &balsav1.Condition{
		Type: ConditionBound, Status: object.ConditionFalse, Reason: reason, Message: message,
	}, p.now)
	if !changed && next.Status.Phase == c.GetStatus().GetPhase() {
		return
	}
	next.Status.Conditions = conditions
	p.do(Step{
		Update: []object.Message{next}, About: next, Warning: reason != ReasonWaitForFirstConsumer, Reason: reason, Message: message,
	})
}

// volume decides about a volume that no claim of this plan was bound to.
func (p *planner) volume(v *balsav1.PersistentVolume) {
	ref := v.GetSpec().GetClaimRef()
	switch {
	case ref == nil || ref.GetUid() == "":
		if object.IsTerminating(v) {
			p.do(Step{Delete: []object.Message{v}})
			return
		}
		p.phase(v, object.VolumeAvailable, "")
	case p.claims[ref.GetUid()] != nil:
		// The claim is about to go and a pod still uses it.
	case v.GetSpec().GetPersistentVolumeReclaimPolicy() != object.ReclaimDelete:
		if object.IsTerminating(v) {
			p.do(Step{Delete: []object.Message{v}})
			return
		}
		p.phase(v, object.VolumeReleased, "its claim was deleted; the contents are kept until the volume is deleted")
	case !p.Nodes[object.VolumeNode(v.GetSpec())]:
		p.do(Step{Delete: []object.Message{v}}) // and its contents went with the node
	case v.GetSpec().GetLocal().GetPath() != "":
		p.phase(v, object.VolumeFailed, "reclaim policy Delete: what an administrator made is not removed; delete the contents and then the volume")
		if object.IsTerminating(v) {
			p.do(Step{Delete: []object.Message{v}})
		}
	default: // the node removes the contents and then the volume
		p.phase(v, object.VolumeReleased, "its claim was deleted; its node removes the contents")
	}
}

func (p *planner) phase(v *balsav1.PersistentVolume, phase, message string) {
	if v.GetStatus().GetPhase() == phase && v.GetStatus().GetMessage() == message {
		return
	}
	next := object.Clone(v)
	next.Status = &balsav1.PersistentVolumeStatus{Phase: phase, Message: message}
	p.do(Step{Update: []object.Message{next}})
}
