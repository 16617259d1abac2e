package faults

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	smallDisk = 448 << 20
	// bigImage does not fit what is left of the small disk, of which the node keeps
	// 256 MiB for others than images.
	bigImage     = 24 << 20
	roomForAHalf = 256<<20 + bigImage/2
)

const bigPod = `apiVersion: v1
kind: Pod
metadata: {name: big}
spec:
  terminationGracePeriodSeconds: 1
  tolerations: [{operator: Exists}]
  containers:
  - {name: main, image: "balsa/big:1", command: [/busybox, sleep, "7301"]}
`

// onExt4 gives the agent's data and what it keeps while it runs a small ext4 of
// their own, and returns its mount point.
func (n *crashNode) onExt4() (disk string) {
	n.Helper()
	h := n.agent.Host
	must(n.T, n.agent.Process.Stop(patience))
	image, disk := filepath.Join(h.Dir, "disk.img"), filepath.Join(h.Dir, "disk")
	must(n.T, os.WriteFile(image, nil, 0o600))
	must(n.T, os.Truncate(image, smallDisk))
	must(n.T, os.Mkdir(disk, 0o755))
	for _, command := range [][]string{
		{"mkfs.ext4", "-q", "-m", "0", image},
		{"mount", "-o", "loop", image, disk},
		{"cp", "-a", filepath.Join(h.Dir, "data"), disk},
		{"mkdir", filepath.Join(disk, "run")},
	} {
		if out, err := exec.CommandContext(n.Context(), command[0], command[1:]...).CombinedOutput(); err != nil {
			n.Fatalf("%v: %v: %s", command, err, out)
		}
	}
	return disk
}

