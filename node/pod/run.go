package pod

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

// run brings a pod nearer to running.
func (s *step) run() {
	if s.needed() && s.place() {
		s.startAll()
	}
	s.endAllDoomed()
	s.postStarts()
	s.probes(true)
}

// needed tells whether the pod needs its place: something runs or is to run.
func (s *step) needed() bool {
	return slices.ContainsFunc(s.containers, func(c *container) bool { return c.running() || c.toRun() })
}

// place makes what the containers need: volumes, sandbox and network. It tells
// whether containers can be started.
func (s *step) place() bool {
	s.users()
	if s.v.Runtime == nil || s.v.Runtime.Sandbox != runtime.SandboxReady || !s.v.IP.IsValid() {
		s.wants() // images come while the rest is made
	}
	if !s.volumes() {
		return false
	}
	if s.v.Runtime == nil || s.v.Runtime.Sandbox != runtime.SandboxReady {
		config, err := s.sandbox()
		if err != nil {
			s.waitAll(ReasonConfigError, err.Error())
			s.told("FailedCreatePodSandBox", err.Error())
			return false
		}
		s.try(CreateSandbox{Config: config})
		return false
	}
	if !s.v.IP.IsValid() {
		s.try(Connect{UID: s.uid(), NetNS: s.v.Runtime.NetNS, Host: s.spec().GetHostNetwork(), Hosts: s.hosts})
		return false
	}
	return true
}

// users finds the pod's range of ids: what the sandbox has, else what was chosen,
// else a free one.
func (s *step) users() {
	if s.spec().HostUsers == nil || *s.spec().HostUsers {
		return
	}
	if s.v.Runtime != nil {
		if m, ok := ParseUsers(s.v.Runtime.Annotations[AnnotationUsers]); ok {
			s.mem.Users = &m
		}
	}
	if s.mem.Users == nil {
		s.mem.Users = s.v.FreeUsers
	}
}

// ParseUsers reads AnnotationUsers.
func ParseUsers(text string) (runtime.IDMapping, bool) {
	first, size, ok := strings.Cut(text, ":")
	id, err := strconv.ParseUint(first, 10, 32)
	n, err2 := strconv.ParseUint(size, 10, 32)
	if !ok || err != nil || err2 != nil || n == 0 {
		return runtime.IDMapping{}, false
	}
	return runtime.IDMapping{HostID: uint32(id), Size: uint32(n)}, true
}

// try acts unless the action rests after a failure; then everything that is to
// run says what it waits for.
func (s *step) try(a Action) {
	s.tryTo(a)
	s.waitAll("", s.mem.Failures[a.Key()].Message)
}

// waitAll says of everything that is to run what it waits for; without a reason
// it is being created.
func (s *step) waitAll(reason, message string) {
	for _, c := range s.containers {
		if c.toRun() && (c.waitReason == "" || reason != "") {
			c.waitReason, c.waitMessage = reason, message
			if reason == "" {
				c.waitReason = s.creating()
			}
		}
	}
}

// creating is why a container waits for which nothing is wrong.
func (s *step) creating() string {
	if len(s.inits) > 0 {
		return ReasonPodInitializing
	}
	return ReasonContainerCreating
}

// told makes a warning of the pod unless it was the last one for that reason.
func (s *step) told(reason, message string) {
	key := "/" + reason // no container's name
	if s.mem.Told[key] != message {
		s.mem.Told[key] = message
		s.event(Event{Warning: true, Reason: reason, Message: message})
	}
}

// wants names the images early.
func (s *step) wants() {
	for _, c := range s.containers {
		if c.toRun() {
			s.image(c)
		}
	}
}

