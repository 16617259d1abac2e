package object

import (
	"maps"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Values that a kind's fields take when they are not given.
const (
	DefaultNamespace                   = "default"
	DefaultReplicas              int32 = 1
	DefaultTerminationGrace      int64 = 30
	DefaultRevisionHistoryLimit  int32 = 10
	DefaultProgressDeadline      int32 = 600
	DefaultMaxSurge                    = "25%"
	DefaultMaxUnavailable              = "25%"
	DefaultProbeTimeoutSeconds   int32 = 1
	DefaultProbePeriodSeconds    int32 = 10
	DefaultProbeSuccessThreshold int32 = 1
	DefaultProbeFailureThreshold int32 = 3
	defaultNamespaceLabel              = "kubernetes.io/metadata.name"
	defaultFieldRefAPIVersion          = "v1"
)

// Default fills in what was not given, in place. Applied twice it changes
// nothing the second time.
func Default(m Message) {
	kind := kinds[kindIndex(m)]
	meta := EnsureMetadata(m)
	if kind.Namespaced && meta.Namespace == "" {
		meta.Namespace = DefaultNamespace
	}
	setTypeMeta(m, kind)
	switch m := m.(type) {
	case *balsav1.Namespace:
		defaultNamespace(m)
	case *balsav1.Pod:
		defaultPod(m.GetSpec())
	case *balsav1.ReplicaSet:
		defaultReplicaSet(m.GetSpec())
	case *balsav1.Deployment:
		defaultDeployment(m.GetSpec())
	case *balsav1.Service:
		m.Spec = ensure(m.Spec)
		defaultService(m.Spec)
	case *balsav1.NetworkPolicy:
		m.Spec = ensure(m.Spec)
		defaultNetworkPolicy(m.Spec)
	case *balsav1.PodDisruptionBudget:
		m.Spec = ensure(m.Spec)
		setDefaultPtr(&m.Spec.UnhealthyPodEvictionPolicy, EvictIfHealthyBudget)
	case *balsav1.AddressPool:
		m.Spec = ensure(m.Spec)
		setDefaultPtr(&m.Spec.AutoAssign, true)
	case *balsav1.StorageClass:
		defaultStorageClass(m)
	case *balsav1.PersistentVolume:
		defaultPersistentVolume(m.GetSpec())
	case *balsav1.PersistentVolumeClaim:
		if m.GetSpec() != nil {
			setDefault(&m.Spec.VolumeMode, VolumeFilesystem)
		}
	case *balsav1.Secret:
		foldStringData(m)
		setDefault(&m.Type, SecretOpaque)
	case *balsav1.Event:
		defaultEvent(m)
	}
}

// EnsureMetadata returns the metadata of m, which it makes if there is none.
func EnsureMetadata(m Message) *balsav1.ObjectMeta {
	r := m.ProtoReflect()
	return r.Mutable(metadataField(r)).Message().Interface().(*balsav1.ObjectMeta)
}

func setTypeMeta(m Message, kind Kind) {
	r := m.ProtoReflect()
	fields := r.Descriptor().Fields()
	if m.GetApiVersion() == "" {
		r.Set(fields.ByName("api_version"), valueOfString(kind.APIVersion))
	}
	if m.GetKind() == "" {
		r.Set(fields.ByName("kind"), valueOfString(kind.Name))
	}
}

func setDefault(s *string, value string) {
	if *s == "" {
		*s = value
	}
}

func setDefaultPtr[T any](p **T, value T) {
	if *p == nil {
		*p = &value
	}
}

func ensure[T any](p *T) *T {
	if p == nil {
		return new(T)
	}
	return p
}

func defaultNamespace(m *balsav1.Namespace) {
	if m.Metadata.GetName() == "" || m.Metadata.Labels[defaultNamespaceLabel] != "" {
		return
	}
	if m.Metadata.Labels == nil {
		m.Metadata.Labels = map[string]string{}
	}
	m.Metadata.Labels[defaultNamespaceLabel] = m.Metadata.Name
}

func defaultReplicaSet(spec *balsav1.ReplicaSetSpec) {
	if spec == nil {
		return
	}
	setDefaultPtr(&spec.Replicas, DefaultReplicas)
	defaultPodSpec(spec.GetTemplate().GetSpec())
}

func defaultDeployment(spec *balsav1.DeploymentSpec) {
	if spec == nil {
		return
	}
	setDefaultPtr(&spec.Replicas, DefaultReplicas)
	setDefaultPtr(&spec.RevisionHistoryLimit, DefaultRevisionHistoryLimit)
	setDefaultPtr(&spec.ProgressDeadlineSeconds, DefaultProgressDeadline)
	setDefault(&spec.OnFailure, OnFailureRollback)
	spec.Strategy = ensure(spec.Strategy)
	setDefault(&spec.Strategy.Type, StrategyRollingUpdate)
	if spec.Strategy.Type == StrategyRollingUpdate {
		defaultRollingUpdate(spec.Strategy)
	}
	defaultPodSpec(spec.GetTemplate().GetSpec())
}

func defaultRollingUpdate(s *balsav1.DeploymentStrategy) {
	s.RollingUpdate = ensure(s.RollingUpdate)
	if s.RollingUpdate.MaxUnavailable == nil {
		s.RollingUpdate.MaxUnavailable = StringValue(DefaultMaxUnavailable)
	}
	if s.RollingUpdate.MaxSurge == nil {
		s.RollingUpdate.MaxSurge = StringValue(DefaultMaxSurge)
	}
}

// foldStringData moves the plain text that a user wrote into data.
func foldStringData(s *balsav1.Secret) {
	if len(s.StringData) == 0 {
		return
	}
	if s.Data == nil {
		s.Data = make(map[string][]byte, len(s.StringData))
	}
	for key, text := range maps.All(s.StringData) {
		s.Data[key] = []byte(text)
	}
	s.StringData = nil
}

func defaultEvent(e *balsav1.Event) {
	setDefault(&e.Type, EventNormal)
	if e.Count == 0 {
		e.Count = 1
	}
}

func defaultStorageClass(c *balsav1.StorageClass) {
	setDefault(&c.ReclaimPolicy, ReclaimDelete)
	setDefault(&c.VolumeBindingMode, BindWaitForFirstConsumer)
	if c.Provisioner != ProvisionerLocal || c.Parameters[ParameterType] != "" {
		return
	}
	if c.Parameters == nil {
		c.Parameters = map[string]string{}
	}
	c.Parameters[ParameterType] = FSTypeExt4
}

func defaultPersistentVolume(spec *balsav1.PersistentVolumeSpec) {
	if spec == nil {
		return
	}
	setDefault(&spec.PersistentVolumeReclaimPolicy, ReclaimRetain)
	setDefault(&spec.VolumeMode, VolumeFilesystem)
}
