package object_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// ---- properties

// maybe is v or nothing.
func maybe[T any](t *rapid.T, g *rapid.Generator[T]) *T {
	if !rapid.Bool().Draw(t, "given") {
		return nil
	}
	v := g.Draw(t, "value")
	return &v
}

func randomMap(t *rapid.T) map[string]string {
	return rapid.MapOfN(rapid.SampledFrom([]string{"a", "b", "c.d/e"}), rapid.SampledFrom([]string{"", "1", "2"}), 0, 3).Draw(t, "map")
}

// randomDeployment is a manifest that mentions some of a Deployment's fields.
func randomDeployment(t *rapid.T) *balsav1.Deployment {
	d := &balsav1.Deployment{Metadata: &balsav1.ObjectMeta{Name: "hello", Labels: randomMap(t), Annotations: randomMap(t)}}
	if !rapid.Bool().Draw(t, "spec") {
		return d
	}
	small := rapid.Int32Range(0, 3)
	d.Spec = &balsav1.DeploymentSpec{Replicas: maybe(t, small), MinReadySeconds: maybe(t, small), RevisionHistoryLimit: maybe(t, small)}
	if rapid.Bool().Draw(t, "selector") {
		d.Spec.Selector = &balsav1.LabelSelector{MatchLabels: randomMap(t)}
	}
	if rapid.Bool().Draw(t, "strategy") {
		d.Spec.Strategy = &balsav1.DeploymentStrategy{Type: rapid.SampledFrom([]string{"", "RollingUpdate", "Recreate"}).Draw(t, "type")}
		if d.Spec.Strategy.Type == "RollingUpdate" {
			d.Spec.Strategy.RollingUpdate = &balsav1.RollingUpdateDeployment{}
			if rapid.Bool().Draw(t, "surge") {
				d.Spec.Strategy.RollingUpdate.MaxSurge = object.IntValue(small.Draw(t, "max"))
			}
		}
	}
	if rapid.Bool().Draw(t, "template") {
		d.Spec.Template = &balsav1.PodTemplateSpec{Metadata: &balsav1.ObjectMeta{Labels: randomMap(t)}, Spec: randomPodSpec(t)}
	}
	return d
}

