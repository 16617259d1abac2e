package pod

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/node/volume"
	"github.com/balsa-run/balsa/object"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares text with a file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s: %s", path, diff)
	}
}

// stepOf is a step of a pod with everything in place.
func stepOf(p *balsav1.Pod, change func(*View)) *step {
	if p.Metadata == nil {
		p.Metadata = &balsav1.ObjectMeta{Name: "p", Namespace: "ns", Uid: uid}
	}
	object.Default(p)
	v := View{Now: time.Unix(1000, 0), UID: uid, Pod: p, IP: netip.MustParseAddr("10.244.0.9"),
		Node: Node{Name: "n1", IP: netip.MustParseAddr("10.0.0.1"), DNS: netip.MustParseAddr("169.254.20.10"), Domain: "cluster.local",
			MemoryBytes: 8 << 30, Allocatable: Capacity{MilliCPU: 3500, MemoryBytes: 7 << 30, EphemeralBytes: 50 << 30}}}
	if change != nil {
		change(&v)
	}
	s := &step{v: v, mem: Memory{}.clone()}
	s.observe()
	return s
}

func TestSecurityContextsAreMerged(t *testing.T) {
	pod := &balsav1.PodSecurityContext{RunAsUser: proto.Int64(1000), RunAsGroup: proto.Int64(2000), RunAsNonRoot: proto.Bool(true), FsGroup: proto.Int64(3000),
		SupplementalGroups: []int64{4000}, SeccompProfile: &balsav1.SeccompProfile{Type: "Unconfined"}}
	for _, tt := range []struct {
		name string
		own  *balsav1.SecurityContext
		want runtime.Security
	}{
		{"the pod's", nil, runtime.Security{RunAsUser: proto.Int64(1000), RunAsGroup: proto.Int64(2000), RunAsNonRoot: true, SupplementalGroups: []int64{4000, 3000},
			ImageGroups: true, AllowPrivilegeEscalation: true, SeccompUnconfined: true}},
		{"the container's", &balsav1.SecurityContext{RunAsUser: proto.Int64(0), RunAsNonRoot: proto.Bool(false), ReadOnlyRootFilesystem: proto.Bool(true),
			AllowPrivilegeEscalation: proto.Bool(false), ProcMount: "Unmasked", SeccompProfile: &balsav1.SeccompProfile{Type: "Localhost", LocalhostProfile: "a/b.json"},
			Capabilities: &balsav1.Capabilities{Add: []string{"NET_ADMIN"}, Drop: []string{"ALL"}}},
			runtime.Security{RunAsUser: proto.Int64(0), RunAsGroup: proto.Int64(2000), SupplementalGroups: []int64{4000, 3000}, ImageGroups: true, ReadOnlyRootFS: true,
				UnmaskedProc: true, SeccompProfile: []byte("{}"), AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"ALL"}}},
		{"privileged", &balsav1.SecurityContext{Privileged: proto.Bool(true), SeccompProfile: &balsav1.SeccompProfile{Type: "RuntimeDefault"}},
			runtime.Security{RunAsUser: proto.Int64(1000), RunAsGroup: proto.Int64(2000), RunAsNonRoot: true, SupplementalGroups: []int64{4000, 3000}, ImageGroups: true,
				AllowPrivilegeEscalation: true, Privileged: true}},
	} {
		p := &balsav1.Pod{Spec: &balsav1.PodSpec{SecurityContext: pod, Containers: []*balsav1.Container{{Name: "c", SecurityContext: tt.own}}}}
		s := stepOf(p, func(v *View) { v.HostFiles.Seccomp = map[string][]byte{"a/b.json": []byte("{}")} })
		got, err := s.security(s.apps[0])
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", tt.name, err, diff)
		}
		s.v.HostFiles = HostFiles{Problem: "no folder"}
		if _, err := s.security(s.apps[0]); tt.own.GetSeccompProfile().GetType() == "Localhost" && (err == nil || !strings.Contains(err.Error(), `"a/b.json"`)) {
			t.Errorf("%s: a profile that cannot be read gives %v", tt.name, err)
		}
	}
	p := &balsav1.Pod{Spec: &balsav1.PodSpec{SecurityContext: &balsav1.PodSecurityContext{SupplementalGroupsPolicy: "Strict"}, Containers: []*balsav1.Container{{Name: "c"}}}}
	s := stepOf(p, nil)
	if got, err := s.security(s.apps[0]); err != nil || got.ImageGroups {
		t.Errorf("supplementalGroupsPolicy Strict: %+v %v", got, err)
	}
}

