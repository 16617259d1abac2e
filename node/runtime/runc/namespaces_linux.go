package runc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/hostmount"
	"github.com/balsa-run/balsa/internal/runcwire"
	"github.com/balsa-run/balsa/node/runtime"
)

// makeMounts pins what is not pinned: after a reboot nothing is, after the
// loss of a shim everything still is. In a fresh directory nothing can be; the
// list of all mounts gets long on a node with many pods.
func (p *pod) makeMounts(ctx context.Context, cfg runtime.PodConfig, fresh bool) error {
	var mounts []string
	if !fresh {
		var err error
		if mounts, err = hostmount.Under(p.dir); err != nil {
			return err
		}
	}
	mounted := make(map[string]bool, len(mounts))
	for _, m := range mounts {
		mounted[m] = true
	}
	if err := p.makeNamespaces(ctx, cfg, mounted); err != nil {
		return err
	}
	if shm := filepath.Join(p.dir, shmDir); !mounted[shm] && !cfg.HostIPC {
		return hostmount.Tmpfs(shm, shmBytes, rootID(cfg))
	}
	return nil
}

// rootID is the node's id of the pod's root.
func rootID(cfg runtime.PodConfig) uint32 {
	if cfg.Users == nil {
		return 0
	}
	return cfg.Users.HostID
}

func (p *pod) nsFile(name string) string { return filepath.Join(p.dir, nsDir, name) }

func (p *pod) makeNamespaces(ctx context.Context, cfg runtime.PodConfig, mounted map[string]bool) error {
	needPause := cfg.ShareProcessNamespace && !p.pauseLives()
	if cfg.Users != nil {
		return p.makeUserNamespaces(ctx, cfg, mounted, needPause)
	}
	if err := p.pinMissing(cfg, mounted); err != nil {
		return err
	}
	if !needPause {
		return nil
	}
	return p.hold(ctx, holder{pins: []string{"pid"}, flags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, args: []string{"root=1"}, stays: true})
}

// pinMissing makes namespaces that need no process.
func (p *pod) pinMissing(cfg runtime.PodConfig, mounted map[string]bool) error {
	ns := hostmount.Namespaces{Hostname: cfg.Hostname, Sysctls: map[string]string{}}
	targets := map[string]*string{"net": &ns.Net, "uts": &ns.UTS, "ipc": &ns.IPC}
	if cfg.HostNetwork {
		delete(targets, "net")
	}
	if cfg.HostIPC {
		delete(targets, "ipc")
	}
	made := map[string]bool{}
	for name, target := range targets {
		if mounted[p.nsFile(name)] {
			continue
		}
		if err := touch(p.nsFile(name)); err != nil {
			return err
		}
		*target, made[name] = p.nsFile(name), true
	}
	if len(made) == 0 {
		return nil
	}
	// Only of namespaces that are made here: the thread is in the node's others.
	for file, value := range sysctlFiles(cfg) {
		if made[runtime.SysctlNamespace(file)] {
			ns.Sysctls[file] = value
		}
	}
	err := ns.Pin()
	if errors.Is(err, hostmount.ErrSysctl) {
		return fmt.Errorf("%w: %w", err, runtime.ErrInvalid)
	}
	return err
}

// sysctlFiles are a pod's sysctls by their files; Validate has seen them.
func sysctlFiles(cfg runtime.PodConfig) map[string]string {
	files := make(map[string]string, len(cfg.Sysctls))
	for name, value := range cfg.Sysctls {
		if file, err := runtime.SysctlFile(name); err == nil {
			files[file] = value
		}
	}
	return files
}

// makeUserNamespaces: the user namespace comes first and owns the others,
// else its root could mount neither sysfs nor proc. No process can be put into
// it later (setns(2): not with threads), so the loss of one is that of all.
func (p *pod) makeUserNamespaces(ctx context.Context, cfg runtime.PodConfig, mounted map[string]bool, needPause bool) error {
	h := holder{pins: []string{"user", "net", "uts", "ipc"}, flags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC, users: cfg.Users}
	complete := !needPause
	for _, name := range h.pins {
		complete = complete && mounted[p.nsFile(name)]
	}
	if complete {
		return nil
	}
	h.args = []string{"hostname=" + runcwire.Escape(cfg.Hostname), "loopback=1"}
	files := sysctlFiles(cfg)
	for _, file := range slices.Sorted(maps.Keys(files)) {
		h.args = append(h.args, "sysctl="+runcwire.Escape(file+"="+files[file]))
	}
	if cfg.ShareProcessNamespace {
		h.stays, h.pins, h.flags = true, append(h.pins, "pid"), h.flags|unix.CLONE_NEWPID|unix.CLONE_NEWNS
		h.args = append(h.args, "root=1")
	}
	return p.hold(ctx, h)
}

// holder is a process that is born in new namespaces: "balsa-shim pause". It
// lives until they are pinned or, as the first process of a process namespace
// and its reaper, as long as the pod.
type holder struct {
	pins  []string
	flags uintptr
	users *runtime.IDMapping
	args  []string
	stays bool
}