func (s *step) sandbox() (runtime.PodConfig, error) {
	meta, spec := s.v.Pod.GetMetadata(), s.spec()
	resolv, err := s.resolvConf()
	if err != nil {
		return runtime.PodConfig{}, err
	}
	resources, err := podResources(spec)
	if err != nil {
		return runtime.PodConfig{}, err
	}
	resources.PidsLimit = s.v.Node.PodPids
	if name := s.hostname(); len(name) > maxHostname {
		return runtime.PodConfig{}, fmt.Errorf("setHostnameAsFQDN: host name %q has %d characters, the kernel takes %d: give spec.hostname a shorter one", name, len(name), maxHostname)
	}
	if spec.HostUsers != nil && !*spec.HostUsers && s.mem.Users == nil {
		return runtime.PodConfig{}, fmt.Errorf("hostUsers is false, and the node has no free range of user ids left: delete pods with user namespaces from it")
	}
	config := runtime.PodConfig{
		UID: runtime.PodUID(meta.GetUid()), Namespace: meta.GetNamespace(), Name: meta.GetName(),
		Hostname: s.hostname(), Hosts: s.hosts(s.v.IP), ResolvConf: resolv,
		HostNetwork: spec.GetHostNetwork(), HostPID: spec.GetHostPid(), HostIPC: spec.GetHostIpc(),
		ShareProcessNamespace: spec.GetShareProcessNamespace(), Users: s.mem.Users, Resources: resources,
		Annotations: map[string]string{
			AnnotationRevision: strconv.FormatInt(s.v.Revision, 10),
			AnnotationGrace:    strconv.FormatInt(graceSeconds(s.v.Pod), 10),
		},
	}
	if names := sidecarNames(spec); len(names) > 0 {
		config.Annotations[AnnotationSidecars] = strings.Join(names, ",")
	}
	if s.mem.Users != nil {
		config.Annotations[AnnotationUsers] = fmt.Sprintf("%d:%d", s.mem.Users.HostID, s.mem.Users.Size)
	}
	for _, sysctl := range spec.GetSecurityContext().GetSysctls() {
		if config.Sysctls == nil {
			config.Sysctls = map[string]string{}
		}
		config.Sysctls[sysctl.GetName()] = sysctl.GetValue()
	}
	return config, nil
}

func sidecarNames(spec *balsav1.PodSpec) []string {
	var names []string
	for _, c := range spec.GetInitContainers() {
		if object.IsSidecar(c) {
			names = append(names, c.GetName())
		}
	}
	return names
}

// startAll starts what has its turn.
func (s *step) startAll() {
	for _, c := range s.extras {
		if c.toRun() {
			s.start(c)
		}
	}
	if !s.initialised() {
		s.initialise()
		s.waitAll("", "")
		return
	}
	for _, c := range s.inits {
		if c.kind == sidecar && c.toRun() {
			s.start(c)
		}
	}
	for _, c := range s.apps {
		began := c.toRun() && s.start(c) && c.spec.GetLifecycle().GetPostStart() != nil
		if began || s.hooking(c) {
			s.waitAll("", "") // the next one begins when the hook has returned
			return
		}
	}
}

// initialise starts the first init container that holds up the others.
func (s *step) initialise() {
	for _, c := range s.inits {
		if s.initDone(c) {
			continue
		}
		if c.toRun() {
			s.start(c)
		}
		return
	}
}

// start starts the next attempt of a container, or says what it waits for.
func (s *step) start(c *container) bool {
	image, ready := s.image(c)
	if !s.due(c) || !ready {
		return false
	}
	config, skipped, err := s.config(c, image.Image)
	if err != nil {
		c.waitReason, c.waitMessage = ReasonConfigError, err.Error()
		s.tell(c, Event{Warning: true, Reason: "Failed", Message: err.Error()})
		return false
	}
	action := StartContainer{Config: config, StopSignal: c.spec.GetLifecycle().GetStopSignal()}
	c.waitReason = s.creating()
	if f, failed := s.mem.Failures[action.Key()]; failed {
		c.waitReason, c.waitMessage = ReasonCreateError, f.Message
		if f.Invalid {
			c.waitReason = ReasonConfigError
		}
	}
	if !s.may(action.Key()) {
		return false
	}
	if note := howItCame(c, image); note != "" {
		s.tell(c, Event{Reason: "Pulled", Message: note})
	}
	s.act(action)
	s.plan.Events = append(s.plan.Events, skipped...)
	return true
}

// howItCame is the note of an image, once: nothing was brought for a restart that
// takes the image of the run before.
func howItCame(c *container, image Image) string {
	if image.Note != "" && c.exited() && image.At.Before(c.state.FinishedAt) {
		return AlreadyPresent(c.spec.GetImage())
	}
	return image.Note
}