func randomPodSpec(t *rapid.T) *balsav1.PodSpec {
	spec := &balsav1.PodSpec{NodeSelector: randomMap(t), TerminationGracePeriodSeconds: maybe(t, rapid.Int64Range(0, 60))}
	for _, name := range rapid.Permutation([]string{"web", "log", "db"}).Draw(t, "names")[:rapid.IntRange(0, 3).Draw(t, "containers")] {
		spec.Containers = append(spec.Containers, randomContainer(t, name))
	}
	for _, name := range rapid.Permutation([]string{"init", "side"}).Draw(t, "initNames")[:rapid.IntRange(0, 2).Draw(t, "initContainers")] {
		spec.InitContainers = append(spec.InitContainers, randomContainer(t, name))
	}
	for _, name := range rapid.Permutation([]string{"v", "w"}).Draw(t, "volumeNames")[:rapid.IntRange(0, 2).Draw(t, "volumes")] {
		spec.Volumes = append(spec.Volumes, randomVolume(t, name))
	}
	for _, ip := range rapid.Permutation([]string{"10.0.0.1", "10.0.0.2"}).Draw(t, "ips")[:rapid.IntRange(0, 2).Draw(t, "aliases")] {
		spec.HostAliases = append(spec.HostAliases, &balsav1.HostAlias{Ip: ip, Hostnames: rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b"}), 0, 2).Draw(t, "hostnames")})
	}
	if rapid.Bool().Draw(t, "security") {
		spec.SecurityContext = &balsav1.PodSecurityContext{RunAsUser: maybe(t, rapid.Int64Range(0, 2)), FsGroup: maybe(t, rapid.Int64Range(0, 2))}
	}
	return spec
}

func randomVolume(t *rapid.T, name string) *balsav1.Volume {
	v := &balsav1.Volume{Name: name}
	switch rapid.IntRange(0, 2).Draw(t, "source") {
	case 0:
		v.EmptyDir = &balsav1.EmptyDirVolumeSource{Medium: rapid.SampledFrom([]string{"", "Memory"}).Draw(t, "medium")}
	case 1:
		v.Secret = &balsav1.SecretVolumeSource{SecretName: "s", DefaultMode: maybe(t, rapid.Int32Range(0, 2)), Items: []*balsav1.KeyToPath{{Key: "a", Path: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "path")}}}
	case 2:
		v.Projected = &balsav1.ProjectedVolumeSource{Sources: []*balsav1.VolumeProjection{{DownwardApi: &balsav1.DownwardAPIProjection{
			Items: []*balsav1.DownwardAPIVolumeFile{{Path: "a", FieldRef: &balsav1.ObjectFieldSelector{FieldPath: "metadata.name"}}}}}}}
	}
	return v
}

func randomContainer(t *rapid.T, name string) *balsav1.Container {
	c := &balsav1.Container{Name: name, Image: rapid.SampledFrom([]string{"", "i", "i:1", "i:2"}).Draw(t, "image")}
	c.Args = rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b"}), 0, 2).Draw(t, "args")
	for _, env := range rapid.Permutation([]string{"A", "B", "C=D]"}).Draw(t, "variables")[:rapid.IntRange(0, 3).Draw(t, "env")] {
		e := &balsav1.EnvVar{Name: env}
		if rapid.Bool().Draw(t, "ref") {
			e.ValueFrom = &balsav1.EnvVarSource{FieldRef: &balsav1.ObjectFieldSelector{FieldPath: "metadata.name"}}
		} else {
			e.Value = rapid.SampledFrom([]string{"", "1", "2"}).Draw(t, "text")
		}
		c.Env = append(c.Env, e)
	}
	for _, port := range rapid.Permutation([]int32{80, 81}).Draw(t, "ports")[:rapid.IntRange(0, 2).Draw(t, "n")] {
		c.Ports = append(c.Ports, &balsav1.ContainerPort{ContainerPort: port, Protocol: rapid.SampledFrom([]string{"", "TCP", "UDP"}).Draw(t, "protocol")})
	}
	if rapid.Bool().Draw(t, "limits") {
		c.Resources = &balsav1.ResourceRequirements{Limits: map[string]*balsav1.Quantity{"cpu": object.NewQuantity(rapid.SampledFrom([]string{"1", "500m"}).Draw(t, "cpu"))}}
	}
	if rapid.Bool().Draw(t, "probe") {
		c.ReadinessProbe = &balsav1.Probe{HttpGet: &balsav1.HTTPGetAction{Port: object.IntValue(80)}, PeriodSeconds: maybe(t, rapid.Int32Range(1, 9))}
	}
	if rapid.Bool().Draw(t, "hooks") {
		c.Lifecycle = &balsav1.Lifecycle{PreStop: &balsav1.LifecycleHandler{HttpGet: &balsav1.HTTPGetAction{Port: object.IntValue(80), Path: rapid.SampledFrom([]string{"", "/a"}).Draw(t, "path")}}}
	}
	for _, path := range rapid.Permutation([]string{"/a", "/b,[c]"}).Draw(t, "mountPaths")[:rapid.IntRange(0, 2).Draw(t, "mounts")] {
		c.VolumeMounts = append(c.VolumeMounts, &balsav1.VolumeMount{Name: rapid.SampledFrom([]string{"v", "w"}).Draw(t, "volume"), MountPath: path})
	}
	return c
}

func apply(t interface {
	Helper()
	Fatalf(string, ...any)
}, live, m object.Message, manager string, seconds int64) object.Message {
	t.Helper()
	before, manifest := object.Message(nil), object.Clone(m)
	if live != nil {
		before = object.Clone(live)
	}
	merged, changed, err := object.Merge(live, m, manager, at(seconds))
	if err != nil {
		t.Fatalf("apply by %s: %v", manager, err)
	}
	if diff := cmp.Diff(manifest, m, protocmp.Transform()); diff != "" {
		t.Fatalf("Merge changed the manifest:\n%s", diff)
	}
	if live != nil {
		if diff := cmp.Diff(before, live, protocmp.Transform()); diff != "" {
			t.Fatalf("Merge changed the live object:\n%s", diff)
		}
		if changed == object.Same(live, merged) {
			t.Fatalf("changed is %v", changed)
		}
	}
	return merged
}

// withoutManaged is an object without its bookkeeping.
func withoutManaged(m object.Message) object.Message {
	dup := object.Clone(m)
	object.EnsureMetadata(dup).ManagedFields = nil
	return dup
}

func TestApplyIsIdempotent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		live := apply(t, nil, randomDeployment(t), "other", 1)
		m := randomDeployment(t)
		once := apply(t, live, m, "me", 2)
		twice, changed, err := object.Merge(once, m, "me", at(3))
		if err != nil || changed {
			t.Fatalf("the second apply changed it (%v, %v):\n%s", changed, err, cmp.Diff(once, twice, protocmp.Transform()))
		}
	})
}