func TestSandboxOfPod(t *testing.T) {
	yes, no := proto.Bool(true), proto.Bool(false)
	p := &balsav1.Pod{Spec: &balsav1.PodSpec{HostPid: yes, HostIpc: yes, ShareProcessNamespace: yes, HostUsers: no, Hostname: "web",
		SecurityContext: &balsav1.PodSecurityContext{Sysctls: []*balsav1.Sysctl{{Name: "net.core.somaxconn", Value: "1024"}}},
		InitContainers:  []*balsav1.Container{{Name: "s1", RestartPolicy: "Always"}, {Name: "i"}, {Name: "s2", RestartPolicy: "Always"}},
		Containers:      []*balsav1.Container{limits("500m", "500m", "64Mi", "64Mi")}}}
	p.Spec.InitContainers[0].Resources = limits("100m", "100m", "16Mi", "16Mi").Resources
	p.Spec.InitContainers[1].Resources = limits("2", "2", "32Mi", "32Mi").Resources
	p.Spec.InitContainers[2].Resources = limits("100m", "100m", "16Mi", "16Mi").Resources
	s := stepOf(p, func(v *View) {
		v.FreeUsers, v.Revision, v.Node.PodPids = &runtime.IDMapping{HostID: 3 << 16, Size: 1 << 16}, 7, 500
	})
	s.users()
	got, err := s.sandbox()
	if err != nil {
		t.Fatal(err)
	}
	want := runtime.PodConfig{UID: uid, Namespace: "ns", Name: "p", Hostname: "web", HostPID: true, HostIPC: true, ShareProcessNamespace: true,
		Users: &runtime.IDMapping{HostID: 3 << 16, Size: 1 << 16}, Sysctls: map[string]string{"net.core.somaxconn": "1024"},
		Resources:   runtime.Resources{CPUShares: 2150, CPUQuotaMicros: 210_000, CPUPeriodMicros: 100_000, MemoryLimitBytes: 96 << 20, PidsLimit: 500},
		Annotations: map[string]string{"balsa.run/grace-seconds": "30", "balsa.run/revision": "7", "balsa.run/sidecars": "s1,s2", "balsa.run/users": "196608:65536"}}
	got.Hosts, got.ResolvConf = nil, nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// The range of a sandbox that exists counts, whatever is free now.
	s.mem.Users, s.v.Runtime = nil, &runtime.PodState{Annotations: map[string]string{AnnotationUsers: "65536:65536"}}
	if s.users(); s.mem.Users == nil || s.mem.Users.HostID != 65536 {
		t.Errorf("the pod's ids are %v, not those of its sandbox", s.mem.Users)
	}
	s.mem.Users, s.v.Runtime, s.v.FreeUsers = nil, nil, nil
	s.users()
	if _, err := s.sandbox(); err == nil || !strings.Contains(err.Error(), "no free range") {
		t.Errorf("without a free range: %v", err)
	}
}

func TestPodLevelLimitsNeedAllContainers(t *testing.T) {
	spec := &balsav1.PodSpec{Containers: []*balsav1.Container{limits("1", "1", "", "1Gi"), limits("", "", "", "")}}
	got, err := podResources(spec)
	if want := (runtime.Resources{CPUShares: 1024}); err != nil || got != want {
		t.Errorf("resources %+v %v, want %+v: one container has no limit", got, err, want)
	}
}

func TestOOMScoreOfSidecar(t *testing.T) {
	spec := &balsav1.PodSpec{Containers: []*balsav1.Container{limits("", "", "4Gi", "")}}
	got, err := containerResources(spec, &container{kind: sidecar, spec: limits("", "", "1Gi", "")}, 8<<30)
	if err != nil || got.OOMScoreAdj != 500 {
		t.Errorf("score %d %v, want that of the container it serves", got.OOMScoreAdj, err)
	}
}

