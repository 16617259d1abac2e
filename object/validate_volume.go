package object

import (
	"path"
	"slices"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Limits of volumes.
const (
	maxVolumes      = 256
	maxVolumeMounts = 256
	maxVolumeItems  = 1024
	// maxMode is every permission; the bits above are not for files of volumes.
	maxMode = 0o777
)

func (c *check) volumes(path string, volumes []*balsav1.Volume, pod *podParts) {
	if !c.atMost(path, len(volumes), maxVolumes, "volumes") {
		return
	}
	names := map[string]bool{}
	for i, v := range volumes {
		here := index(path, i)
		switch name := v.GetName(); {
		case name == "":
			c.required(field(here, "name"), "")
		case names[name]:
			c.duplicate(field(here, "name"), quoted(name))
		default:
			c.text(field(here, "name"), name, dnsLabelProblem(name))
		}
		names[v.GetName()] = true
		c.volumeSource(here, v, pod)
	}
}

func (c *check) volumeSource(path string, v *balsav1.Volume, pod *podParts) {
	c.exactlyOne(path, []string{"emptyDir", "hostPath", "configMap", "secret", "downwardAPI", "projected", "persistentVolumeClaim"},
		v.GetEmptyDir() != nil, v.GetHostPath() != nil, v.GetConfigMap() != nil, v.GetSecret() != nil, v.GetDownwardApi() != nil,
		v.GetProjected() != nil, v.GetPersistentVolumeClaim() != nil)
	if s := v.GetEmptyDir(); s != nil {
		c.emptyDir(field(path, "emptyDir"), s)
	}
	if s := v.GetHostPath(); s != nil {
		c.hostPath(field(path, "hostPath"), s)
	}
	if s := v.GetConfigMap(); s != nil {
		here := field(path, "configMap")
		c.refName(field(here, "name"), s.GetName())
		c.mode(field(here, "defaultMode"), s.DefaultMode)
		c.keysToPaths(field(here, "items"), s.GetItems(), map[string]bool{})
	}
	if s := v.GetSecret(); s != nil {
		here := field(path, "secret")
		c.refName(field(here, "secretName"), s.GetSecretName())
		c.mode(field(here, "defaultMode"), s.DefaultMode)
		c.keysToPaths(field(here, "items"), s.GetItems(), map[string]bool{})
	}
	if s := v.GetDownwardApi(); s != nil {
		here := field(path, "downwardAPI")
		c.mode(field(here, "defaultMode"), s.DefaultMode)
		c.downwardFiles(field(here, "items"), s.GetItems(), map[string]bool{}, pod)
	}
	if s := v.GetProjected(); s != nil {
		c.projected(field(path, "projected"), s, pod)
	}
	if s := v.GetPersistentVolumeClaim(); s != nil {
		c.refName(field(path, "persistentVolumeClaim.claimName"), s.GetClaimName())
	}
}

func (c *check) emptyDir(path string, s *balsav1.EmptyDirVolumeSource) {
	if medium := s.GetMedium(); medium != "" {
		c.oneOf(field(path, "medium"), medium, []string{MediumMemory}, "HugePages", "HugePages-2Mi", "HugePages-1Gi")
	}
	if s.GetSizeLimit() != nil {
		c.quantity(field(path, "sizeLimit"), ResourceMemory, s.GetSizeLimit())
	}
}

func (c *check) hostPath(path string, s *balsav1.HostPathVolumeSource) {
	if s.GetPath() == "" {
		c.required(field(path, "path"), "name a file or folder of the node")
	} else {
		c.absolutePath(field(path, "path"), s.GetPath())
	}
	c.optional(field(path, "type"), s.GetType(), HostPathDirectoryOrCreate, HostPathDirectory, HostPathFileOrCreate, HostPathFile,
		HostPathSocket, HostPathCharDevice, HostPathBlockDevice)
}

func (c *check) projected(path string, s *balsav1.ProjectedVolumeSource, pod *podParts) {
	c.mode(field(path, "defaultMode"), s.DefaultMode)
	here := field(path, "sources")
	if !c.atMost(here, len(s.GetSources()), maxVolumeItems, "sources") {
		return
	}
	paths := map[string]bool{}
	for i, source := range s.GetSources() {
		one := index(here, i)
		c.exactlyOne(one, []string{"configMap", "secret", "downwardAPI"}, source.GetConfigMap() != nil, source.GetSecret() != nil, source.GetDownwardApi() != nil)
		if m := source.GetConfigMap(); m != nil {
			c.refName(field(one, "configMap.name"), m.GetName())
			c.keysToPaths(field(one, "configMap.items"), m.GetItems(), paths)
		}
		if m := source.GetSecret(); m != nil {
			c.refName(field(one, "secret.name"), m.GetName())
			c.keysToPaths(field(one, "secret.items"), m.GetItems(), paths)
		}
		if m := source.GetDownwardApi(); m != nil {
			c.downwardFiles(field(one, "downwardAPI.items"), m.GetItems(), paths, pod)
		}
	}
}

func (c *check) mode(path string, mode *int32) {
	if mode != nil && (*mode < 0 || *mode > maxMode) {
		c.add(Violation{Field: path, Message: "is out of range", Found: modeText(*mode), Allowed: "0 to 0777", Hint: "JSON has no octal numbers: 0644 is 420 there"})
	}
}

// keysToPaths checks items; paths are those that the volume has already.
func (c *check) keysToPaths(path string, items []*balsav1.KeyToPath, paths map[string]bool) {
	if !c.atMost(path, len(items), maxVolumeItems, "items") {
		return
	}
	for i, item := range items {
		here := index(path, i)
		if item.GetKey() == "" {
			c.required(field(here, "key"), "")
		} else {
			c.text(field(here, "key"), item.GetKey(), dataKeyProblem(item.GetKey()))
		}
		c.volumeFile(field(here, "path"), item.GetPath(), paths)
		c.mode(field(here, "mode"), item.Mode)
	}
}

// volumeFile checks the path of a file in a volume. The names that begin with ..
// are those by which a volume's files change all at once.
func (c *check) volumeFile(at, p string, paths map[string]bool) {
	clean := path.Clean(p)
	switch {
	case p != "" && strings.HasPrefix(p, ".."):
		c.text(at, p, "a path that does not begin with ..")
	case p != "" && paths[clean]:
		c.duplicate(at, quoted(p))
	default:
		c.relativePath(at, p)
	}
	paths[clean] = true
}

func (c *check) downwardFiles(path string, items []*balsav1.DownwardAPIVolumeFile, paths map[string]bool, pod *podParts) {
	if !c.atMost(path, len(items), maxVolumeItems, "items") {
		return
	}
	for i, item := range items {
		here := index(path, i)
		c.volumeFile(field(here, "path"), item.GetPath(), paths)
		c.mode(field(here, "mode"), item.Mode)
		c.exactlyOne(here, []string{"fieldRef", "resourceFieldRef"}, item.GetFieldRef() != nil, item.GetResourceFieldRef() != nil)
		if ref := item.GetFieldRef(); ref != nil {
			c.oneOf(field(here, "fieldRef.apiVersion"), ref.GetApiVersion(), []string{defaultFieldRefAPIVersion})
			if _, ok := ParseVolumeFieldRef(ref.GetFieldPath()); !ok {
				c.text(field(here, "fieldRef.fieldPath"), ref.GetFieldPath(), allowedVolumeFieldPath)
			}
		}
		c.resourceFieldRef(field(here, "resourceFieldRef"), item.GetResourceFieldRef(), pod, true)
	}
}

const allowedVolumeFieldPath = "metadata.name, metadata.namespace, metadata.uid, metadata.labels, metadata.labels['<key>'], metadata.annotations, metadata.annotations['<key>']"

// resourceFieldRef checks a reference to a container's requests or limits; in a
// volume it must say whose.
func (c *check) resourceFieldRef(path string, ref *balsav1.ResourceFieldSelector, pod *podParts, inVolume bool) {
	if ref == nil {
		return
	}
	switch name := ref.GetContainerName(); {
	case name == "" && inVolume:
		c.required(field(path, "containerName"), "name one of the pod's containers")
	case name != "" && !pod.containers[name]:
		c.add(Violation{Field: field(path, "containerName"), Message: "names no container of the pod", Found: quoted(name), Allowed: nameList(pod.containers)})
	}
	if ref.GetResource() == "" {
		c.required(field(path, "resource"), "for example limits.memory")
		return
	}
	c.oneOf(field(path, "resource"), ref.GetResource(), resourceFields())
	if d := ref.GetDivisor(); d != nil && slices.Contains(resourceFields(), ref.GetResource()) && !isDivisor(ref.GetResource(), d) {
		c.text(field(path, "divisor"), d.GetString_(), allowedDivisors(ref.GetResource()))
	}
}

// mounts

func (c *check) volumeMounts(at string, mounts []*balsav1.VolumeMount, security *balsav1.SecurityContext, pod *podParts) {
	if !c.atMost(at, len(mounts), maxVolumeMounts, "mounts") {
		return
	}
	paths := map[string]bool{}
	for i, m := range mounts {
		here := index(at, i)
		switch name := m.GetName(); {
		case name == "":
			c.required(field(here, "name"), "name one of the pod's volumes")
		case !pod.volumes[name]:
			c.add(Violation{Field: field(here, "name"), Message: "names no volume of the pod", Found: quoted(name), Allowed: nameList(pod.volumes)})
		}
		c.mountPath(field(here, "mountPath"), m.GetMountPath(), paths)
		c.subPath(here, m)
		c.optional(field(here, "mountPropagation"), m.GetMountPropagation(), PropagationNone, PropagationHostToContainer, PropagationBidirectional)
		if m.GetMountPropagation() == PropagationBidirectional && !security.GetPrivileged() {
			c.add(Violation{Field: field(here, "mountPropagation"), Message: "is for privileged containers only", Found: quoted(PropagationBidirectional), Hint: "set securityContext.privileged: true, or use HostToContainer"})
		}
	}
}

func (c *check) mountPath(at, p string, paths map[string]bool) {
	clean := path.Clean(p)
	switch {
	case p == "":
		c.required(at, "")
	case paths[clean]:
		c.duplicate(at, quoted(p))
	case clean == "/" || strings.Contains(p, ":"):
		c.text(at, p, "a path below / that has no :")
	default:
		c.absolutePath(at, p)
	}
	paths[clean] = true
}

func (c *check) subPath(path string, m *balsav1.VolumeMount) {
	if m.GetSubPath() != "" && m.GetSubPathExpr() != "" {
		c.add(Violation{Field: field(path, "subPathExpr"), Message: "excludes subPath, which is also set", Allowed: "one of the two"})
	}
	if m.GetSubPath() != "" {
		c.relativePath(field(path, "subPath"), m.GetSubPath())
	}
	if m.GetSubPathExpr() != "" {
		c.relativePath(field(path, "subPathExpr"), m.GetSubPathExpr())
	}
}