// AlreadyPresent says, in the kubelet's words, that nothing was transferred.
func AlreadyPresent(image string) string {
	return fmt.Sprintf("Container image %q already present on machine", image)
}

// due tells whether a container has rested long enough since its last end.
func (s *step) due(c *container) bool {
	m := s.memory(c)
	if !c.exited() || !m.DueAt.After(s.v.Now) {
		return true
	}
	s.wake(m.DueAt)
	c.waitReason = ReasonCrashLoopBackOff
	c.waitMessage = fmt.Sprintf("back-off %s restarting container %s: %s", restartDelay(m.Crashes), c.name(), ended(c.state))
	s.tell(c, Event{Warning: true, Reason: "BackOff", Message: c.waitMessage})
	return false
}

// ended says in a few words how a container ended.
func ended(c runtime.ContainerState) string {
	text := fmt.Sprintf("attempt %d ended with %s, exit code %d", c.Attempt, c.Reason, c.Exit.Code)
	if c.Message != "" {
		text += " (" + c.Message + ")"
	}
	return text
}

// image returns the container's image; while it is not there the container
// says why.
func (s *step) image(c *container) (Image, bool) {
	want := ImageWant{Container: c.name(), Name: c.spec.GetImage(), Policy: c.spec.GetImagePullPolicy(), First: !c.have}
	if want.Policy == "" { // of a pod that an earlier version stored
		want.Policy = object.PullIfNotPresent
	}
	if want.Policy == object.PullAlways && c.exited() {
		want.Fresh = notAfter(c.state.FinishedAt, s.v.Now)
	}
	want.Credentials = s.credentials()
	s.plan.Images = append(s.plan.Images, want)
	have, known := s.v.Images[c.name()]
	switch {
	case have.Ready && !have.At.Before(want.Fresh):
		return have, true
	case !known || have.Ready || have.Reason == "":
		c.waitReason, c.waitMessage = s.creating(), "waiting for image "+want.Name
		if p := have.Progress; p != nil {
			c.waitMessage = fmt.Sprintf("pulling image %s: %d of %d layers, %d of %d bytes", want.Name, p.LayersDone, p.Layers, p.BytesDone, p.BytesTotal)
		}
		return Image{}, false
	}
	c.waitReason, c.waitMessage = have.Reason, have.Message
	if have.Reason == ReasonImagePull && !have.Last.IsZero() {
		s.pullBackOff(c, have)
		return Image{}, false
	}
	s.tell(c, Event{Warning: true, Reason: "Failed", Message: "Error: " + c.waitReason + ": " + c.waitMessage})
	return Image{}, false
}

// pullBackOff tells a failure for a moment, and then that it is waited before it
// is tried again, with the kubelet's words.
func (s *step) pullBackOff(c *container, have Image) {
	last := notAfter(have.Last, s.v.Now)
	if shown := last.Add(pullErrorShown); shown.After(s.v.Now) {
		s.wake(shown)
		s.tellAs(c, Event{Warning: true, Reason: "Failed", Message: "Error: " + ReasonImagePull + ": " + have.Message}, "")
		return
	}
	c.waitReason = ReasonImagePullBackOff
	c.waitMessage = fmt.Sprintf("Back-off pulling image %q: %s", c.spec.GetImage(), have.Message)
	s.tell(c, Event{Reason: "BackOff", Message: fmt.Sprintf("Back-off pulling image %q", c.spec.GetImage())})
}

// credentials are those of the pod's pull secrets; one that is not there is told
// and left out.
func (s *step) credentials() [][]byte {
	var out [][]byte
	var missing []string
	for _, ref := range s.spec().GetImagePullSecrets() {
		data, ok := s.v.Sources.Secrets[ref.GetName()].GetData()[object.DockerConfigJSONKey]
		if !ok {
			missing = append(missing, s.v.Pod.GetMetadata().GetNamespace()+"/"+ref.GetName())
			continue
		}
		out = append(out, data)
	}
	if len(missing) > 0 {
		s.told("FailedToRetrieveImagePullSecret", fmt.Sprintf("pulling without the secrets %q: they are not there, or have no key %s", missing, object.DockerConfigJSONKey))
	}
	return out
}

