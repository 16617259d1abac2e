package object

import (
	"maps"

	"google.golang.org/protobuf/proto"

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

// Values of enumerated strings.
const (
	RestartAlways    = "Always"
	RestartOnFailure = "OnFailure"
	RestartNever     = "Never"

	PullIfNotPresent = "IfNotPresent"
	PullNever        = "Never"

	ProtocolTCP = "TCP"
	ProtocolUDP = "UDP"

	SchemeHTTP = "HTTP"

	ServiceClusterIP = "ClusterIP"
	// ClusterIPNone is the clusterIP of a headless Service.
	ClusterIPNone = "None"

	StrategyRollingUpdate = "RollingUpdate"
	StrategyRecreate      = "Recreate"

	DoNotSchedule  = "DoNotSchedule"
	ScheduleAnyway = "ScheduleAnyway"

	SecretOpaque = "Opaque"

	EventNormal  = "Normal"
	EventWarning = "Warning"

	AddressIPv4 = "IPv4"
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
		defaultPodSpec(m.GetSpec())
		for _, c := range m.GetSpec().GetContainers() {
			defaultRequests(c.Resources)
		}
	case *balsav1.ReplicaSet:
		defaultReplicaSet(m.GetSpec())
	case *balsav1.Deployment:
		defaultDeployment(m.GetSpec())
	case *balsav1.Service:
		m.Spec = ensure(m.Spec)
		defaultService(m.Spec)
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

func defaultPodSpec(spec *balsav1.PodSpec) {
	if spec == nil {
		return
	}
	setDefault(&spec.RestartPolicy, RestartAlways)
	setDefaultPtr(&spec.TerminationGracePeriodSeconds, DefaultTerminationGrace)
	for _, c := range spec.Containers {
		defaultContainer(c)
	}
}

func defaultContainer(c *balsav1.Container) {
	setDefault(&c.ImagePullPolicy, PullIfNotPresent)
	for _, p := range c.Ports {
		setDefault(&p.Protocol, ProtocolTCP)
	}
	for _, e := range c.Env {
		if ref := e.GetValueFrom().GetFieldRef(); ref != nil {
			setDefault(&ref.ApiVersion, defaultFieldRefAPIVersion)
		}
	}
	defaultProbe(c.ReadinessProbe)
}

// defaultRequests gives a resource that is limited but not requested the limit
// as its request. Only pods get it, as in Kubernetes: in a template, a request
// that nobody wrote would stay behind when the limit is lowered.
func defaultRequests(r *balsav1.ResourceRequirements) {
	for name, limit := range r.GetLimits() {
		if _, ok := r.Requests[name]; ok {
			continue
		}
		if r.Requests == nil {
			r.Requests = map[string]*balsav1.Quantity{}
		}
		r.Requests[name] = proto.CloneOf(limit)
	}
}

func defaultProbe(p *balsav1.Probe) {
	if p == nil {
		return
	}
	setDefaultPtr(&p.TimeoutSeconds, DefaultProbeTimeoutSeconds)
	setDefaultPtr(&p.PeriodSeconds, DefaultProbePeriodSeconds)
	setDefaultPtr(&p.SuccessThreshold, DefaultProbeSuccessThreshold)
	setDefaultPtr(&p.FailureThreshold, DefaultProbeFailureThreshold)
	if p.HttpGet != nil {
		setDefault(&p.HttpGet.Path, "/")
		setDefault(&p.HttpGet.Scheme, SchemeHTTP)
	}
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

func defaultService(spec *balsav1.ServiceSpec) {
	setDefault(&spec.Type, ServiceClusterIP)
	for _, p := range spec.Ports {
		setDefault(&p.Protocol, ProtocolTCP)
		if p.TargetPort == nil {
			p.TargetPort = IntValue(p.Port)
		}
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
