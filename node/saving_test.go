package node_test

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/balsa-run/balsa/node"
	"github.com/balsa-run/balsa/node/runtime"
)

// slowDisk does not get done with a set of pods while it is held.
type slowDisk struct {
	node.Disk
	mu   sync.Mutex
	held chan struct{} // guarded by mu; nil: it is quick
}

func (d *slowDisk) Write(name string, data []byte) error {
	d.mu.Lock()
	held := d.held
	d.mu.Unlock()
	if held != nil && name == "pods.pb" {
		<-held
	}
	return d.Disk.Write(name, data)
}

func (d *slowDisk) hold() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = make(chan struct{})
}

func (d *slowDisk) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held != nil {
		close(d.held)
		d.held = nil
	}
}

func onSlowDisk(t *testing.T, play func(l *lab, disk *slowDisk)) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		disk := &slowDisk{Disk: l.disk}
		l.tweak = func(c *node.Config) { c.Disk = disk }
		l.start()
		defer l.end()
		defer disk.release() // also when the play has failed: the agent waits for it
		play(l, disk)
	})
}

func (l *lab) onDisk(uid string) bool {
	data, err := l.disk.Read("pods.pb")
	return err == nil && strings.Contains(string(data), uid)
}

// A pod's sandbox is made while the disk is at work, a container only when it is
// done.
func TestNoContainerStartsBeforeItsPodIsOnDisk(t *testing.T) {
	onSlowDisk(t, func(l *lab, disk *slowDisk) {
		l.server.put(newPod("old", "forever"))
		l.within(2*time.Second, "it runs", l.ready("old"))
		disk.hold()
		l.server.put(newPod("new", "forever"))
		l.within(time.Second, "the sandbox is there", func() bool { return l.exists("uid-new") })
		l.always(time.Minute, "no container is", func() bool {
			state, _ := l.state("uid-new")
			return l.exists("uid-new") && len(state.Containers) == 0 && !l.onDisk("uid-new")
		})
		disk.release()
		l.within(time.Second, "it runs when it is on disk", func() bool { return l.onDisk("uid-new") && l.isRunning("uid-new", "c") })
	})
}

// The agent dies with a sandbox that the set on its disk does not know, and no
// server can be reached: the sandbox proves nothing and stays.
func TestASandboxThatIsNotOnDiskStays(t *testing.T) {
	onSlowDisk(t, func(l *lab, disk *slowDisk) {
		l.server.put(newPod("old", "forever"))
		l.within(2*time.Second, "it runs", l.ready("old"))
		disk.hold()
		l.server.put(newPod("new", "forever"))
		l.within(time.Second, "the sandbox is there", func() bool { return l.exists("uid-new") })
		before, err := l.disk.Read("pods.pb")
		if err != nil {
			l.Fatal(err)
		}
		disk.release()
		l.stop()
		if err := l.disk.Write("pods.pb", before); err != nil {
			l.Fatal(err)
		}
		l.server.setDown(true)
		l.start()
		old := l.running("uid-old")
		l.always(3*time.Minute, "nothing is removed", func() bool { return l.running("uid-old") == old && l.exists("uid-new") })
		l.server.setDown(false)
		l.within(time.Minute, "the servers' word is enough", l.ready("new"))
	})
}

// What ends a pod is on disk first: else an agent that is killed would start it
// again.
func TestNothingEndsBeforeItIsOnDisk(t *testing.T) {
	onSlowDisk(t, func(l *lab, disk *slowDisk) {
		l.server.put(newPod("a", "forever"))
		l.within(2*time.Second, "it runs", l.ready("a"))
		disk.hold()
		l.server.deletePod("a", 1)
		l.always(time.Minute, "it goes on", func() bool {
			state, _ := l.state("uid-a")
			return len(state.Containers) == 1 && state.Containers[0].Status == runtime.ContainerRunning
		})
		disk.release()
		l.within(10*time.Second, "it ends", func() bool { return l.server.pod("a") == nil && !l.exists("uid-a") })
	})
}
