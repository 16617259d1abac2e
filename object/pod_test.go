package object_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

func TestFieldRef(t *testing.T) {
	pod := examplePod()
	pod.Status.PodIp = "10.0.0.1"
	for path, want := range map[string]string{"metadata.name": "hello", "status.podIP": "10.0.0.1", "metadata.labels['app']": "hello", "metadata.annotations['a/b']": "", "metadata.uid": "uid-1"} {
		ref, ok := object.ParseFieldRef(path)
		if !ok || ref.Value(pod) != want {
			t.Errorf("%s: %q, %v, want %q", path, ref.Value(pod), ok, want)
		}
	}
	for _, path := range []string{"", "spec", "metadata.labels", "metadata.labels[app]", "metadata.labels['']", "metadata.labels['a'", "status.phase"} {
		if _, ok := object.ParseFieldRef(path); ok {
			t.Errorf("%q was read", path)
		}
	}
}

func TestVolumeFieldRef(t *testing.T) {
	pod := examplePod()
	pod.Metadata.Labels = map[string]string{"b": "2", "a": "say \"1\""}
	for path, want := range map[string]string{"metadata.labels": "a=\"say \\\"1\\\"\"\nb=\"2\"", "metadata.annotations": "", "metadata.labels['b']": "2", "metadata.namespace": "default"} {
		ref, ok := object.ParseVolumeFieldRef(path)
		if !ok || ref.Value(pod) != want {
			t.Errorf("%s: %q, %v, want %q", path, ref.Value(pod), ok, want)
		}
	}
	for _, path := range []string{"status.podIP", "spec.nodeName", "status.hostIPs", "metadata"} {
		if _, ok := object.ParseVolumeFieldRef(path); ok {
			t.Errorf("%q was read", path)
		}
	}
}

func TestAddressesOfAPod(t *testing.T) {
	pod := &balsav1.Pod{Status: &balsav1.PodStatus{HostIp: "192.0.2.1", PodIps: []*balsav1.PodIP{{Ip: "10.0.0.1"}, {Ip: "10.0.0.2"}}}}
	for path, want := range map[string]string{"status.hostIPs": "192.0.2.1", "status.podIPs": "10.0.0.1,10.0.0.2"} {
		if ref, ok := object.ParseFieldRef(path); !ok || ref.Value(pod) != want {
			t.Errorf("%s: %q, %v, want %q", path, ref.Value(pod), ok, want)
		}
	}
}

// with makes a container: requests and limits as "cpu memory", "-" for none.
func with(name string, requests, limits [2]string) *balsav1.Container {
	list := func(of [2]string) map[string]*balsav1.Quantity {
		out := map[string]*balsav1.Quantity{}
		for i, resource := range []string{"cpu", "memory"} {
			if of[i] != "" {
				out[resource] = object.NewQuantity(of[i])
			}
		}
		return out
	}
	return &balsav1.Container{Name: name, Resources: &balsav1.ResourceRequirements{Requests: list(requests), Limits: list(limits)}}
}

func sidecar(c *balsav1.Container) *balsav1.Container {
	c.RestartPolicy = object.RestartAlways
	return c
}

