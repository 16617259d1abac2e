package runtimetest

import (
	"strings"

	"github.com/balsa-run/balsa/node/runtime"
)

func testOOMOfChild(h *harness) {
	h.runPod("a")
	for name, c := range map[string]struct {
		steps []string
		want  runtime.Reason
	}{
		"fails": {[]string{"oom-child", "exit=3"}, runtime.ReasonOOMKilled},
		"other": {[]string{"exit=3"}, runtime.ReasonError},
	} {
		config := h.container(name, 0, c.steps...)
		config.Resources.MemoryLimitBytes = 48 << 20
		h.run(config)
		if state := h.exited("a", name, 0); state.Reason != c.want || state.Exit.Code == 0 {
			h.Errorf("%s: %+v, want reason %s", name, state, c.want)
		}
	}
}

// users is a mapping that every machine has room for.
func users() *runtime.IDMapping { return &runtime.IDMapping{HostID: 1 << 21, Size: runtime.MinUserIDs} }

func testUnsafePod(h *harness) {
	for want, change := range map[string]func(*runtime.PodConfig){
		"hostNetwork":           func(p *runtime.PodConfig) { p.Users, p.HostNetwork = users(), true },
		"hostPID":               func(p *runtime.PodConfig) { p.Users, p.HostPID = users(), true },
		"hostIPC":               func(p *runtime.PodConfig) { p.Users, p.HostIPC = users(), true },
		"users":                 func(p *runtime.PodConfig) { p.Users = &runtime.IDMapping{HostID: 0, Size: 1 << 16} },
		"below":                 func(p *runtime.PodConfig) { p.Users = &runtime.IDMapping{HostID: 1<<32 - 9, Size: 1 << 16} },
		"shareProcessNamespace": func(p *runtime.PodConfig) { p.HostPID, p.ShareProcessNamespace = true, true },
		"vm.swappiness":         func(p *runtime.PodConfig) { p.Sysctls = map[string]string{"vm.swappiness": "1"} },
		"net/../kernel/panic":   func(p *runtime.PodConfig) { p.Sysctls = map[string]string{"net/../kernel/panic": "1"} },
		"kernel/shm/../x":       func(p *runtime.PodConfig) { p.Sysctls = map[string]string{"kernel/shm/../x": "1"} },
		"net.core.somaxconn": func(p *runtime.PodConfig) {
			p.HostNetwork, p.Sysctls = true, map[string]string{"net.core.somaxconn": "1"}
		},
		"kernel.shmmax":           func(p *runtime.PodConfig) { p.HostIPC, p.Sysctls = true, map[string]string{"kernel.shmmax": "1"} },
		"resources: cpu quota":    func(p *runtime.PodConfig) { p.Resources.CPUQuotaMicros = 1 },
		"resources: memory":       func(p *runtime.PodConfig) { p.Resources.MemoryLimitBytes = 1 },
		"resources: cpu period":   func(p *runtime.PodConfig) { p.Resources.CPUPeriodMicros = 1 },
		"resources: pids limit -": func(p *runtime.PodConfig) { p.Resources.PidsLimit = -1 },
	} {
		cfg := podConfig("a")
		change(&cfg)
		_, err := h.Runtime.RunPod(h.ctx, cfg)
		h.wantError(err, runtime.ErrInvalid, want)
		if err != nil && !strings.Contains(err.Error(), want) {
			h.Errorf("the refusal %q does not say %q", err, want)
		}
	}
	h.wantPods()
}

