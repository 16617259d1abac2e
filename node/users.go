package node

import (
	"sync"

	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/node/runtime"
)

// Ranges of user ids for pods with user namespaces: 65,536 each, so that every id
// of 16 bits exists in them, from 65,536 up to where the ids of 32 bits end.
const (
	usersSize  = 1 << 16
	usersFirst = 1
	usersLast  = 1<<15 - 1
)

// userRanges gives every pod a range of its own. What is in use is read from the
// sandboxes and the saved memories when the agent starts.
type userRanges struct {
	mu   sync.Mutex
	used map[uint32]string // guarded by mu; uid by number of the range
}

func newUserRanges() *userRanges { return &userRanges{used: map[uint32]string{}} }

// take notes that a pod has a range.
func (u *userRanges) take(uid string, m runtime.IDMapping) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.used[m.HostID/usersSize] = uid
}

// give returns the pod's range: the one that it has, else the lowest free one.
func (u *userRanges) give(uid string) *runtime.IDMapping {
	u.mu.Lock()
	defer u.mu.Unlock()
	free := uint32(0)
	for n, owner := range u.used {
		if owner == uid {
			return rangeOf(n)
		}
	}
	for n := uint32(usersFirst); n <= usersLast && free == 0; n++ {
		if _, taken := u.used[n]; !taken {
			free = n
		}
	}
	if free == 0 {
		return nil
	}
	u.used[free] = uid
	return rangeOf(free)
}

func rangeOf(n uint32) *runtime.IDMapping {
	return &runtime.IDMapping{HostID: n * usersSize, Size: usersSize}
}

// release frees the range of a pod of which nothing is left.
func (u *userRanges) release(uid string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for n, owner := range u.used {
		if owner == uid {
			delete(u.used, n)
		}
	}
}

// recoverUsers notes the ranges of pods that exist, or that were given one before
// their sandbox was made.
func (a *Agent) recoverUsers(pods []runtime.PodState) {
	names, err := a.cfg.Disk.List(folderPods)
	if err != nil {
		a.log.Warn("the saved memories of pods cannot be listed", "error", err)
	}
	for _, uid := range names {
		if m, err := a.journal.loadMemory(uid); err == nil && m.Users != nil {
			a.users.take(uid, *m.Users)
		}
	}
	for _, p := range pods {
		if m, ok := pod.ParseUsers(p.Annotations[pod.AnnotationUsers]); ok {
			a.users.take(string(p.UID), m)
		}
	}
}