func TestPodRequests(t *testing.T) {
	none := [2]string{}
	for name, c := range map[string]struct {
		spec *balsav1.PodSpec
		want object.Requests
	}{
		"nothing": {nil, object.Requests{}},
		"a limit counts where there is no request, rounded up": {
			&balsav1.PodSpec{Containers: []*balsav1.Container{with("a", [2]string{"0.1001", ""}, [2]string{"1", "1Gi"}), with("b", [2]string{"", "1"}, none), {}}},
			object.Requests{MilliCPU: 101, MemoryBytes: 1<<30 + 1},
		},
		"the greatest init container": {
			&balsav1.PodSpec{
				InitContainers: []*balsav1.Container{with("a", [2]string{"3", "1"}, none), with("b", [2]string{"1", "5"}, none)},
				Containers:     []*balsav1.Container{with("c", [2]string{"2", "2"}, none)},
			},
			object.Requests{MilliCPU: 3000, MemoryBytes: 5},
		},
		"sidecars run beside the containers": {
			&balsav1.PodSpec{
				InitContainers: []*balsav1.Container{sidecar(with("a", [2]string{"1", "1"}, none)), sidecar(with("b", [2]string{"2", "2"}, none))},
				Containers:     []*balsav1.Container{with("c", [2]string{"4", "4"}, none)},
			},
			object.Requests{MilliCPU: 7000, MemoryBytes: 7},
		},
		"an init container runs beside the sidecars before it": {
			&balsav1.PodSpec{
				InitContainers: []*balsav1.Container{with("a", [2]string{"9", ""}, none), sidecar(with("b", [2]string{"1", ""}, none)), with("c", [2]string{"10", ""}, none), sidecar(with("d", [2]string{"2", ""}, none))},
				Containers:     []*balsav1.Container{with("e", [2]string{"1", ""}, none)},
			},
			object.Requests{MilliCPU: 11000},
		},
	} {
		if got, err := object.PodRequests(c.spec); err != nil || got != c.want {
			t.Errorf("%s: %v, %v, want %v", name, got, err, c.want)
		}
	}
	disk := &balsav1.PodSpec{Containers: []*balsav1.Container{{Resources: &balsav1.ResourceRequirements{Limits: map[string]*balsav1.Quantity{"ephemeral-storage": object.NewQuantity("1Ki")}}}}}
	if got, err := object.PodRequests(disk); err != nil || got.EphemeralBytes != 1024 {
		t.Errorf("disk: %v, %v", got, err)
	}
	for _, resource := range []string{"cpu", "memory", "ephemeral-storage"} {
		disk.Containers[0].Resources.Requests = map[string]*balsav1.Quantity{resource: object.NewQuantity("lots")}
		if got, err := object.PodRequests(disk); err == nil {
			t.Errorf("%s: got %v, want an error", resource, got)
		}
	}
}

func TestQOSClass(t *testing.T) {
	none, full := [2]string{}, [2]string{"1", "1Gi"}
	for name, c := range map[string]struct {
		containers, initial []*balsav1.Container
		want                string
	}{
		"nothing":                  {[]*balsav1.Container{{}, {}}, nil, object.QOSBestEffort},
		"zero is nothing":          {[]*balsav1.Container{with("a", [2]string{"0", "0"}, none)}, nil, object.QOSBestEffort},
		"limits":                   {[]*balsav1.Container{with("a", none, full)}, nil, object.QOSGuaranteed},
		"equal, written otherwise": {[]*balsav1.Container{with("a", [2]string{"1000m", "1024Mi"}, full)}, nil, object.QOSGuaranteed},
		"less":                     {[]*balsav1.Container{with("a", [2]string{"999m", "1Gi"}, full)}, nil, object.QOSBurstable},
		"requests only":            {[]*balsav1.Container{with("a", full, none)}, nil, object.QOSBurstable},
		"one limit":                {[]*balsav1.Container{with("a", none, [2]string{"1", ""})}, nil, object.QOSBurstable},
		"one container without":    {[]*balsav1.Container{with("a", none, full), {}}, nil, object.QOSBurstable},
		"init container without":   {[]*balsav1.Container{with("a", none, full)}, []*balsav1.Container{{}}, object.QOSBurstable},
		"init container with":      {[]*balsav1.Container{with("a", none, full)}, []*balsav1.Container{with("b", full, full)}, object.QOSGuaranteed},
	} {
		spec := &balsav1.PodSpec{Containers: c.containers, InitContainers: c.initial, EphemeralContainers: []*balsav1.EphemeralContainer{{Name: "e"}}}
		if got := object.QOSClass(spec); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		pod := &balsav1.Pod{Spec: spec}
		object.Default(pod)
		object.Stamp(pod, "u", at(1))
		if got := pod.Status.QosClass; got != c.want {
			t.Errorf("%s: %s after defaults, want %s", name, got, c.want)
		}
	}
}