func testUnsafeContainer(h *harness) {
	h.runPod("a")
	negative, huge := int64(-1), int64(1)<<32
	filter := func(json string) func(*runtime.ContainerConfig) {
		return func(c *runtime.ContainerConfig) { c.Security.SeccompProfile = []byte(json) }
	}
	mount := func(m runtime.Mount) func(*runtime.ContainerConfig) {
		m.HostPath, m.ContainerPath = "/", "/v"
		return func(c *runtime.ContainerConfig) { c.Mounts = []runtime.Mount{m} }
	}
	for want, change := range map[string]func(*runtime.ContainerConfig){
		"runAsUser":          func(c *runtime.ContainerConfig) { c.Security.RunAsUser = &negative },
		"runAsGroup":         func(c *runtime.ContainerConfig) { c.Security.RunAsGroup = &huge },
		"supplementalGroups": func(c *runtime.ContainerConfig) { c.Security.SupplementalGroups = []int64{-5} },
		"runAsNonRoot":       func(c *runtime.ContainerConfig) { c.Security.RunAsNonRoot, c.Image.User = true, "0:5" },
		"procMount":          func(c *runtime.ContainerConfig) { c.Security.UnmaskedProc = true },
		"hostUsers":          mount(runtime.Mount{Mapped: true}),
		"subPath":            mount(runtime.Mount{SubPath: "a/../../b"}),
		"relative path":      mount(runtime.Mount{SubPath: "/a"}),
		"mountPropagation":   mount(runtime.Mount{Propagation: "Sideways"}),
		"seccompProfile: un": filter(`{`),
		"unknown field":      filter(`{"defaultAction":"SCMP_ACT_ALLOW","archMap":[]}`),
		"defaultAction":      filter(`{}`),
		"syscalls[0]: names": filter(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_ERRNO"}]}`),
		"action: found":      filter(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["x"],"action":"NO"}]}`),
		"args[0]":            filter(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["x"],"action":"SCMP_ACT_LOG","args":[{"index":7,"op":"SCMP_CMP_EQ"}]}]}`),
		"architectures[0]":   filter(`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["VAX"]}`),
		"listener":           filter(`{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}`),
		"choose one": func(c *runtime.ContainerConfig) {
			c.Security.SeccompProfile, c.Security.SeccompUnconfined = []byte(`{"defaultAction":"SCMP_ACT_ALLOW"}`), true
		},
	} {
		c := h.container("c", 0, "exit=0")
		change(&c)
		err := h.Runtime.RunContainer(h.ctx, "a", c)
		h.wantError(err, runtime.ErrInvalid, want)
		if err != nil && !strings.Contains(err.Error(), want) {
			h.Errorf("the refusal %q does not say %q", err, want)
		}
	}
	if pod := h.pod("a"); len(pod.Containers) != 0 {
		h.Errorf("refused containers are listed: %+v", pod.Containers)
	}
}

func testTarget(h *harness) {
	h.runPod("a")
	c := h.container("debug", 0, "exit=4")
	c.TargetContainer = "app"
	h.wantError(h.Runtime.RunContainer(h.ctx, "a", c), runtime.ErrContainerNotFound, "a target that does not exist")
	h.run(h.container("app", 0, "exit=0"))
	h.exited("a", "app", 0)
	h.wantError(h.Runtime.RunContainer(h.ctx, "a", c), runtime.ErrNotRunning, "a target that has ended")
	h.run(h.container("app", 1, "forever"))
	h.run(c)
	if state := h.exited("a", "debug", 0); state.Exit.Code != 4 {
		h.Errorf("the container that joined reads %+v", state)
	}
	if state := h.attempt("a", "app", 1); state.Status != runtime.ContainerRunning {
		h.Errorf("the target reads %+v", state)
	}
}

func testSharedProcesses(h *harness) {
	cfg := podConfig("a")
	cfg.ShareProcessNamespace = true
	before, err := h.Runtime.RunPod(h.ctx, cfg)
	if err != nil {
		h.Fatal(err)
	}
	h.run(h.container("c", 0, "forever"))
	h.restart()
	h.run(h.container("d", 0, "exit=3"))
	if state := h.exited("a", "d", 0); state.Exit.Code != 3 {
		h.Errorf("d reads %+v", state)
	}
	if state := h.attempt("a", "c", 0); state.Status != runtime.ContainerRunning {
		h.Errorf("c reads %+v after another container of the same processes has ended", state)
	}
	h.KillShim("a")
	h.eventually("the pod to read lost", func() bool { return h.pod("a").Sandbox == runtime.SandboxLost })
	h.exited("a", "c", 0)
	if after, err := h.Runtime.RunPod(h.ctx, cfg); err != nil || after.NetNS != before.NetNS {
		h.Fatalf("revived pod %+v, %v, before it was %+v", after, err, before)
	}
	h.run(h.container("c", 1, "exit=6"))
	if state := h.exited("a", "c", 1); state.Exit.Code != 6 {
		h.Errorf("c reads %+v", state)
	}
}

func testUsers(h *harness) {
	cfg := podConfig("a")
	cfg.Users = users()
	if _, err := h.Runtime.RunPod(h.ctx, cfg); err != nil {
		h.Fatal(err)
	}
	c := h.container("c", 0, "env=HOSTNAME", "exit=5")
	c.Security.UnmaskedProc = true
	h.run(c)
	if state := h.exited("a", "c", 0); state.Exit.Code != 5 {
		h.Errorf("a container with users of its own reads %+v", state)
	}
}