// Whoever is alone gets exactly what the last manifest says.
func TestApplyAloneEqualsTheLastManifest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var live object.Message
		for range rapid.IntRange(1, 4).Draw(t, "applies") {
			live = apply(t, live, randomDeployment(t), "me", 1)
		}
		last := randomDeployment(t)
		got, want := apply(t, live, last, "me", 2), apply(t, nil, last, "me", 2)
		if diff := cmp.Diff(withoutManaged(want), withoutManaged(got), protocmp.Transform()); diff != "" {
			t.Fatalf("(-manifest alone +after others):\n%s", diff)
		}
	})
}

// What another manager mentions, and I never do, stays as it is.
func TestApplyLeavesForeignFields(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		theirs := randomDeployment(t)
		live := apply(t, nil, theirs, "other", 1)
		foreign := object.LeafValues(theirs)
		before := object.LeafValues(live)
		for range rapid.IntRange(1, 3).Draw(t, "applies") {
			mine := randomDeployment(t)
			for path := range object.LeafValues(mine) {
				delete(foreign, path)
			}
			live = apply(t, live, mine, "me", 2)
		}
		after := object.LeafValues(live)
		for path := range foreign {
			if before[path] != after[path] {
				t.Fatalf("%s was %q and is %q", path, before[path], after[path])
			}
		}
	})
}

// What I mention is there afterwards, whatever others have.
func TestApplySetsWhatItMentions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		live := apply(t, nil, randomDeployment(t), "other", 1)
		m := randomDeployment(t)
		got := object.LeafValues(apply(t, live, m, "me", 2))
		defaulted := object.Clone(m)
		object.Default(defaulted)
		want := object.LeafValues(defaulted)
		for path := range object.LeafValues(m) {
			if got[path] != want[path] {
				t.Fatalf("%s is %q, want %q", path, got[path], want[path])
			}
		}
	})
}

// ---- examples

func hello(change func(*balsav1.Deployment)) *balsav1.Deployment {
	d := &balsav1.Deployment{
		Metadata: &balsav1.ObjectMeta{Name: "hello"},
		Spec: &balsav1.DeploymentSpec{
			Replicas: proto.Int32(3),
			Selector: &balsav1.LabelSelector{MatchLabels: map[string]string{"app": "hello"}},
			Template: &balsav1.PodTemplateSpec{
				Metadata: &balsav1.ObjectMeta{Labels: map[string]string{"app": "hello"}},
				Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{{
					Name: "web", Image: "balsa/echo:1",
					ReadinessProbe: &balsav1.Probe{HttpGet: &balsav1.HTTPGetAction{Port: object.IntValue(80)}},
				}}},
			},
		},
	}
	if change != nil {
		change(d)
	}
	return d
}

func spec(m object.Message) *balsav1.DeploymentSpec { return m.(*balsav1.Deployment).GetSpec() }

func container(m object.Message) *balsav1.Container {
	return spec(m).GetTemplate().GetSpec().GetContainers()[0]
}

func scaleTo(n int32) *balsav1.Deployment {
	return &balsav1.Deployment{Metadata: &balsav1.ObjectMeta{Name: "hello"}, Spec: &balsav1.DeploymentSpec{Replicas: &n}}
}

func TestScaleSurvives(t *testing.T) {
	silent := hello(func(d *balsav1.Deployment) { d.Spec.Replicas = nil })
	live := apply(t, nil, silent, "cli", 1)
	live = apply(t, live, scaleTo(7), "scale", 2)
	live = apply(t, live, silent, "cli", 3)
	if got := spec(live).GetReplicas(); got != 7 {
		t.Errorf("replicas %d after an apply that does not mention them, want 7", got)
	}
	live = apply(t, live, hello(nil), "cli", 4)
	if got := spec(live).GetReplicas(); got != 3 {
		t.Errorf("replicas %d after an apply that wants 3", got)
	}
}

// The manifest mentioned replicas, scale took them over, and then the manifest
// drops them.
func TestScaleTakesOver(t *testing.T) {
	live := apply(t, nil, hello(nil), "cli", 1)
	live = apply(t, live, scaleTo(7), "scale", 2)
	live = apply(t, live, hello(func(d *balsav1.Deployment) { d.Spec.Replicas = nil }), "cli", 3)
	if got := spec(live).GetReplicas(); got != 7 {
		t.Errorf("replicas %d, want 7", got)
	}
}