func TestTolerates(t *testing.T) {
	taint := &balsav1.Taint{Key: "a", Value: "b", Effect: object.TaintNoExecute}
	seconds := func(n int64) *int64 { return &n }
	for name, c := range map[string]struct {
		t       []*balsav1.Toleration
		want    bool
		forTime time.Duration
		forEver bool
	}{
		"none":              {nil, false, 0, false},
		"equal":             {[]*balsav1.Toleration{{Key: "a", Value: "b"}}, true, 0, true},
		"equal, said":       {[]*balsav1.Toleration{{Key: "a", Operator: "Equal", Value: "b", Effect: "NoExecute"}}, true, 0, true},
		"another value":     {[]*balsav1.Toleration{{Key: "a", Value: "c"}}, false, 0, false},
		"another key":       {[]*balsav1.Toleration{{Key: "b", Operator: "Exists"}}, false, 0, false},
		"another effect":    {[]*balsav1.Toleration{{Key: "a", Operator: "Exists", Effect: "NoSchedule"}}, false, 0, false},
		"exists":            {[]*balsav1.Toleration{{Key: "a", Operator: "Exists"}}, true, 0, true},
		"everything":        {[]*balsav1.Toleration{{Operator: "Exists"}}, true, 0, true},
		"no key, no sense":  {[]*balsav1.Toleration{{Value: "b"}}, false, 0, false},
		"for some time":     {[]*balsav1.Toleration{{Key: "a", Operator: "Exists", TolerationSeconds: seconds(30)}, {Operator: "Exists", TolerationSeconds: seconds(20)}}, true, 20 * time.Second, false},
		"the time counts":   {[]*balsav1.Toleration{{Operator: "Exists"}, {Key: "a", Operator: "Exists", TolerationSeconds: seconds(5)}}, true, 5 * time.Second, false},
		"less than no time": {[]*balsav1.Toleration{{Operator: "Exists", TolerationSeconds: seconds(-5)}}, true, 0, false},
	} {
		if got := object.Tolerates(c.t, taint); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		if d, forEver := object.ToleratesFor(c.t, taint); d != c.forTime || forEver != c.forEver {
			t.Errorf("%s: for %v, for ever %v, want %v, %v", name, d, forEver, c.forTime, c.forEver)
		}
		want := taint
		if c.want {
			want = nil
		}
		if got := object.UntoleratedTaint([]*balsav1.Taint{{Key: "z", Effect: "PreferNoSchedule"}, taint}, c.t, "NoSchedule", "NoExecute"); got != want {
			t.Errorf("%s: untolerated %v, want %v", name, got, want)
		}
	}
}