func TestDNSPolicies(t *testing.T) {
	node := HostFiles{ResolvConf: []byte("# the node's\nnameserver 192.0.2.1\nsearch example.com\noptions timeout:2 rotate\n")}
	cluster := "search ns.svc.cluster.local svc.cluster.local cluster.local\nnameserver 169.254.20.10\noptions ndots:5\n"
	own := "search example.com\nnameserver 192.0.2.1\noptions timeout:2 rotate\n"
	two := "2"
	for _, tt := range []struct {
		name string
		spec *balsav1.PodSpec
		want string
	}{
		{"default", &balsav1.PodSpec{}, cluster},
		{"ClusterFirst", &balsav1.PodSpec{DnsPolicy: "ClusterFirst"}, cluster},
		{"ClusterFirst with the node's network", &balsav1.PodSpec{DnsPolicy: "ClusterFirst", HostNetwork: proto.Bool(true)}, own},
		{"ClusterFirstWithHostNet", &balsav1.PodSpec{DnsPolicy: "ClusterFirstWithHostNet", HostNetwork: proto.Bool(true)}, cluster},
		{"Default", &balsav1.PodSpec{DnsPolicy: "Default"}, own},
		{"None", &balsav1.PodSpec{DnsPolicy: "None", DnsConfig: &balsav1.PodDNSConfig{Nameservers: []string{"1.1.1.1"}, Searches: []string{"a.b"},
			Options: []*balsav1.PodDNSConfigOption{{Name: "ndots", Value: &two}, {Name: "edns0"}}}}, "search a.b\nnameserver 1.1.1.1\noptions ndots:2 edns0\n"},
		{"merged", &balsav1.PodSpec{DnsConfig: &balsav1.PodDNSConfig{Nameservers: []string{"1.1.1.1", "169.254.20.10", "2.2.2.2", "3.3.3.3"}, Searches: []string{"a.b"},
			Options: []*balsav1.PodDNSConfigOption{{Name: "ndots", Value: &two}}}},
			"search ns.svc.cluster.local svc.cluster.local cluster.local a.b\nnameserver 169.254.20.10\nnameserver 1.1.1.1\nnameserver 2.2.2.2\noptions ndots:2\n"},
	} {
		got, err := files(tt.spec, node).resolvConf()
		if diff := cmp.Diff(tt.want, string(got)); err != nil || diff != "" {
			t.Errorf("%s: %v %s", tt.name, err, diff)
		}
	}
	if _, err := files(&balsav1.PodSpec{DnsPolicy: "Default"}, HostFiles{Problem: "gone"}).resolvConf(); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("a resolv.conf that cannot be read gives %v", err)
	}
}

func TestHostAliasesAndNames(t *testing.T) {
	ip := netip.MustParseAddr("10.1.2.3")
	spec := &balsav1.PodSpec{HostAliases: []*balsav1.HostAlias{{Ip: "192.0.2.7", Hostnames: []string{"a", "b.c"}}}}
	if got := string(files(spec, HostFiles{}).hosts(ip)); !strings.HasSuffix(got, "10.1.2.3\tweb\n192.0.2.7\ta\tb.c\n") {
		t.Errorf("hosts with an alias %q", got)
	}
	spec.HostNetwork = proto.Bool(true)
	if got := string(files(spec, HostFiles{Hosts: []byte("127.0.0.1 localhost")}).hosts(ip)); got != "127.0.0.1 localhost\n192.0.2.7\ta\tb.c\n" {
		t.Errorf("hosts with the node's network %q", got)
	}
	if got := files(spec, HostFiles{}).hostname(); got != "n1" {
		t.Errorf("host name with the node's network %q", got)
	}
	spec = &balsav1.PodSpec{SetHostnameAsFqdn: proto.Bool(true)}
	s := files(spec, HostFiles{})
	if got := s.hostname(); got != "web" || !strings.HasSuffix(string(s.hosts(ip)), "10.1.2.3\tweb\n") {
		t.Errorf("without a subdomain there is no full name: %q, hosts %q", got, s.hosts(ip))
	}
	spec.Subdomain = "db"
	if got := s.hostname(); got != "web.db.ns.svc.cluster.local" || !strings.HasSuffix(string(s.hosts(ip)), "10.1.2.3\tweb.db.ns.svc.cluster.local\tweb\n") {
		t.Errorf("full host name %q, hosts %q", got, s.hosts(ip))
	}
	spec.SetHostnameAsFqdn = nil
	if got := s.hostname(); got != "web" || !strings.HasSuffix(string(s.hosts(ip)), "10.1.2.3\tweb.db.ns.svc.cluster.local\tweb\n") {
		t.Errorf("short host name %q, hosts %q", got, s.hosts(ip))
	}
	spec.SetHostnameAsFqdn = proto.Bool(true)
	s.v.Pod.Metadata.Name = strings.Repeat("x", 60)
	if _, err := s.sandbox(); err == nil || !strings.Contains(err.Error(), "setHostnameAsFQDN") {
		t.Errorf("a full name that is too long gives %v", err)
	}
}

