package object

import (
	"strings"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Values that a pod's fields take when they are not given.
const (
	DefaultMode                   int32 = 0o644
	DefaultTerminationMessagePath       = "/dev/termination-log"
)

// defaultPod fills in what only pods get and templates do not: a template that an
// earlier version stored must stay as it is, or every Deployment would roll out
// anew after an upgrade. So a default that a version adds belongs here, unless it
// lies inside of something that the version adds.
func defaultPod(spec *balsav1.PodSpec) {
	if spec == nil {
		return
	}
	defaultPodSpec(spec)
	setDefault(&spec.DnsPolicy, DNSClusterFirst)
	for _, c := range spec.InitContainers {
		defaultPodContainer(c)
	}
	for _, c := range spec.Containers {
		defaultPodContainer(c)
	}
	for _, c := range spec.EphemeralContainers {
		setDefault(&c.TerminationMessagePath, DefaultTerminationMessagePath)
		setDefault(&c.TerminationMessagePolicy, MessageFile)
	}
}

func defaultPodContainer(c *balsav1.Container) {
	setDefault(&c.TerminationMessagePath, DefaultTerminationMessagePath)
	setDefault(&c.TerminationMessagePolicy, MessageFile)
	defaultRequests(c.Resources)
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

// defaultPodSpec fills in what templates get as well.
func defaultPodSpec(spec *balsav1.PodSpec) {
	if spec == nil {
		return
	}
	setDefault(&spec.RestartPolicy, RestartAlways)
	setDefaultPtr(&spec.TerminationGracePeriodSeconds, DefaultTerminationGrace)
	for _, c := range spec.InitContainers {
		defaultContainer(c)
	}
	for _, c := range spec.Containers {
		defaultContainer(c)
	}
	for _, c := range spec.EphemeralContainers {
		setDefault(&c.ImagePullPolicy, pullPolicyOf(c.Image))
		defaultEnv(c.Env)
	}
	for _, v := range spec.Volumes {
		defaultVolume(v)
	}
}

func defaultContainer(c *balsav1.Container) {
	setDefault(&c.ImagePullPolicy, pullPolicyOf(c.Image))
	for _, p := range c.Ports {
		setDefault(&p.Protocol, ProtocolTCP)
	}
	defaultEnv(c.Env)
	for _, p := range []*balsav1.Probe{c.ReadinessProbe, c.LivenessProbe, c.StartupProbe} {
		defaultProbe(p)
	}
	defaultHTTPGet(c.GetLifecycle().GetPostStart().GetHttpGet())
	defaultHTTPGet(c.GetLifecycle().GetPreStop().GetHttpGet())
}

// pullPolicyOf is the policy of an image whose container gives none: a name that
// may stand for another image tomorrow is asked for each time.
func pullPolicyOf(image string) string {
	if strings.Contains(image, "@") {
		return PullIfNotPresent
	}
	// A colon before the last slash is that of a registry's port.
	_, tag, tagged := strings.Cut(image[strings.LastIndexByte(image, '/')+1:], ":")
	if !tagged || tag == "latest" {
		return PullAlways
	}
	return PullIfNotPresent
}

func defaultEnv(env []*balsav1.EnvVar) {
	for _, e := range env {
		defaultFieldRef(e.GetValueFrom().GetFieldRef())
	}
}

func defaultFieldRef(ref *balsav1.ObjectFieldSelector) {
	if ref != nil {
		setDefault(&ref.ApiVersion, defaultFieldRefAPIVersion)
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
	defaultHTTPGet(p.HttpGet)
}

func defaultHTTPGet(get *balsav1.HTTPGetAction) {
	if get != nil {
		setDefault(&get.Path, "/")
		setDefault(&get.Scheme, SchemeHTTP)
	}
}

// defaultVolume: the mode is that of files whose item gives none.
func defaultVolume(v *balsav1.Volume) {
	if s := v.GetConfigMap(); s != nil {
		setDefaultPtr(&s.DefaultMode, DefaultMode)
	}
	if s := v.GetSecret(); s != nil {
		setDefaultPtr(&s.DefaultMode, DefaultMode)
	}
	if s := v.GetDownwardApi(); s != nil {
		setDefaultPtr(&s.DefaultMode, DefaultMode)
		defaultDownward(s.Items)
	}
	if s := v.GetProjected(); s != nil {
		setDefaultPtr(&s.DefaultMode, DefaultMode)
		for _, source := range s.Sources {
			defaultDownward(source.GetDownwardApi().GetItems())
		}
	}
}

func defaultDownward(items []*balsav1.DownwardAPIVolumeFile) {
	for _, item := range items {
		defaultFieldRef(item.GetFieldRef())
	}
}