func TestAllContainers(t *testing.T) {
	pod := &balsav1.Pod{
		Spec: &balsav1.PodSpec{
			InitContainers:      []*balsav1.Container{{Name: "i"}, {Name: "s", RestartPolicy: "Always"}},
			Containers:          []*balsav1.Container{{Name: "m"}},
			EphemeralContainers: []*balsav1.EphemeralContainer{{Name: "e", Image: "tools", Tty: proto.Bool(true), TargetContainerName: "m"}},
		},
		Status: &balsav1.PodStatus{
			InitContainerStatuses: []*balsav1.ContainerStatus{{Name: "i"}}, ContainerStatuses: []*balsav1.ContainerStatus{{Name: "m"}},
			EphemeralContainerStatuses: []*balsav1.ContainerStatus{{Name: "e"}},
		},
	}
	var got []string
	roles := map[object.ContainerRole]string{object.RoleInit: "init", object.RoleSidecar: "sidecar", object.RoleMain: "main", object.RoleEphemeral: "ephemeral"}
	for role, c := range object.AllContainers(pod.Spec) {
		got = append(got, roles[role]+" "+c.GetName())
		if has := object.ContainerStatusFor(pod, c.GetName()); has.GetName() != c.GetName() && c.GetName() != "s" {
			t.Errorf("status of %s: %v", c.GetName(), has)
		}
	}
	if diff := cmp.Diff([]string{"init i", "sidecar s", "main m", "ephemeral e"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for stop := range 4 {
		n := 0
		for range object.AllContainers(pod.Spec) {
			if n++; n > stop {
				break
			}
		}
		if n != stop+1 {
			t.Errorf("stopped after %d, want %d", n, stop+1)
		}
	}
	if s := object.ContainerStatusFor(pod, "s"); s != nil {
		t.Errorf("a status out of nothing: %v", s)
	}
}

// An ephemeral container as a container has every field that both have.
func TestEphemeralAsContainer(t *testing.T) {
	e := &balsav1.EphemeralContainer{}
	fill(e.ProtoReflect(), 3)
	c := object.EphemeralAsContainer(e).ProtoReflect()
	for i, fields := 0, e.ProtoReflect().Descriptor().Fields(); i < fields.Len(); i++ {
		fd := fields.Get(i)
		other := c.Descriptor().Fields().ByName(fd.Name())
		if other == nil {
			if fd.Name() != "target_container_name" {
				t.Errorf("containers have no %s", fd.Name())
			}
			continue
		}
		if !c.Get(other).Equal(e.ProtoReflect().Get(fd)) {
			t.Errorf("%s: %v, want %v", fd.Name(), c.Get(other), e.ProtoReflect().Get(fd))
		}
	}
}

func TestClaimNamesAndHostPorts(t *testing.T) {
	claim := func(name string) *balsav1.Volume {
		return &balsav1.Volume{PersistentVolumeClaim: &balsav1.PersistentVolumeClaimVolumeSource{ClaimName: name}}
	}
	spec := &balsav1.PodSpec{
		Volumes:        []*balsav1.Volume{claim("b"), {EmptyDir: &balsav1.EmptyDirVolumeSource{}}, claim("a"), claim("b")},
		InitContainers: []*balsav1.Container{{Ports: []*balsav1.ContainerPort{{ContainerPort: 1}}}, {RestartPolicy: "Always", Ports: []*balsav1.ContainerPort{{ContainerPort: 2}}}},
		Containers:     []*balsav1.Container{{Ports: []*balsav1.ContainerPort{{ContainerPort: 3, Protocol: "UDP"}}}},
	}
	if diff := cmp.Diff([]string{"b", "a"}, object.ClaimNames(spec)); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
	if got := object.HostPorts(spec); got != nil {
		t.Errorf("ports without hostNetwork: %v", got)
	}
	spec.HostNetwork = proto.Bool(true)
	if diff := cmp.Diff([]object.HostPort{{Port: 2, Protocol: "TCP"}, {Port: 3, Protocol: "UDP"}}, object.HostPorts(spec)); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
}

func TestResourceFieldValue(t *testing.T) {
	c := with("a", [2]string{"250m", "1000"}, [2]string{"1500m", ""})
	node := map[string]*balsav1.Quantity{"cpu": object.NewQuantity("8"), "memory": object.NewQuantity("4Gi"), "ephemeral-storage": object.NewQuantity("1Ti")}
	for _, x := range []struct {
		resource, divisor string
		want              int64
	}{
		{"limits.cpu", "", 2}, {"limits.cpu", "1m", 1500}, {"requests.cpu", "1m", 250}, {"requests.cpu", "1", 1}, {"requests.cpu", "0", 1},
		{"requests.memory", "1Ki", 1}, {"requests.memory", "", 1000}, {"limits.memory", "1Gi", 4}, {"limits.ephemeral-storage", "1Gi", 1024}, {"requests.ephemeral-storage", "", 0},
	} {
		ref := &balsav1.ResourceFieldSelector{Resource: x.resource}
		if x.divisor != "" {
			ref.Divisor = object.NewQuantity(x.divisor)
		}
		if got, err := object.ResourceFieldValue(c, ref, node); err != nil || got != x.want {
			t.Errorf("%s in %q: %d, %v, want %d", x.resource, x.divisor, got, err, x.want)
		}
	}
	if got, err := object.ResourceFieldValue(c, &balsav1.ResourceFieldSelector{Resource: "limits.cpu", Divisor: object.NewQuantity("x")}, node); err != nil || got != 2 {
		t.Errorf("an unreadable divisor: %d, %v", got, err) // refused at the edge; here the default
	}
}

func TestPullPolicies(t *testing.T) {
	const digest = "@sha256:0000000000000000000000000000000000000000000000000000000000000000"
	for image, want := range map[string]string{
		"app": object.PullAlways, "app:latest": object.PullAlways, "registry.example:5000/app": object.PullAlways, "registry.example:5000/a/app:latest": object.PullAlways,
		"app:1": object.PullIfNotPresent, "registry.example:5000/app:1": object.PullIfNotPresent, "app" + digest: object.PullIfNotPresent, "app:latest" + digest: object.PullIfNotPresent,
	} {
		pod := &balsav1.Pod{Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{{Image: image}}, EphemeralContainers: []*balsav1.EphemeralContainer{{Image: image}}}}
		object.Default(pod)
		if a, b := pod.Spec.Containers[0].ImagePullPolicy, pod.Spec.EphemeralContainers[0].ImagePullPolicy; a != want || b != want {
			t.Errorf("%s: %s and %s, want %s", image, a, b, want)
		}
	}
}

// Another image has another policy, unless somebody gave one.
func TestPullPolicyFollowsTheImage(t *testing.T) {
	d := func(image, policy string) *balsav1.Deployment {
		return &balsav1.Deployment{Metadata: &balsav1.ObjectMeta{Name: "a"}, Spec: &balsav1.DeploymentSpec{Template: &balsav1.PodTemplateSpec{
			Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{{Name: "a", Image: image, ImagePullPolicy: policy}}}}}}
	}
	for name, c := range map[string]struct {
		first, second *balsav1.Deployment
		want          string
	}{
		"to a tag":           {d("i", ""), d("i:1", ""), object.PullIfNotPresent},
		"to latest":          {d("i:1", ""), d("i", ""), object.PullAlways},
		"given":              {d("i", "Always"), d("i:1", "Always"), object.PullAlways},
		"not given any more": {d("i", "Never"), d("i", ""), object.PullAlways},
	} {
		live, _, err := object.Merge(nil, c.first, "m", at(1))
		if err != nil {
			t.Fatal(err)
		}
		merged, _, err := object.Merge(live, c.second, "m", at(2))
		if err != nil || merged.(*balsav1.Deployment).Spec.Template.Spec.Containers[0].ImagePullPolicy != c.want {
			t.Errorf("%s: %v, %v, want %s", name, merged, err, c.want)
		}
	}
	// What the first version stored for an image without a tag stays.
	old := d("i", "IfNotPresent")
	object.Default(old)
	if merged, _, err := object.Merge(old, d("i:2", ""), "m", at(2)); err != nil || merged.(*balsav1.Deployment).Spec.Template.Spec.Containers[0].ImagePullPolicy != "IfNotPresent" {
		t.Errorf("stored before: %v, %v", merged, err)
	}
}