// The same by an Update, which has no manager.
func TestUpdateReleases(t *testing.T) {
	live := apply(t, nil, hello(nil), "cli", 1)
	next := object.Clone(live)
	spec(next).Replicas = proto.Int32(7)
	object.CarryOver(live, next)
	object.ReleaseChanged(live, next)
	after := apply(t, next, hello(func(d *balsav1.Deployment) { d.Spec.Replicas = nil }), "cli", 3)
	if got := spec(after).GetReplicas(); got != 7 {
		t.Errorf("replicas %d, want 7", got)
	}
	if strings.Contains(live.GetMetadata().GetManagedFields()[0].String(), "spec.replicas") == false {
		t.Error("ReleaseChanged changed the old object")
	}
}

func TestDroppedFieldsGo(t *testing.T) {
	live := apply(t, nil, hello(func(d *balsav1.Deployment) {
		d.Metadata.Labels = map[string]string{"a": "1", "b": "2"}
		d.Spec.Template.Spec.Containers[0].Env = []*balsav1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}}
		d.Spec.Template.Spec.Containers = append(d.Spec.Template.Spec.Containers, &balsav1.Container{Name: "log", Image: "i"})
	}), "cli", 1)
	live = apply(t, live, hello(func(d *balsav1.Deployment) {
		d.Metadata.Labels = map[string]string{"b": "2"}
		d.Spec.Replicas = nil
		d.Spec.Template.Spec.Containers[0].Env = []*balsav1.EnvVar{{Name: "B", Value: "2"}}
		d.Spec.Template.Spec.Containers[0].ReadinessProbe = nil
	}), "cli", 2)
	if got := live.GetMetadata().GetLabels(); len(got) != 1 || got["b"] != "2" {
		t.Errorf("labels %v", got)
	}
	if got := spec(live).GetReplicas(); got != 1 {
		t.Errorf("replicas %d, want the default", got)
	}
	if got := spec(live).GetTemplate().GetSpec().GetContainers(); len(got) != 1 {
		t.Errorf("containers %v", got)
	}
	if got := container(live).GetEnv(); len(got) != 1 || got[0].GetName() != "B" {
		t.Errorf("env %v", got)
	}
	if got := container(live).GetReadinessProbe(); got != nil {
		t.Errorf("the probe left its defaults behind: %v", got)
	}
}

// A container that another manager has added something to stays, with that.
func TestSharedContainerStays(t *testing.T) {
	live := apply(t, nil, hello(nil), "cli", 1)
	side := hello(func(d *balsav1.Deployment) {
		d.Spec = &balsav1.DeploymentSpec{Template: &balsav1.PodTemplateSpec{Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{
			{Name: "web", Env: []*balsav1.EnvVar{{Name: "X", Value: "1"}}}}}}}
	})
	live = apply(t, live, side, "injector", 2)
	live = apply(t, live, hello(func(d *balsav1.Deployment) {
		d.Spec.Template.Spec.Containers = []*balsav1.Container{{Name: "new", Image: "i"}}
	}), "cli", 3)
	containers := spec(live).GetTemplate().GetSpec().GetContainers()
	if len(containers) != 2 || containers[0].GetName() != "web" || containers[0].GetImage() != "" || containers[0].GetEnv()[0].GetName() != "X" {
		t.Errorf("containers %v", containers)
	}
	live = apply(t, live, &balsav1.Deployment{Metadata: &balsav1.ObjectMeta{Name: "hello"}}, "injector", 4)
	if env := container(live).GetEnv(); len(env) != 0 {
		t.Errorf("env %v after its manager has dropped it", env)
	}
}

// create -f, then apply -f of the same file, then apply without a container.
func TestApplyAdoptsWhatCreateMade(t *testing.T) {
	two := hello(func(d *balsav1.Deployment) {
		d.Spec.Template.Spec.Containers = append(d.Spec.Template.Spec.Containers, &balsav1.Container{Name: "log", Image: "i"})
	})
	created := object.Clone(two)
	object.Default(created)
	object.Stamp(created, "uid", at(1))
	live := apply(t, created, two, "cli", 2)
	live = apply(t, live, hello(nil), "cli", 3)
	if got := spec(live).GetTemplate().GetSpec().GetContainers(); len(got) != 1 || got[0].GetName() != "web" {
		t.Errorf("containers %v", got)
	}
}