func TestResourceFieldRef(t *testing.T) {
	c := limits("250m", "1500m", "", "64Mi")
	spec := &balsav1.PodSpec{Containers: []*balsav1.Container{c, {Name: "free"}}}
	node := Node{Allocatable: Capacity{MilliCPU: 3500, MemoryBytes: 1 << 30, EphemeralBytes: 5 << 30}}
	for _, tt := range []struct{ container, resource, divisor, want string }{
		{"c", "limits.cpu", "", "2"}, {"c", "limits.cpu", "1m", "1500"}, {"c", "requests.cpu", "1m", "250"}, {"c", "limits.memory", "1Mi", "64"},
		{"c", "limits.memory", "", "67108864"}, {"c", "requests.memory", "1Mi", "64"}, {"free", "limits.cpu", "", "4"}, {"free", "limits.memory", "1Mi", "1024"},
		{"free", "requests.memory", "", "0"}, {"free", "limits.ephemeral-storage", "1Gi", "5"}, {"", "limits.cpu", "", "2"},
	} {
		ref := &balsav1.ResourceFieldSelector{ContainerName: tt.container, Resource: tt.resource}
		if tt.divisor != "" {
			ref.Divisor = object.NewQuantity(tt.divisor)
		}
		if got, err := resourceField(spec, ref, c, node); err != nil || got != tt.want {
			t.Errorf("%+v: %q %v", tt, got, err)
		}
	}
	if _, err := resourceField(spec, &balsav1.ResourceFieldSelector{ContainerName: "none", Resource: "limits.cpu"}, c, node); err == nil {
		t.Error("a container that is not there has limits")
	}
}