// oldTemplate is a template as the first version stored it, with its defaults.
func oldTemplate() *balsav1.PodTemplateSpec {
	return &balsav1.PodTemplateSpec{
		Metadata: &balsav1.ObjectMeta{Labels: map[string]string{"app": "a"}},
		Spec: &balsav1.PodSpec{
			RestartPolicy: "Always", TerminationGracePeriodSeconds: proto.Int64(30),
			Containers: []*balsav1.Container{{
				Name: "web", Image: "balsa/echo", ImagePullPolicy: "IfNotPresent", Ports: []*balsav1.ContainerPort{{ContainerPort: 80, Protocol: "TCP"}},
				Env:       []*balsav1.EnvVar{{Name: "A", ValueFrom: &balsav1.EnvVarSource{FieldRef: &balsav1.ObjectFieldSelector{ApiVersion: "v1", FieldPath: "metadata.name"}}}},
				Resources: &balsav1.ResourceRequirements{Limits: map[string]*balsav1.Quantity{"cpu": object.NewQuantity("1")}},
				ReadinessProbe: &balsav1.Probe{
					HttpGet: &balsav1.HTTPGetAction{Path: "/", Port: object.IntValue(80), Scheme: "HTTP"}, TimeoutSeconds: proto.Int32(1),
					PeriodSeconds: proto.Int32(10), SuccessThreshold: proto.Int32(1), FailureThreshold: proto.Int32(3),
				},
			}},
		},
	}
}

// An upgrade rolls nothing out: a template that the first version stored gets no
// new defaults, and the same hash.
func TestTemplatesOutliveUpgrades(t *testing.T) {
	const pinned = "mxn4qjrfrv"
	if got := object.TemplateHash(oldTemplate(), 0); got != pinned {
		t.Errorf("hash %s, was %s", got, pinned)
	}
	d := &balsav1.Deployment{Metadata: &balsav1.ObjectMeta{Name: "a"}, Spec: &balsav1.DeploymentSpec{Selector: &balsav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}}, Template: oldTemplate()}}
	object.Default(d)
	if diff := cmp.Diff(oldTemplate(), d.Spec.Template, protocmp.Transform()); diff != "" {
		t.Errorf("Default changes a stored template (-stored +now):\n%s", diff)
	}
	if violations := object.Validate(d, object.User); len(violations) > 0 {
		t.Errorf("a stored Deployment is invalid: %v", violations)
	}
}