// config is what the next attempt is made from, with a warning for every key
// that was left out. An error names what is missing.
func (s *step) config(c *container, image runtime.Image) (config runtime.ContainerConfig, warnings []Event, err error) {
	pod := s.podWithStatus()
	env, err := environment(pod, c.spec, s.v.Sources, s.v.Node)
	if err != nil {
		return config, nil, err
	}
	for _, skipped := range env.Skipped {
		warnings = append(warnings, Event{Warning: true, Reason: "InvalidEnvironmentVariableNames", Container: c.name(),
			Message: skipped + " was left out: it is no name of an environment variable"})
	}
	security, err := s.security(c)
	if err != nil {
		return config, nil, err
	}
	resources, err := containerResources(pod.GetSpec(), c, s.v.Node.MemoryBytes)
	if err != nil {
		return config, nil, err
	}
	lookup := env.lookup()
	mounts, err := s.mounts(c, lookup)
	if err != nil {
		return config, nil, err
	}
	return runtime.ContainerConfig{
		Name: c.name(), Attempt: nextAttempt(c), Image: image, Env: env.Vars, Resources: resources, Security: security,
		Command: expandAll(c.spec.GetCommand(), lookup), Args: expandAll(c.spec.GetArgs(), lookup),
		WorkingDir: c.spec.GetWorkingDir(), Mounts: mounts, TargetContainer: c.target,
		Stdin: c.spec.GetStdin(), StdinOnce: c.spec.GetStdinOnce(), TTY: c.spec.GetTty(),
	}, warnings, nil
}

// nextAttempt: one that was made but not started is taken up again.
func nextAttempt(c *container) int {
	switch {
	case !c.have:
		return 0
	case c.state.Status == runtime.ContainerCreated:
		return c.state.Attempt
	default:
		return c.state.Attempt + 1
	}
}

// podWithStatus is the pod with the addresses that fieldRef may ask for.
func (s *step) podWithStatus() *balsav1.Pod {
	status := &balsav1.PodStatus{HostIp: s.v.Node.IP.String(), HostIps: []*balsav1.HostIP{{Ip: s.v.Node.IP.String()}}}
	if ip := s.podIP(); ip != "" {
		status.PodIp, status.PodIps = ip, []*balsav1.PodIP{{Ip: ip}}
	}
	return &balsav1.Pod{Metadata: s.v.Pod.GetMetadata(), Spec: s.spec(), Status: status}
}

func (s *step) podIP() string {
	if s.v.IP.IsValid() {
		return s.v.IP.String()
	}
	return s.v.Pod.GetStatus().GetPodIp()
}

// address is where probes and hooks find the pod.
func (s *step) address() netip.Addr {
	if s.v.IP.IsValid() {
		return s.v.IP
	}
	ip, err := netip.ParseAddr(s.podIP())
	if err != nil {
		return netip.Addr{}
	}
	return ip
}

// postStarts lists the hooks that are to be run beside their programs.
func (s *step) postStarts() {
	for _, c := range s.containers {
		if !s.hooking(c) || s.memory(c).Doomed == c.state.Attempt+1 {
			continue
		}
		h, err := s.hook(c, PostStart)
		if err != nil {
			s.event1(c, Event{Warning: true, Reason: ReasonFailedPostStart, Message: "PostStartHook failed: " + err.Error()})
			s.doom(c, ReasonFailedPostStart, nil)
			continue
		}
		s.plan.Hooks = append(s.plan.Hooks, h)
	}
}

func (s *step) endAllDoomed() {
	for _, c := range s.containers {
		if c.running() && s.memory(c).Doomed == c.state.Attempt+1 {
			s.endDoomed(c)
		}
	}
}

// endDoomed ends a container that is to be run again.
func (s *step) endDoomed(c *container) {
	m := s.memory(c)
	began := notAfter(m.DoomedAt, s.v.Now)
	s.end(c.state, ending{began: began, grace: m.Grace, restart: true})
}

// ending says how a container has to end.
type ending struct {
	// began is when its grace period began.
	began time.Time
	grace time.Duration
	// hold: its signal is not due yet.
	hold bool
	// restart: it alone has to end.
	restart bool
}