func TestVolumeContents(t *testing.T) {
	yes := proto.Bool(true)
	p := &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: "p", Namespace: "ns", Uid: uid, Labels: map[string]string{"b": "2", "a": "1"}, Annotations: map[string]string{"n": "line\nbreak"}},
		Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{{Name: "c"}}, SecurityContext: &balsav1.PodSecurityContext{FsGroup: proto.Int64(70), FsGroupChangePolicy: "OnRootMismatch"}}}
	p.Spec.Volumes = []*balsav1.Volume{
		{Name: "all", ConfigMap: &balsav1.ConfigMapVolumeSource{Name: "m", DefaultMode: proto.Int32(0o640)}},
		{Name: "some", Secret: &balsav1.SecretVolumeSource{SecretName: "s", Items: []*balsav1.KeyToPath{{Key: "k", Path: "dir/key", Mode: proto.Int32(0o400)}}}},
		{Name: "absent", ConfigMap: &balsav1.ConfigMapVolumeSource{Name: "none", Optional: yes}},
		{Name: "absent-key", Secret: &balsav1.SecretVolumeSource{SecretName: "s", Items: []*balsav1.KeyToPath{{Key: "none", Path: "x"}}, Optional: yes}},
		{Name: "down", DownwardApi: &balsav1.DownwardAPIVolumeSource{Items: []*balsav1.DownwardAPIVolumeFile{
			{Path: "labels", FieldRef: &balsav1.ObjectFieldSelector{FieldPath: "metadata.labels"}}, {Path: "annotations", FieldRef: &balsav1.ObjectFieldSelector{FieldPath: "metadata.annotations"}},
			{Path: "a", FieldRef: &balsav1.ObjectFieldSelector{FieldPath: "metadata.labels['a']"}},
			{Path: "cpu", ResourceFieldRef: &balsav1.ResourceFieldSelector{ContainerName: "c", Resource: "limits.cpu", Divisor: object.NewQuantity("1m")}, Mode: proto.Int32(0o600)}}}},
		{Name: "mixed", Projected: &balsav1.ProjectedVolumeSource{DefaultMode: proto.Int32(0o444), Sources: []*balsav1.VolumeProjection{
			{ConfigMap: &balsav1.ConfigMapProjection{Name: "m", Items: []*balsav1.KeyToPath{{Key: "k", Path: "from-map"}}}}, {Secret: &balsav1.SecretProjection{Name: "s"}},
			{DownwardApi: &balsav1.DownwardAPIProjection{Items: []*balsav1.DownwardAPIVolumeFile{{Path: "name", FieldRef: &balsav1.ObjectFieldSelector{FieldPath: "metadata.name"}}}}}}}},
		{Name: "disk", EmptyDir: &balsav1.EmptyDirVolumeSource{}},
		{Name: "memory", EmptyDir: &balsav1.EmptyDirVolumeSource{Medium: "Memory", SizeLimit: object.NewQuantity("64Mi")}},
		{Name: "host", HostPath: &balsav1.HostPathVolumeSource{Path: "/var/x", Type: "DirectoryOrCreate"}},
		{Name: "claim", PersistentVolumeClaim: &balsav1.PersistentVolumeClaimVolumeSource{ClaimName: "data", ReadOnly: yes}},
	}
	s := stepOf(p, func(v *View) { v.Sources = claimSources("Bound", "n1") })
	got, err := s.wantVolumes()
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("fsGroup %d, only on mismatch %t\n", *got.FSGroup, got.OnRootMismatch)
	for _, v := range got.Volumes {
		text += describe(v)
	}
	golden(t, "volumes.golden", text)
}

func describe(v volume.Volume) string {
	if v.Files == nil {
		data, err := json.Marshal(v)
		return fmt.Sprintf("%s %s %v\n", v.Name, data, err)
	}
	text := fmt.Sprintf("%s files, in memory only %t\n", v.Name, v.Files.Secret)
	for _, path := range sortedKeys(v.Files.Files) {
		f := v.Files.Files[path]
		text += fmt.Sprintf("    %s %s %q\n", path, f.Mode, f.Data)
	}
	return text
}

func claimSources(phase, node string) Sources {
	return Sources{
		ConfigMaps: map[string]*balsav1.ConfigMap{"m": {Data: map[string]string{"k": "v"}, BinaryData: map[string][]byte{"bin": {0, 1}}}},
		Secrets:    map[string]*balsav1.Secret{"s": {Data: map[string][]byte{"k": []byte("hush"), "l": []byte("x")}}},
		Claims: map[string]*balsav1.PersistentVolumeClaim{"data": {Spec: &balsav1.PersistentVolumeClaimSpec{VolumeName: "pv-1"},
			Status: &balsav1.PersistentVolumeClaimStatus{Phase: phase}}},
		Volumes: map[string]*balsav1.PersistentVolume{"pv-1": {Metadata: &balsav1.ObjectMeta{Name: "pv-1"}, Spec: &balsav1.PersistentVolumeSpec{
			Capacity: map[string]*balsav1.Quantity{"storage": object.NewQuantity("1Gi")}, Local: &balsav1.LocalVolumeSource{FsType: "ext4"},
			NodeAffinity: &balsav1.VolumeNodeAffinity{Required: &balsav1.NodeSelector{NodeSelectorTerms: []*balsav1.NodeSelectorTerm{{
				MatchExpressions: []*balsav1.NodeSelectorRequirement{{Key: "kubernetes.io/hostname", Operator: "In", Values: []string{node}}}}}}}}}},
	}
}