// fill takes a disk to the last byte, but for what shall be left.
func fill(t *testing.T, disk string, leave int64) {
	t.Helper()
	file, err := os.OpenFile(filepath.Join(disk, "junk"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	must(t, err)
	var stat syscall.Statfs_t
	must(t, syscall.Fstatfs(int(file.Fd()), &stat))
	if room := int64(stat.Bavail) * stat.Bsize; room > leave+1<<20 {
		must(t, syscall.Fallocate(int(file.Fd()), 0, 0, room-leave-1<<20))
	}
	if _, err = file.Seek(0, io.SeekEnd); leave > 0 {
		must(t, errors.Join(err, file.Close()))
		return
	}
	for _, size := range []int{64 << 10, 4 << 10, 1} {
		block := make([]byte, size)
		for err = nil; err == nil; {
			_, err = file.Write(block)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	_ = file.Close() // the disk is full, which it may tell once more
}

// pressure waits until the node tells whether its disk is full.
func (n *crashNode) pressure(want string) {
	n.Helper()
	n.until("DiskPressure to be "+want, func(ctx context.Context) error {
		var node struct {
			Status struct {
				Conditions []struct{ Type, Status, Message string } `json:"conditions"`
			} `json:"status"`
		}
		if err := n.s.Decode(ctx, &node, "get", "node", n.agent.Host.Name); err != nil {
			return err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == "DiskPressure" && c.Status == want {
				return nil
			}
		}
		return fmt.Errorf("the conditions are %v", node.Status.Conditions)
	})
}

// TestNodeServesOnAFullDisk fills the disk of a node, where its pods, images and
// state are. An image that does not fit is refused and nothing of it stays. With no
// byte left pods serve on, through two agents more. A container that ends meanwhile
// runs again when there is room.
func TestNodeServesOnAFullDisk(t *testing.T) {
	n := withNode(t, "gd")
	disk := n.onExt4()
	restart := func(end func() error, args ...string) {
		t.Helper()
		must(t, end())
		log := logEnd(t, n.agent.Process.LogPath)
		n.startOn(n.programs.Balsa, filepath.Join(disk, "data"), filepath.Join(disk, "run"), args...)
		n.says(log, "agent runs", "registered")
	}
	stopped := func() error { return n.agent.Process.Stop(patience) }
	// At first it minds no pressure, so that it fetches images onto a disk that is
	// nearly full.
	restart(stopped, "--eviction-hard", "nodefs.available=0%,nodefs.inodesFree=0%", "--image-gc-high-threshold", "100")
	n.balsa("image", "import", n.programs.Echo)
	n.balsa("apply", "-f", "../../examples/hello.yaml")
	n.ready(namespace, 3)
	before, processes := n.livesIn(namespace), identities(processesIn(n.agent.Host))
	stop := startRequests(t, n.s, n.agent.Host, n.programs, "full")
	n.imageDoesNotFit(disk)
	restart(stopped)
	fill(t, disk, 0)
	n.pressure("True")
	restart(n.agent.Process.Kill)
	restart(stopped)
	pause(t, settle)
	stop()
	n.unchanged(before, processes)
	n.crashesOnAFullDisk(disk)
	n.balsa("delete", "-f", "../../examples/hello.yaml")
	if left := processesIn(n.agent.Host); len(left) > 0 {
		t.Errorf("there is left %v", names(left))
	}
	must(t, stopped())
}

// crashesOnAFullDisk ends a container. How it ended is known, for the space was set
// aside, and it runs again when there is room.
func (n *crashNode) crashesOnAFullDisk(disk string) {
	n.Helper()
	var victim process
	for _, p := range processesIn(n.agent.Host) {
		if strings.HasSuffix(p.group, "/echo-0") {
			victim = p
		}
	}
	uid, _, _ := strings.Cut(victim.group, "/")
	// A watch sees each status that is written, however often the node has found
	// room and started the container again before somebody looks.
	watch, err := n.s.Operator.Start("full-disk-watch", n.programs.Balsa, "--config", n.s.Admin(), "get", "pods", "-n", namespace, "-w", "-o", "json")
	must(n.T, err)
	n.Cleanup(func() { must(n.T, watch.Stop(patience)) })
	n.until("the watch to show the container", func(context.Context) error {
		return n.watched(watch.LogPath, uid, func(c containerStatus) bool { return c.State.Running != nil })
	})
	must(n.T, syscall.Kill(victim.pid, syscall.SIGKILL))
	n.until("the pod to say how its container has ended", func(context.Context) error {
		return n.watched(watch.LogPath, uid, func(c containerStatus) bool {
			return slices.ContainsFunc([]containerState{c.State, c.LastState}, func(s containerState) bool {
				return s.Terminated != nil && s.Terminated.ExitCode == 137
			})
		})
	})
	status := func(ctx context.Context) (containerStatus, error) {
		pods, err := n.pods(ctx, namespace)
		for _, p := range pods {
			if p.Metadata.UID == uid && len(p.Status.Main) == 1 {
				return p.Status.Main[0], err
			}
		}
		return containerStatus{}, errors.Join(err, fmt.Errorf("pod %s is not there: %v", uid, pods))
	}
	must(n.T, os.Remove(filepath.Join(disk, "junk")))
	n.ready(namespace, 3)
	c, err := status(n.Context())
	must(n.T, err)
	n.Logf("with room again the container has %d restarts and before: %v", c.RestartCount, c.LastState)
}

// watched looks in what a watch has printed so far for a status of a pod's only
// container. The error has the last of them.
func (n *crashNode) watched(log, uid string, holds func(containerStatus) bool) error {
	printed, err := os.Open(log)
	if err != nil {
		return err
	}
	defer printed.Close()
	last := "nothing"
	for decoder := json.NewDecoder(printed); ; {
		var shown struct {
			podStatus
			Items []podStatus `json:"items"`
		}
		if err := decoder.Decode(&shown); err != nil {
			return fmt.Errorf("the watch has shown %s, then %w", last, err)
		}
		for _, p := range append(shown.Items, shown.podStatus) {
			if p.Metadata.UID != uid || len(p.Status.Main) != 1 {
				continue
			}
			if last = fmt.Sprint(p.Status.Main[0]); holds(p.Status.Main[0]) {
				return nil
			}
		}
	}
}

// imageDoesNotFit has a pod whose image is larger than what is left of the disk.
func (n *crashNode) imageDoesNotFit(disk string) {
	n.Helper()
	program, err := os.ReadFile(busybox)
	must(n.T, err)
	noise := make([]byte, bigImage)
	_, _ = rand.Read(noise) // it never fails
	big := filepath.Join(n.TempDir(), filepath.Base(busybox))
	must(n.T, os.WriteFile(big, append(program, noise...), 0o755))
	n.balsa("image", "import", n.box("balsa/big:1", big))
	images := filepath.Join(disk, "data", "agent", "images")
	stored := layersIn(images)
	fill(n.T, disk, roomForAHalf)
	n.apply(bigPod)
	n.until("the pod to say that its image does not fit", func(ctx context.Context) error {
		said, err := n.s.Balsa(ctx, "describe", "pod", "big")
		if err != nil || !strings.Contains(said, "not enough disk space") {
			return fmt.Errorf("%w; it says %s", err, said)
		}
		return nil
	})
	n.until("nothing of the image to be left", func(context.Context) error {
		if diff := cmp.Diff(stored, layersIn(images)); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
	must(n.T, os.Remove(filepath.Join(disk, "junk")))
	n.ready("default", 1)
	n.balsa("delete", "pod", "big")
}

// unchanged checks that the pods of the app are those of before.
func (n *crashNode) unchanged(lives, processes string) {
	n.Helper()
	if after := n.livesIn(namespace); after != lives {
		n.Errorf("containers changed (-before +after):\n%s", cmp.Diff(lives, after))
	}
	if now := identities(processesIn(n.agent.Host)); !containsLines(now, processes) {
		n.Errorf("the processes were\n%s\nand are\n%s", processes, now)
	}
}

// layersIn are the files of an image store that belong to layers, whole ones or
// not. Descriptions of an image, a few hundred bytes, may stay for the next try.
func layersIn(images string) []string {
	var found []string
	for _, dir := range []string{"layers", "partial", "tmp", "names", "images"} {
		found = append(found, filesBelow("", filepath.Join(images, dir))...)
	}
	slices.Sort(found)
	return found
}