// A pod that the first version stored is still valid, takes statuses, and may be
// updated although Default now fills in more.
func TestPodsOutliveUpgrades(t *testing.T) {
	stored := &balsav1.Pod{ApiVersion: "v1", Kind: "Pod", Metadata: &balsav1.ObjectMeta{Name: "a", Namespace: "default"}, Spec: oldTemplate().Spec}
	stored.Spec.Containers[0].Resources.Requests = stored.Spec.Containers[0].Resources.Limits
	object.Stamp(stored, "u", at(1))
	reported := object.Clone(stored)
	reported.Status.Phase = object.PodRunning
	if violations := object.ValidateUpdate(stored, reported, object.System); len(violations) > 0 {
		t.Errorf("a status is refused: %v", violations)
	}
	labelled := object.Clone(stored)
	labelled.Metadata.Labels = map[string]string{"b": "c"}
	object.Default(labelled)
	if labelled.Spec.DnsPolicy == "" {
		t.Error("no default was added: the test shows nothing")
	}
	if violations := object.ValidateUpdate(stored, labelled, object.User); len(violations) > 0 {
		t.Errorf("an update is refused: %v", violations)
	}
}

func TestFieldsThatMustBeFalse(t *testing.T) {
	pod := examplePod()
	pod.Spec.EnableServiceLinks, pod.Spec.AutomountServiceAccountToken = proto.Bool(false), proto.Bool(false)
	if violations := object.Validate(pod, object.User); len(violations) > 0 {
		t.Errorf("false: %v", violations)
	}
	pod.Spec.EnableServiceLinks, pod.Spec.AutomountServiceAccountToken = proto.Bool(true), proto.Bool(true)
	violations := object.Validate(pod, object.User)
	if len(violations) != 2 || violations[0].Field != "spec.enableServiceLinks" || violations[1].Field != "spec.automountServiceAccountToken" {
		t.Errorf("true: %v", violations)
	}
}

func TestParsePullSecret(t *testing.T) {
	secret := func(kind, value string) *balsav1.Secret {
		return &balsav1.Secret{Metadata: &balsav1.ObjectMeta{Name: "key", Namespace: "default"}, Type: kind, Data: map[string][]byte{object.DockerConfigJSONKey: []byte(value)}}
	}
	got, err := object.ParsePullSecret(secret(object.SecretDockerConfigJSON,
		`{"auths": {"a.example": {"auth": "dTpwOncAAA=="}, "https://b.example/v1/": {"username": "x", "password": "y", "email": "z"}, "c.example": {"identitytoken": "t", "registrytoken": "r"}}, "HttpHeaders": {}}`))
	want := map[string]object.RegistryAuth{"a.example": {Username: "u", Password: "p:w"}, "https://b.example/v1/": {Username: "x", Password: "y"}, "c.example": {IdentityToken: "t", RegistryToken: "r"}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for _, s := range []*balsav1.Secret{
		secret("Opaque", "{}"), secret(object.SecretDockerConfigJSON, ""), secret(object.SecretDockerConfigJSON, "{}"), secret(object.SecretDockerConfigJSON, "[]"),
		secret(object.SecretDockerConfigJSON, `{"auths": {"a": {"auth": "hunter2"}}}`), secret(object.SecretDockerConfigJSON, `{"auths": {"a": {"auth": "aHVudGVyMg=="}}}`),
	} {
		if got, err := object.ParsePullSecret(s); err == nil {
			t.Errorf("%v was read as %v", s, got)
		}
	}
}

func TestSignalNumber(t *testing.T) {
	for name, want := range map[string]int{"SIGHUP": 1, "SIGKILL": 9, "SIGTERM": 15, "SIGWINCH": 28, "SIGIO": 29, "SIGPOLL": 29, "SIGPWR": 30, "SIGSYS": 31, "SIGRTMIN": 34, "SIGRTMIN+15": 49, "SIGRTMAX-14": 50, "SIGRTMAX": 64} {
		if got, ok := object.SignalNumber(name); !ok || got != want {
			t.Errorf("%s: %d, %v, want %d", name, got, ok, want)
		}
	}
	for _, name := range []string{"", "TERM", "SIG", "SIGterm", "SIGRTMIN+0", "SIGRTMIN+16", "SIGRTMAX-15", "SIGRTMIN+01", "15"} {
		if got, ok := object.SignalNumber(name); ok {
			t.Errorf("%q is %d", name, got)
		}
	}
}

func TestVolumeNode(t *testing.T) {
	spec := &balsav1.PersistentVolumeSpec{NodeAffinity: object.VolumeOnNode("n1")}
	if got := object.VolumeNode(spec); got != "n1" {
		t.Errorf("node %q", got)
	}
	spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Operator = "NotIn"
	if got := object.VolumeNode(spec); got != "" {
		t.Errorf("NotIn: node %q", got)
	}
}

func TestDefaultPodTwiceChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		once := &balsav1.Pod{Spec: randomPodSpec(t)}
		object.Default(once)
		twice := object.Clone(once)
		object.Default(twice)
		if diff := cmp.Diff(once, twice, protocmp.Transform()); diff != "" {
			t.Fatalf("(-once +twice):\n%s", diff)
		}
	})
}

