package pod

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/runtime"
)

// TestEphemeralContainerHasItsFields follows every field of one to what the
// runtime and the images are asked for.
func TestEphemeralContainerHasItsFields(t *testing.T) {
	yes := proto.Bool(true)
	e := &balsav1.EphemeralContainer{
		Name: "debug", Image: "tools:1", ImagePullPolicy: "Never", Command: []string{"/bin/look"}, Args: []string{"$(FROM)"}, WorkingDir: "/there",
		EnvFrom:         []*balsav1.EnvFromSource{{ConfigMapRef: &balsav1.ObjectNameSelector{Name: "m"}}},
		Env:             []*balsav1.EnvVar{{Name: "FROM", Value: "of $(k)"}},
		SecurityContext: &balsav1.SecurityContext{RunAsUser: proto.Int64(7), Capabilities: &balsav1.Capabilities{Add: []string{"SYS_PTRACE"}}},
		VolumeMounts:    []*balsav1.VolumeMount{{Name: "data", MountPath: "/data", ReadOnly: yes}},
		Stdin:           yes, StdinOnce: yes, Tty: yes, TerminationMessagePath: "/last", TargetContainerName: "c",
	}
	p := &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: "p", Namespace: "ns", Uid: uid}, Spec: &balsav1.PodSpec{
		Containers: []*balsav1.Container{{Name: "c", Image: "app:1"}}, EphemeralContainers: []*balsav1.EphemeralContainer{e},
		Volumes: []*balsav1.Volume{{Name: "data", EmptyDir: &balsav1.EmptyDirVolumeSource{}}},
	}}
	s := stepOf(p, func(v *View) {
		v.Sources, v.VolumePaths = claimSources("Bound", "n1"), map[string]string{"data": "/v/data"}
		v.MessagePath = func(k AttemptKey) string { return "/run/msg/" + k.Container }
	})
	s.image(s.extras[0])
	if diff := cmp.Diff([]ImageWant{{Container: "debug", Name: "tools:1", Policy: "Never", First: true}}, s.plan.Images); diff != "" {
		t.Errorf("images: %s", diff)
	}
	got, _, err := s.config(s.extras[0], runtime.Image{Digest: "i"})
	if err != nil {
		t.Fatal(err)
	}
	want := runtime.ContainerConfig{
		Name: "debug", Image: runtime.Image{Digest: "i"}, Command: []string{"/bin/look"}, Args: []string{"of v"}, WorkingDir: "/there",
		Env:      []runtime.EnvVar{{Name: "k", Value: "v"}, {Name: "FROM", Value: "of v"}},
		Security: runtime.Security{RunAsUser: proto.Int64(7), AddCapabilities: []string{"SYS_PTRACE"}, AllowPrivilegeEscalation: true, ImageGroups: true},
		Mounts:   []runtime.Mount{{HostPath: "/v/data", ContainerPath: "/data", ReadOnly: true}, {HostPath: "/run/msg/debug", ContainerPath: "/last"}},
		Stdin:    true, StdinOnce: true, TTY: true, TargetContainer: "c", Resources: got.Resources,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("its container: %s", diff)
	}
}