func TestVolumesThatAreMissing(t *testing.T) {
	for want, tt := range map[string]struct {
		v       *balsav1.Volume
		sources Sources
	}{
		`volume "v": configmap "ns/none" not found`:                                                        {&balsav1.Volume{Name: "v", ConfigMap: &balsav1.ConfigMapVolumeSource{Name: "none"}}, claimSources("Bound", "n1")},
		`volume "v": key "none" not found in secret "ns/s"`:                                                {&balsav1.Volume{Name: "v", Secret: &balsav1.SecretVolumeSource{SecretName: "s", Items: []*balsav1.KeyToPath{{Key: "none", Path: "x"}}}}, claimSources("Bound", "n1")},
		`volume "v": persistentvolumeclaim "ns/none" not found`:                                            {&balsav1.Volume{Name: "v", PersistentVolumeClaim: &balsav1.PersistentVolumeClaimVolumeSource{ClaimName: "none"}}, claimSources("Bound", "n1")},
		`volume "v": persistentvolumeclaim "ns/data" is not bound to a volume yet: its phase is "Pending"`: {&balsav1.Volume{Name: "v", PersistentVolumeClaim: &balsav1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}, claimSources("Pending", "n1")},
		`volume "v": persistentvolumeclaim "ns/data" is bound to volume "pv-1", which is not on node n1`:   {&balsav1.Volume{Name: "v", PersistentVolumeClaim: &balsav1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}, claimSources("Bound", "n2")},
	} {
		p := &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: "p", Namespace: "ns", Uid: uid}, Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{{Name: "c", Image: "i"}}, Volumes: []*balsav1.Volume{tt.v}}}
		object.Default(p)
		plan := Step(View{Now: time.Unix(1000, 0), UID: uid, Pod: p, Sources: tt.sources, Node: Node{Name: "n1"}})
		w := plan.Status.GetContainerStatuses()[0].GetState().GetWaiting()
		told := slices.ContainsFunc(plan.Events, func(e Event) bool { return e.Reason == "FailedMount" && e.Message == want && e.Warning })
		reason := "CreateContainerConfigError"
		if tt.sources.Claims["data"].GetStatus().GetPhase() == "Pending" { // it will be bound: no error
			reason, told = "ContainerCreating", len(plan.Events) == 0
		}
		if len(plan.Actions) != 0 || w.GetReason() != reason || w.GetMessage() != want || !told {
			t.Errorf("want %q; it waits for %v, does %v and tells %v", want, w, plan.Actions, plan.Events)
		}
	}
}