// fill gives every field of a message a value, down to a depth.
func fill(m protoreflect.Message, depth int) {
	for i, fields := 0, m.Descriptor().Fields(); i < fields.Len(); i++ {
		fd := fields.Get(i)
		switch {
		case fd.Message() != nil && depth == 0 && !fd.IsMap():
		case fd.IsMap():
			v := m.NewField(fd).Map().NewValue()
			if fd.MapValue().Message() == nil {
				v = scalar(fd.MapValue())
			}
			m.Mutable(fd).Map().Set(protoreflect.ValueOfString("a").MapKey(), v)
		case fd.IsList() && fd.Message() != nil:
			fill(m.Mutable(fd).List().AppendMutable().Message(), depth-1)
		case fd.IsList():
			m.Mutable(fd).List().Append(scalar(fd))
		case fd.Message() != nil:
			fill(m.Mutable(fd).Message(), depth-1)
		default:
			m.Set(fd, scalar(fd))
		}
	}
}

func scalar(fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(-7)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(-7)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("x"))
	}
	return protoreflect.ValueOfString("x")
}

// No object, however little or much of it there is, makes the rules panic.
func TestRulesTakeAnything(t *testing.T) {
	for _, k := range object.Kinds() {
		for depth := range 10 {
			m := k.New()
			fill(m.ProtoReflect(), depth)
			old := k.New()
			object.EnsureMetadata(old)
			object.EnsureMetadata(m)
			for range 2 { // as it came, then with defaults
				for _, w := range []object.Writer{object.User, object.System} {
					object.Validate(m, w)
					object.ValidateUpdate(old, m, w)
					object.ValidateUpdate(m, old, w)
				}
				object.CarryOver(m, old)
				object.Index("", m)
				object.Default(m)
				object.Default(old)
			}
			object.Stamp(m, "u", at(1))
		}
	}
}

// TestShapingIsRefusedByName: nobody shapes traffic here, so nobody may ask for it;
// what was stored before may be reported on.
func TestShapingIsRefusedByName(t *testing.T) {
	pod := &balsav1.Pod{
		Metadata: &balsav1.ObjectMeta{Name: "p", Namespace: "default", Annotations: map[string]string{"kubernetes.io/egress-bandwidth": "10M"}},
		Spec:     &balsav1.PodSpec{Containers: []*balsav1.Container{{Name: "c", Image: "i"}}},
	}
	object.Default(pod)
	found := object.Validate(pod, object.User)
	if len(found) != 1 || found[0].Field != "metadata.annotations[kubernetes.io/egress-bandwidth]" {
		t.Errorf("got %v", found)
	}
	if found := object.Validate(pod, object.System); len(found) > 0 {
		t.Errorf("a server may not write it any more: %v", found)
	}
}