// One who only sets an image of what others created takes nothing else with it.
func TestImageSetterTakesNothingAway(t *testing.T) {
	created := hello(nil)
	object.Default(created)
	setter := hello(func(d *balsav1.Deployment) {
		d.Spec = &balsav1.DeploymentSpec{Template: &balsav1.PodTemplateSpec{Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{{Name: "web", Image: "balsa/echo:2"}}}}}
	})
	live := apply(t, created, setter, "setter", 1)
	if got := container(live).GetImage(); got != "balsa/echo:2" {
		t.Errorf("image %s", got)
	}
	live = apply(t, live, &balsav1.Deployment{Metadata: &balsav1.ObjectMeta{Name: "hello"}}, "setter", 2)
	if got := container(live).GetReadinessProbe().GetHttpGet().GetPort().GetInt(); got != 80 {
		t.Errorf("the probe is gone: %v", container(live))
	}
}

func TestOrderOfContainers(t *testing.T) {
	names := func(m object.Message) string {
		var out []string
		for _, c := range spec(m).GetTemplate().GetSpec().GetContainers() {
			out = append(out, c.GetName())
		}
		return strings.Join(out, " ")
	}
	with := func(names ...string) *balsav1.Deployment {
		return hello(func(d *balsav1.Deployment) {
			d.Spec.Template.Spec.Containers = nil
			for _, name := range names {
				d.Spec.Template.Spec.Containers = append(d.Spec.Template.Spec.Containers, &balsav1.Container{Name: name, Image: "i"})
			}
		})
	}
	live := apply(t, nil, with("side", "web"), "other", 1)
	for _, c := range []struct {
		apply []string
		want  string
	}{{[]string{"web"}, "side web"}, {[]string{"web", "new"}, "side web new"}, {[]string{"new", "web"}, "side new web"}, {[]string{"web", "side"}, "web side"}} {
		live = apply(t, live, with(c.apply...), "cli", 2)
		if got := names(live); got != c.want {
			t.Errorf("after %v: %s, want %s", c.apply, got, c.want)
		}
	}
}

func TestRecreateDropsDefaultedRollingUpdate(t *testing.T) {
	live := apply(t, nil, hello(nil), "cli", 1)
	live = apply(t, live, hello(func(d *balsav1.Deployment) { d.Spec.Strategy = &balsav1.DeploymentStrategy{Type: "Recreate"} }), "cli", 2)
	if violations := object.ValidateUpdate(live, live, object.User); len(violations) > 0 {
		t.Error(violations.Err(live))
	}
}

func TestSecretByKey(t *testing.T) {
	manifest := func(data map[string]string) *balsav1.Secret {
		return &balsav1.Secret{Metadata: &balsav1.ObjectMeta{Name: "s"}, StringData: data}
	}
	live := apply(t, nil, manifest(map[string]string{"a": "1", "b": "2"}), "cli", 1)
	live = apply(t, live, manifest(map[string]string{"c": "3"}), "other", 2)
	live = apply(t, live, manifest(map[string]string{"b": "4"}), "cli", 3)
	got := live.(*balsav1.Secret)
	if diff := cmp.Diff(map[string][]byte{"b": []byte("4"), "c": []byte("3")}, got.GetData()); diff != "" || got.GetStringData() != nil {
		t.Errorf("data (-want +got):\n%s", diff)
	}
	for _, entry := range got.GetMetadata().GetManagedFields() {
		if text := entry.String(); strings.Contains(text, `"4"`) || strings.Contains(text, "stringData") {
			t.Errorf("managedFields: %s", text)
		}
	}
}