func TestMounts(t *testing.T) {
	yes := proto.Bool(true)
	c := &balsav1.Container{Name: "c", Env: []*balsav1.EnvVar{{Name: "N", Value: "7"}}, TerminationMessagePath: "/tmp/msg", VolumeMounts: []*balsav1.VolumeMount{
		{Name: "data", MountPath: "/a/b/c", SubPathExpr: "x/$(N)"}, {Name: "data", MountPath: "/a", ReadOnly: yes, SubPath: "y"},
		{Name: "cfg", MountPath: "/cfg"}, {Name: "host", MountPath: "/host", MountPropagation: "HostToContainer"}, {Name: "claim", MountPath: "/claim"},
	}}
	p := &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: "p", Namespace: "ns", Uid: uid}, Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{c}, Volumes: []*balsav1.Volume{
		{Name: "data", EmptyDir: &balsav1.EmptyDirVolumeSource{}}, {Name: "cfg", ConfigMap: &balsav1.ConfigMapVolumeSource{Name: "m"}},
		{Name: "host", HostPath: &balsav1.HostPathVolumeSource{Path: "/h"}}, {Name: "claim", PersistentVolumeClaim: &balsav1.PersistentVolumeClaimVolumeSource{ClaimName: "data", ReadOnly: yes}}}}}
	s := stepOf(p, func(v *View) {
		v.HostsPath, v.MessagePath = "/run/hosts", func(k AttemptKey) string { return fmt.Sprintf("/run/msg/%s-%d", k.Container, k.Attempt) }
		v.VolumePaths = map[string]string{"data": "/v/data", "cfg": "/v/cfg", "host": "/h", "claim": "/v/pv-1"}
	})
	s.mem.Users = &runtime.IDMapping{HostID: 65536, Size: 65536}
	config, _, err := s.config(s.apps[0], runtime.Image{})
	if err != nil {
		t.Fatal(err)
	}
	want := []runtime.Mount{
		{HostPath: "/v/data", ContainerPath: "/a", ReadOnly: true, SubPath: "y"}, {HostPath: "/v/cfg", ContainerPath: "/cfg", ReadOnly: true},
		{HostPath: "/h", ContainerPath: "/host", Propagation: runtime.PropagationHostToContainer, Mapped: true},
		{HostPath: "/v/pv-1", ContainerPath: "/claim", ReadOnly: true, Mapped: true},
		{HostPath: "/run/hosts", ContainerPath: "/etc/hosts"}, {HostPath: "/run/msg/c-0", ContainerPath: "/tmp/msg"},
		{HostPath: "/v/data", ContainerPath: "/a/b/c", SubPath: "x/7"},
	}
	if diff := cmp.Diff(want, config.Mounts); diff != "" {
		t.Error(diff)
	}
	for expr, text := range map[string]string{"$(NOPE)": "no variable NOPE", "../$(N)": "leaves the volume"} {
		c.VolumeMounts[0].SubPathExpr = expr
		if _, _, err := s.config(s.apps[0], runtime.Image{}); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("subPathExpr %q gives %v", expr, err)
		}
	}
}

func TestStandardStreams(t *testing.T) {
	yes := proto.Bool(true)
	p := &balsav1.Pod{Spec: &balsav1.PodSpec{Containers: []*balsav1.Container{{Name: "c", Stdin: yes, StdinOnce: yes, Tty: yes}}}}
	s := stepOf(p, nil)
	config, _, err := s.config(s.apps[0], runtime.Image{})
	if err != nil || !config.Stdin || !config.StdinOnce || !config.TTY {
		t.Errorf("config %+v %v", config, err)
	}
}

func TestProbesOfAllKinds(t *testing.T) {
	ip := netip.MustParseAddr("10.0.0.9")
	c := &balsav1.Container{Name: "c", Ports: []*balsav1.ContainerPort{{Name: "http", ContainerPort: 8080}},
		LivenessProbe: &balsav1.Probe{Exec: &balsav1.ExecAction{Command: []string{"true"}}, PeriodSeconds: proto.Int32(7), FailureThreshold: proto.Int32(2)},
		StartupProbe:  &balsav1.Probe{TcpSocket: &balsav1.TCPSocketAction{Port: object.StringValue("http")}},
	}
	live, ok := newProbe("u", c, Liveness, runtime.ContainerState{}, ip)
	if !ok || !slices.Equal(live.Exec, []string{"true"}) || live.Period != 7*time.Second {
		t.Errorf("exec probe %+v", live)
	}
	if p, ok := newProbe("u", c, Startup, runtime.ContainerState{}, ip); !ok || p.TCP != "10.0.0.9:8080" {
		t.Errorf("tcpSocket probe %+v", p)
	}
	c.StartupProbe.TcpSocket.Host = "example.com"
	if p, _ := newProbe("u", c, Startup, runtime.ContainerState{}, ip); p.TCP != "example.com:8080" {
		t.Errorf("tcpSocket probe with a host %+v", p)
	}
	c.StartupProbe = &balsav1.Probe{Grpc: &balsav1.GRPCAction{Port: 9000, Service: "svc"}}
	if p, ok := newProbe("u", c, Startup, runtime.ContainerState{}, ip); !ok || p.GRPC != "10.0.0.9:9000" || p.Service != "svc" {
		t.Errorf("grpc probe %+v", p)
	}
	c.StartupProbe = &balsav1.Probe{HttpGet: &balsav1.HTTPGetAction{Port: object.IntValue(443), Scheme: "HTTPS", Host: "example.com", Path: "x"}}
	if p, ok := newProbe("u", c, Startup, runtime.ContainerState{}, ip); !ok || p.URL != "https://example.com:443/x" {
		t.Errorf("https probe %+v", p)
	}
	state := live.Start()
	for i, err := range []error{fmt.Errorf("a"), nil, fmt.Errorf("a"), fmt.Errorf("a")} {
		var events []Event
		state, events = live.Observe(state, err)
		if failed := i == 3; state.Failed != failed || live.Over(state) != failed || failed && (len(events) != 1 || events[0].Message != "Liveness probe failed: a") {
			t.Errorf("result %d: %+v %v", i, state, events)
		}
	}
	if got := live.Next(ProbeState{Failures: 1}, time.Unix(0, 0)).Sub(time.Unix(0, 0)); got != 7*time.Second {
		t.Errorf("a liveness probe is asked again after %s", got)
	}
}