// pauseLives tells by its lock whether the pod's process namespace lives.
func (p *pod) pauseLives() bool {
	lock, err := lockPath(filepath.Join(p.dir, pauseLockFile))
	if err == nil {
		_ = lock.Close()
	}
	return errors.Is(err, unix.EWOULDBLOCK)
}

func (p *pod) hold(ctx context.Context, h holder) error {
	for _, name := range h.pins {
		if err := hostmount.UnmountUnder(p.nsFile(name)); err != nil {
			return err
		}
		if err := touch(p.nsFile(name)); err != nil {
			return err
		}
	}
	lock, err := lockPath(filepath.Join(p.dir, pauseLockFile))
	if err != nil {
		return fmt.Errorf("pause lock: %w", err)
	}
	defer func() { _ = lock.Close() }()
	shim, err := os.Open(p.rt.opt.Helpers.Shim)
	if err != nil {
		return err
	}
	defer func() { _ = shim.Close() }()
	if err := p.holdWith(ctx, h, lock, shim); err != nil {
		return fmt.Errorf("make the pod's namespaces: %w", err)
	}
	return nil
}

// pauseProgram: the root of a user namespace may not be able to walk to the
// program's path, so it is executed by its descriptor (the fourth ExtraFile).
const pauseProgram = "/proc/self/fd/6"

func (p *pod) holdWith(ctx context.Context, h holder, lock, shim *os.File) error {
	ready, readyChild, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = ready.Close() }()
	waitChild, wait, err := os.Pipe()
	if err != nil {
		return errors.Join(err, readyChild.Close())
	}
	defer func() { _ = wait.Close() }() // ends it, unless it was told to stay
	cmd := &exec.Cmd{
		Path: pauseProgram, Args: append([]string{"balsa-shim", "pause"}, h.args...), Env: shimEnv(),
		ExtraFiles: []*os.File{readyChild, lock, waitChild, shim}, SysProcAttr: h.attributes(),
	}
	start := cmd.Start
	if h.stays {
		cgroup := filepath.Join(p.cgroup, pauseCgroup)
		if err := p.rt.cgroups.Make(cgroup); err != nil {
			return errors.Join(err, readyChild.Close(), waitChild.Close())
		}
		start = func() error { return p.rt.cgroups.Start(cgroup, cmd) }
	}
	if err := errors.Join(start(), readyChild.Close(), waitChild.Close()); err != nil {
		return err
	}
	go reap(cmd) // if it should end before us
	if err := awaitReady(ctx, ready); err != nil {
		if strings.HasPrefix(err.Error(), "sysctl ") {
			return fmt.Errorf("%w: %w", err, runtime.ErrInvalid)
		}
		return err
	}
	for _, name := range h.pins {
		if err := hostmount.Bind(hostmount.ProcNamespace(cmd.Process.Pid, name), p.nsFile(name)); err != nil {
			return err
		}
	}
	if !h.stays {
		return nil
	}
	_, err = wait.WriteString("stay")
	return err
}

func (h holder) attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true, Cloneflags: h.flags}
	if h.users == nil {
		return attr
	}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(h.users.HostID), Size: int(h.users.Size)}}
	attr.UidMappings, attr.GidMappings, attr.GidMappingsEnableSetgroups = ids, ids, true
	attr.Credential = &syscall.Credential{Uid: 0, Gid: 0}
	return attr
}

// checkPause makes a pod lost whose process namespace has died: nothing can be
// started in it any more. RunPod makes another.
func (p *pod) checkPause(cfg runtime.PodConfig) error {
	if !cfg.ShareProcessNamespace || p.pauseLives() {
		return nil
	}
	const message = "the first process of the pod's process namespace was killed, and its containers with it"
	p.disconnect()
	p.setLost(message)
	return fmt.Errorf("%s: %w", message, runtime.ErrPodLost)
}

// pidNamespace is the file of the process namespace that a container joins, or
// "" for one of its own. The one of another container is pinned first, then
// the process is looked at again: its number may have gone to a stranger.
func (p *pod) pidNamespace(id string, cfg runtime.PodConfig, c runtime.ContainerConfig) (string, error) {
	if cfg.ShareProcessNamespace {
		return p.nsFile("pid"), nil
	}
	if c.TargetContainer == "" || cfg.HostPID {
		return "", nil
	}
	state, _ := p.state()
	target, err := c.CheckTarget(state)
	if err != nil {
		return "", err
	}
	pin := filepath.Join(p.dir, containersDir, id, targetFile)
	if err := touch(pin); err != nil {
		return "", err
	}
	if err := hostmount.Bind(hostmount.ProcNamespace(target.PID, "pid"), pin); err != nil {
		return "", fmt.Errorf("container %s: target container %s: %w: %w", c.Name, target.Name, err, runtime.ErrNotRunning)
	}
	cgroup := filepath.Join(p.cgroup, containerID(target.Name, target.Attempt))
	if !p.rt.cgroups.Holds(cgroup, target.PID) {
		return "", fmt.Errorf("container %s: target container %s has ended: %w", c.Name, target.Name, runtime.ErrNotRunning)
	}
	return pin, nil
}