func TestManagedFields(t *testing.T) {
	live := apply(t, nil, hello(nil), "cli", 1)
	live = apply(t, live, scaleTo(5), "scale", 2)
	var got strings.Builder
	for _, entry := range live.GetMetadata().GetManagedFields() {
		got.WriteString(entry.GetManager() + " " + entry.GetTime().AsTime().Format(time.TimeOnly) + "\n")
		for _, path := range entry.GetPaths() {
			got.WriteString("  " + path + "\n")
		}
	}
	const want = `cli 00:00:01
  spec
  spec.selector
  spec.template
  spec.template.metadata
  spec.template.metadata.labels[app]
  spec.template.spec
  spec.template.spec.containers[name=web]
  spec.template.spec.containers[name=web].image
  spec.template.spec.containers[name=web].name
  spec.template.spec.containers[name=web].readinessProbe
  spec.template.spec.containers[name=web].readinessProbe.httpGet
  spec.template.spec.containers[name=web].readinessProbe.httpGet.port
scale 00:00:02
  spec.replicas
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMergeRefuses(t *testing.T) {
	live := apply(t, nil, hello(nil), "cli", 1)
	for name, c := range map[string]struct {
		m       object.Message
		manager string
		want    string
	}{
		"no manager":  {hello(nil), "", "manager: found"},
		"odd manager": {hello(nil), "a b", "manager: found"},
		"other kind":  {&balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: "hello"}}, "cli", object.ErrOtherKind.Error()},
		"status":      {hello(func(d *balsav1.Deployment) { d.Status = &balsav1.DeploymentStatus{Replicas: 1} }), "cli", "status: is written by the server only"},
		"generation":  {hello(func(d *balsav1.Deployment) { d.Metadata.Generation = 1 }), "cli", "metadata.generation: is written by the server only"},
		"bookkeeping": {hello(func(d *balsav1.Deployment) { d.Metadata.ManagedFields = []*balsav1.ManagedFields{{}} }), "cli", "metadata.managedFields: is written"},
		"two the same": {hello(func(d *balsav1.Deployment) {
			d.Spec.Template.Spec.Containers = append(d.Spec.Template.Spec.Containers, &balsav1.Container{Name: "web"})
		}), "cli", "spec.template.spec.containers[name=web]: is there twice"},
	} {
		_, _, err := object.Merge(live, c.m, c.manager, at(2))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	var invalid *object.InvalidError
	_, _, err := object.Merge(nil, hello(func(d *balsav1.Deployment) { d.Metadata.Generation = 1 }), "cli", at(1))
	if !errors.As(err, &invalid) || len(invalid.Violations) != 1 {
		t.Errorf("got %v, want an InvalidError", err)
	}
}

func TestManagersAreBounded(t *testing.T) {
	live := apply(t, nil, hello(nil), "cli", 1)
	for i := range 100 {
		label := strings.Repeat("x", i+1)[:min(i+1, 60)]
		m := &balsav1.Deployment{Metadata: &balsav1.ObjectMeta{Name: "hello", Labels: map[string]string{label: "1"}}}
		merged, _, err := object.Merge(live, m, "m"+strings.Repeat("x", i), at(2))
		if err != nil {
			if i < 50 || !strings.Contains(err.Error(), "more than 64 managers") {
				t.Errorf("manager %d: %v", i, err)
			}
			return
		}
		live = merged
	}
	t.Error("a hundred managers were let in")
}

// Ports are told apart by number and protocol; what the server chose stays.
func TestServicePorts(t *testing.T) {
	service := func(ports ...*balsav1.ServicePort) *balsav1.Service {
		return &balsav1.Service{Metadata: &balsav1.ObjectMeta{Name: "s"}, Spec: &balsav1.ServiceSpec{Selector: map[string]string{"app": "a"}, Ports: ports}}
	}
	live := apply(t, nil, service(&balsav1.ServicePort{Name: "a", Port: 80}, &balsav1.ServicePort{Name: "b", Port: 81}), "cli", 1)
	live.(*balsav1.Service).Spec.ClusterIp = "10.96.0.7"
	live = apply(t, live, service(&balsav1.ServicePort{Name: "dns", Port: 80, Protocol: "UDP"}), "other", 2)
	live = apply(t, live, service(&balsav1.ServicePort{Name: "a", Port: 80, TargetPort: object.StringValue("http")}), "cli", 3)
	want := service(
		&balsav1.ServicePort{Name: "a", Port: 80, Protocol: "TCP", TargetPort: object.StringValue("http")},
		&balsav1.ServicePort{Name: "dns", Port: 80, Protocol: "UDP", TargetPort: object.IntValue(80)}).Spec
	want.ClusterIp = "10.96.0.7"
	whole := &balsav1.Service{Spec: want}
	object.Default(whole)
	if diff := cmp.Diff(want, live.(*balsav1.Service).Spec, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// An Apply at the limits must stay quick: it runs on the server.
func BenchmarkMergeLarge(b *testing.B) {
	d := hello(func(d *balsav1.Deployment) {
		web := d.Spec.Template.Spec.Containers[0]
		for i := range 1024 {
			web.Env = append(web.Env, &balsav1.EnvVar{Name: "V" + strings.Repeat("x", i%50) + string(rune('A'+i/50)), Value: "1"})
		}
	})
	live, _, err := object.Merge(nil, d, "cli", at(1))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, changed, err := object.Merge(live, d, "cli", at(2)); err != nil || changed {
			b.Fatal(changed, err)
		}
	}
}