func TestDeadlineIsKept(t *testing.T) {
	start := time.Unix(1000, 0)
	p := &balsav1.Pod{Metadata: &balsav1.ObjectMeta{Name: "p", Namespace: "ns", Uid: uid}, Spec: &balsav1.PodSpec{ActiveDeadlineSeconds: proto.Int64(60), Containers: []*balsav1.Container{{Name: "c", Image: "i"}}},
		Status: &balsav1.PodStatus{Phase: "Running", StartTime: timestamppb.New(start)}}
	object.Default(p)
	v := View{Now: start.Add(59 * time.Second), UID: uid, Pod: p, IP: netip.MustParseAddr("10.0.0.9"), Runtime: &runtime.PodState{UID: uid, Sandbox: runtime.SandboxReady,
		Containers: []runtime.ContainerState{{Name: "c", Status: runtime.ContainerRunning}}}}
	plan := Step(v)
	if len(plan.Actions) != 0 || !plan.Wake.Equal(start.Add(time.Minute)) {
		t.Fatalf("before the deadline: %v, wakes at %s", plan.Actions, plan.Wake)
	}
	v.Now = start.Add(time.Minute)
	if plan = Step(v); len(plan.Actions) != 0 || object.PodReady(&balsav1.Pod{Status: plan.Status}) {
		t.Fatalf("at the deadline, before it is out of service: %v, status %v", plan.Actions, plan.Status)
	}
	v.Now, v.Memory, v.Connections = v.Now.Add(drainWait), plan.Memory, new(int)
	plan = Step(v)
	if len(plan.Actions) != 1 || plan.Status.GetPhase() != "Running" || plan.Status.GetReason() != "DeadlineExceeded" {
		t.Fatalf("at the deadline: %v, status %v", plan.Actions, plan.Status)
	}
	v.Memory = plan.Memory
	v.Runtime.Containers[0].Status = runtime.ContainerExited
	if plan = Step(v); plan.Status.GetPhase() != "Failed" || plan.Status.GetReason() != "DeadlineExceeded" {
		t.Errorf("after its end the pod reads %v", plan.Status)
	}
}

func TestMessagesAreBounded(t *testing.T) {
	p := &balsav1.Pod{Spec: &balsav1.PodSpec{RestartPolicy: "Never"}}
	state := &runtime.PodState{Sandbox: runtime.SandboxReady}
	messages := map[AttemptKey]string{}
	for i := range 6 {
		name := fmt.Sprint("c", i)
		p.Spec.Containers = append(p.Spec.Containers, &balsav1.Container{Name: name, Image: "i"})
		state.Containers = append(state.Containers, runtime.ContainerState{Name: name, Status: runtime.ContainerExited})
		messages[AttemptKey{name, 0}] = strings.Repeat("x", 4096)
	}
	s := stepOf(p, func(v *View) { v.Runtime, v.Messages = state, messages })
	s.status()
	for _, c := range s.plan.Status.GetContainerStatuses() {
		if n := len(c.GetState().GetTerminated().GetMessage()); n != 2048 {
			t.Errorf("container %s has %d bytes to say, want a sixth of 12 KiB", c.GetName(), n)
		}
	}
}
