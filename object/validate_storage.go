package object

import (
	"maps"
	"strconv"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// labelHostname is the label that nodes have for their name.
const labelHostname = "kubernetes.io/hostname"

func (c *check) storageClass(m *balsav1.StorageClass) {
	if m.GetProvisioner() == "" {
		c.required("provisioner", "use "+ProvisionerLocal)
	} else {
		c.oneOf("provisioner", m.GetProvisioner(), []string{ProvisionerLocal}, "kubernetes.io/no-provisioner")
	}
	for _, key := range sortedKeys(m.GetParameters()) {
		here := mapKey("parameters", key)
		if key != ParameterType {
			c.oneOf(here, key, []string{ParameterType})
			continue
		}
		c.oneOf(here, m.GetParameters()[key], []string{FSTypeExt4, TypeDirectory})
	}
	c.oneOf("reclaimPolicy", m.GetReclaimPolicy(), []string{ReclaimDelete, ReclaimRetain}, "Recycle")
	c.oneOf("volumeBindingMode", m.GetVolumeBindingMode(), []string{BindWaitForFirstConsumer}, "Immediate")
}

func (c *check) storageClassUpdate(old, next *balsav1.StorageClass) {
	c.same("provisioner", old.GetProvisioner(), next.GetProvisioner())
	c.same("reclaimPolicy", old.GetReclaimPolicy(), next.GetReclaimPolicy())
	c.same("volumeBindingMode", old.GetVolumeBindingMode(), next.GetVolumeBindingMode())
	if !maps.Equal(old.GetParameters(), next.GetParameters()) {
		c.add(Violation{Field: "parameters", Message: "never changes", Hint: immutableHint})
	}
}

func (c *check) claim(spec *balsav1.PersistentVolumeClaimSpec) {
	if spec == nil {
		c.required("spec", "say how much storage is claimed")
		return
	}
	c.accessModes("spec.accessModes", spec.GetAccessModes())
	c.storageResources(spec.GetResources())
	if spec.GetStorageClassName() != "" {
		c.text("spec.storageClassName", spec.GetStorageClassName(), dnsSubdomainProblem(spec.GetStorageClassName()))
	}
	c.oneOf("spec.volumeMode", spec.GetVolumeMode(), []string{VolumeFilesystem}, "Block")
	if spec.GetVolumeName() != "" {
		c.text("spec.volumeName", spec.GetVolumeName(), dnsSubdomainProblem(spec.GetVolumeName()))
	}
}

func (c *check) accessModes(path string, modes []string) {
	if len(modes) == 0 {
		c.required(path, AccessReadWriteOnce+" is the usual one")
	}
	if !c.atMost(path, len(modes), 2, "modes") {
		return
	}
	for i, mode := range modes {
		c.oneOf(index(path, i), mode, []string{AccessReadWriteOnce, AccessReadWriteOncePod}, "ReadWriteMany", "ReadOnlyMany")
	}
	if len(modes) == 2 {
		c.add(Violation{Field: path, Message: "is more than one mode", Found: modes[0] + ", " + modes[1], Allowed: "one of the two", Hint: "ReadWriteOncePod excludes every other mode"})
	}
}

func (c *check) storageResources(r *balsav1.VolumeResourceRequirements) {
	if r.GetRequests()[ResourceStorage] == nil {
		c.required(mapKey("spec.resources.requests", ResourceStorage), "for example 1Gi")
	}
	c.storageQuantities("spec.resources.requests", r.GetRequests())
	c.storageQuantities("spec.resources.limits", r.GetLimits())
	limit, request := r.GetLimits()[ResourceStorage], r.GetRequests()[ResourceStorage]
	if order, err := CompareQuantity(request, limit); limit != nil && err == nil && order > 0 {
		c.add(Violation{
			Field: mapKey("spec.resources.requests", ResourceStorage), Message: "is more than the limit",
			Found: quoted(request.GetString_()), Allowed: "at most " + quoted(limit.GetString_()),
		})
	}
}

func (c *check) storageQuantities(path string, list map[string]*balsav1.Quantity) {
	for _, name := range sortedKeys(list) {
		here := mapKey(path, name)
		if name != ResourceStorage {
			c.oneOf(here, name, []string{ResourceStorage})
			continue
		}
		if q, ok := c.quantity(here, name, list[name]); ok && q.Sign() == 0 {
			c.add(Violation{Field: here, Message: "is out of range", Found: quoted(list[name].GetString_()), Allowed: "more than 0"})
		}
	}
}

// claimUpdate: the system writes volumeName once, and the class of a claim that
// named none.
func (c *check) claimUpdate(old, next *balsav1.PersistentVolumeClaimSpec) {
	if proto.Equal(old, next) {
		return
	}
	c.onceBySystem("spec.volumeName", old.GetVolumeName(), next.GetVolumeName())
	if old != nil && old.StorageClassName == nil {
		c.onceBySystem("spec.storageClassName", "", next.GetStorageClassName())
	} else {
		c.same("spec.storageClassName", old.GetStorageClassName(), next.GetStorageClassName())
	}
	c.claimSize(old.GetResources(), next.GetResources())
	allowed := proto.CloneOf(next)
	if old != nil && next != nil {
		allowed.VolumeName, allowed.StorageClassName, allowed.Resources = old.VolumeName, old.StorageClassName, old.Resources
	}
	if old == nil || !proto.Equal(allowed, old) {
		c.add(Violation{Field: "spec", Message: "a claim's spec never changes", Hint: "delete the claim and create it again, or use another name"})
	}
}

func (c *check) onceBySystem(path, old, next string) {
	if old != next && (c.writer != System || old != "") {
		c.add(Violation{Field: path, Message: "is written once, by the server", Found: quoted(next), Allowed: quoted(old)})
	}
}

// claimSize: a volume has the size that it was made with.
func (c *check) claimSize(old, next *balsav1.VolumeResourceRequirements) {
	if proto.Equal(old, next) {
		return
	}
	from, to := old.GetRequests()[ResourceStorage], next.GetRequests()[ResourceStorage]
	order, err := CompareQuantity(to, from)
	v := Violation{Field: mapKey("spec.resources.requests", ResourceStorage), Found: quoted(to.GetString_()), Allowed: quoted(from.GetString_())}
	switch {
	case err != nil: // said already
	case order > 0:
		v.Message, v.Hint = "growing a volume is not supported yet", "create another claim and copy the data"
		c.add(v)
	case order < 0:
		v.Message = "never shrinks"
		c.add(v)
	default:
		c.add(Violation{Field: "spec.resources", Message: "never changes", Hint: immutableHint})
	}
}

func (c *check) persistentVolume(spec *balsav1.PersistentVolumeSpec) {
	if spec == nil {
		c.required("spec", "say where the volume lies")
		return
	}
	if spec.GetCapacity()[ResourceStorage] == nil {
		c.required(mapKey("spec.capacity", ResourceStorage), "for example 1Gi")
	}
	c.storageQuantities("spec.capacity", spec.GetCapacity())
	c.accessModes("spec.accessModes", spec.GetAccessModes())
	c.oneOf("spec.persistentVolumeReclaimPolicy", spec.GetPersistentVolumeReclaimPolicy(), []string{ReclaimDelete, ReclaimRetain}, "Recycle")
	if spec.GetStorageClassName() != "" {
		c.text("spec.storageClassName", spec.GetStorageClassName(), dnsSubdomainProblem(spec.GetStorageClassName()))
	}
	c.oneOf("spec.volumeMode", spec.GetVolumeMode(), []string{VolumeFilesystem}, "Block")
	if ref := spec.GetClaimRef(); ref != nil {
		c.refName("spec.claimRef.namespace", ref.GetNamespace())
		c.refName("spec.claimRef.name", ref.GetName())
	}
	c.localVolume(spec)
	if VolumeNode(spec) == "" {
		c.add(Violation{
			Field: "spec.nodeAffinity", Message: "does not name the one node that has the data",
			Allowed: "one of nodeSelectorTerms with one of matchExpressions: " + labelHostname + " In [<node>]",
		})
	}
}

func (c *check) localVolume(spec *balsav1.PersistentVolumeSpec) {
	local := spec.GetLocal()
	if local == nil {
		c.required("spec.local", "other kinds of volumes are not supported yet")
		return
	}
	if local.GetPath() == "" {
		c.optional("spec.local.fsType", local.GetFsType(), FSTypeExt4)
		return
	}
	c.absolutePath("spec.local.path", local.GetPath())
	if local.GetFsType() != "" {
		c.add(Violation{Field: "spec.local.fsType", Message: "has no meaning with a path: a folder has the file system that it has", Hint: "remove the field"})
	}
	if spec.GetPersistentVolumeReclaimPolicy() == ReclaimDelete {
		c.add(Violation{Field: "spec.persistentVolumeReclaimPolicy", Message: "would delete a folder that an administrator made", Found: quoted(ReclaimDelete), Allowed: ReclaimRetain})
	}
}

// VolumeNode is the node that has a PersistentVolume's data; "" when its affinity
// names none or several.
func VolumeNode(spec *balsav1.PersistentVolumeSpec) string {
	terms := spec.GetNodeAffinity().GetRequired().GetNodeSelectorTerms()
	if len(terms) != 1 || len(terms[0].GetMatchExpressions()) != 1 {
		return ""
	}
	e := terms[0].GetMatchExpressions()[0]
	if e.GetKey() != labelHostname || e.GetOperator() != "In" || len(e.GetValues()) != 1 || dnsSubdomainProblem(e.GetValues()[0]) != "" {
		return ""
	}
	return e.GetValues()[0]
}

// VolumeOnNode is the affinity of a PersistentVolume whose data is on a node.
func VolumeOnNode(node string) *balsav1.VolumeNodeAffinity {
	return &balsav1.VolumeNodeAffinity{Required: &balsav1.NodeSelector{NodeSelectorTerms: []*balsav1.NodeSelectorTerm{{
		MatchExpressions: []*balsav1.NodeSelectorRequirement{{Key: labelHostname, Operator: "In", Values: []string{node}}},
	}}}}
}

// persistentVolumeUpdate: where the data lies and how much fits never changes;
// what is claimed by whom, and what becomes of it, does.
func (c *check) persistentVolumeUpdate(old, next *balsav1.PersistentVolumeSpec) {
	for _, f := range []struct {
		path  string
		equal bool
	}{
		{"spec.local", proto.Equal(old.GetLocal(), next.GetLocal())},
		{"spec.nodeAffinity", proto.Equal(old.GetNodeAffinity(), next.GetNodeAffinity())},
		{"spec.volumeMode", old.GetVolumeMode() == next.GetVolumeMode()},
		{"spec.capacity", maps.EqualFunc(old.GetCapacity(), next.GetCapacity(), func(a, b *balsav1.Quantity) bool { return proto.Equal(a, b) })},
	} {
		if !f.equal {
			c.add(Violation{Field: f.path, Message: "never changes", Hint: immutableHint})
		}
	}
}

// modeText is a file mode as programs write it.
func modeText(mode int32) string {
	if mode < 0 {
		return strconv.Itoa(int(mode))
	}
	return "0" + strconv.FormatInt(int64(mode), 8)
}
