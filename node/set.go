package node

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// errProtocol: a server sent what this agent cannot follow; it subscribes anew.
var errProtocol = errors.New("assignments make no sense")

// set is what the node was given, at one revision. Objects in it are frozen.
type set struct {
	mu       sync.RWMutex
	objects  map[string]object.Message // guarded by mu; by key
	pods     map[string]*balsav1.Pod   // guarded by mu; by uid
	revision int64                     // guarded by mu
	// synced: the set is whole; fromServer: a server said so, not the disk.
	// Guarded by mu.
	synced     bool
	fromServer bool
	// services counts the changes of what is not about pods (Services and their
	// kin, policies, Nodes), so that proxy and resolver can tell whether they have
	// work; guarded by mu.
	services int64
	// fresh are the keys that have changed since the last takeNews, of the same
	// kinds; true: a server said so, not the disk. Guarded by mu.
	fresh map[string]bool
	// policies are those of NetworkPolicies and of their slices, by key; guarded by mu.
	policies map[string]*balsav1.NetworkPolicySpec
}

func newSet() *set {
	return &set{objects: map[string]object.Message{}, pods: map[string]*balsav1.Pod{}, fresh: map[string]bool{}, policies: map[string]*balsav1.NetworkPolicySpec{}}
}

// step collects messages until they make a consistent state.
type step struct {
	open     bool
	full     bool
	revision int64
	changes  map[string]object.Message // nil: deleted
}

// add takes a message in, and tells whether the step is complete. What this
// agent does not know, a newer server's, is left out and returned.
func (s *step) add(m *balsav1.AssignmentsResponse) (complete bool, unknown []string) {
	if !s.open || m.GetFull() {
		*s = step{open: true, full: m.GetFull(), changes: map[string]object.Message{}}
	}
	for _, o := range m.GetUpserts() {
		message, err := object.Unwrap(o)
		if err != nil {
			unknown = append(unknown, "an object of an unknown kind")
			continue
		}
		s.changes[object.KeyOf(message)] = message
	}
	for _, k := range m.GetDeletes() {
		kind, ok := object.KindByName(k.GetKind())
		if !ok {
			unknown = append(unknown, "the deletion of an unknown kind "+k.GetKind())
			continue
		}
		s.changes[object.Key(kind, k.GetNamespace(), k.GetName())] = nil
	}
	if !m.GetSynced() {
		return false, unknown
	}
	s.open, s.revision = false, m.GetRevision()
	return true, unknown
}

// effect is what a step changed.
type effect struct {
	// uids of pods to look at.
	uids []string
	// pods: the pods or what they use are worth saving at once; services: the
	// rest changed.
	pods     bool
	services bool
	// volumes: persistent ones changed.
	volumes bool
	// more than additions: something that pods may have been acting on is another
	// now, or gone.
	changed bool
	// told by a server.
	told bool
}

// commit makes a complete step the state. A delta before any full set is an
// error, and so is one that goes back in time. When the step changes what pods
// have to do, save gets the new state before anybody else can see it; draft is
// save's until it returns. There is one caller at a time.
func (s *set) commit(next *step, fromServer bool, save func(draft *set, e effect)) (effect, error) {
	synced, confirmed, revision := s.known()
	switch {
	case !next.full && !(synced && confirmed):
		return effect{}, fmt.Errorf("%w: changes came before a full set", errProtocol)
	case !next.full && next.revision < revision:
		return effect{}, fmt.Errorf("%w: changes at revision %d after %d", errProtocol, next.revision, revision)
	}
	if next.full {
		s.addMissing(next.changes)
	}
	if !aboutPods(next.changes) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.applyLocked(next, fromServer), nil
	}
	draft := s.draft()
	e := draft.applyLocked(next, fromServer)
	if e.pods {
		save(draft, e)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects, s.pods, s.revision, s.synced, s.fromServer, s.services, s.policies =
		draft.objects, draft.pods, draft.revision, draft.synced, draft.fromServer, draft.services, draft.policies
	maps.Copy(s.fresh, draft.fresh)
	return e, nil
}

// addMissing deletes what a full set does not have.
func (s *set) addMissing(changes map[string]object.Message) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for key := range s.objects {
		if _, kept := changes[key]; !kept {
			changes[key] = nil
		}
	}
}

func aboutPods(changes map[string]object.Message) bool {
	for key := range changes {
		if plural, _, _ := strings.Cut(key, "/"); partPods(plural) || partSecrets(plural) {
			return true
		}
	}
	return false
}

// draft is a copy that nobody else knows.
func (s *set) draft() *set {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return &set{objects: maps.Clone(s.objects), pods: maps.Clone(s.pods), revision: s.revision, synced: s.synced, fromServer: s.fromServer, services: s.services,
		fresh: map[string]bool{}, policies: maps.Clone(s.policies)}
}

func (s *set) applyLocked(next *step, fromServer bool) effect {
	e := effect{changed: next.full, told: fromServer}
	for key, message := range next.changes {
		if next.full && message != nil && s.objects[key] != nil && proto.Equal(s.objects[key], message) {
			continue // a full set repeats what is known
		}
		s.changeLocked(key, message, &e)
	}
	s.synced, s.fromServer, s.revision = true, s.fromServer || fromServer, next.revision
	if e.services {
		s.services++
	}
	slices.Sort(e.uids)
	e.uids = slices.Compact(e.uids)
	return e
}

func (s *set) changeLocked(key string, next object.Message, e *effect) {
	old := s.objects[key]
	if next == nil {
		delete(s.objects, key)
	} else {
		s.objects[key] = next
	}
	kind, namespace, _, _ := object.ParseKey(key)
	switch kind.Name {
	case "Pod":
		s.podLocked(asPod(old), asPod(next), e)
	case "ConfigMap", "Secret":
		e.pods, e.changed = true, e.changed || old != nil
		e.uids = append(e.uids, s.podsInLocked(namespace)...)
	case "PersistentVolumeClaim", "PersistentVolume":
		e.pods, e.changed, e.volumes = true, true, e.volumes || kind.Name == "PersistentVolume"
		e.uids = append(e.uids, s.podsInLocked(namespace)...)
	case "NetworkPolicy", "NetworkPolicySlice":
		e.services, s.fresh[key] = true, e.told
		s.policyLocked(key, next)
	default:
		e.services, s.fresh[key] = true, e.told
	}
}

// policyLocked keeps what a policy says, and what a slice says of its policy: one of
// them may be of another generation, and either may be what is enforced.
func (s *set) policyLocked(key string, next object.Message) {
	delete(s.policies, key)
	switch m := next.(type) {
	case *balsav1.NetworkPolicy:
		s.policies[key] = m.GetSpec()
	case *balsav1.NetworkPolicySlice:
		if m.GetPolicy() != nil {
			s.policies[key] = m.GetPolicy()
		}
	}
}

func asPod(m object.Message) *balsav1.Pod {
	p, _ := m.(*balsav1.Pod)
	return p
}

func (s *set) podLocked(old, next *balsav1.Pod, e *effect) {
	if uid := old.GetMetadata().GetUid(); old != nil {
		delete(s.pods, uid)
		e.uids = append(e.uids, uid)
	}
	if uid := next.GetMetadata().GetUid(); next != nil {
		s.pods[uid] = next
		e.uids = append(e.uids, uid)
	}
	// Our own status coming back is no reason to wait for the disk.
	same := old != nil && next != nil && old.GetMetadata().GetUid() == next.GetMetadata().GetUid() &&
		object.IsTerminating(old) == object.IsTerminating(next)
	e.pods, e.changed = e.pods || !same, e.changed || !same && old != nil
}

// podsInLocked lists the pods of a namespace, or all of them if it is empty.
func (s *set) podsInLocked(namespace string) []string {
	var uids []string
	for uid, p := range s.pods {
		if namespace == "" || p.GetMetadata().GetNamespace() == namespace {
			uids = append(uids, uid)
		}
	}
	return uids
}

// known tells whether a whole set is there, who said so and at what revision.
func (s *set) known() (synced, fromServer bool, revision int64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.synced, s.fromServer, s.revision
}

func (s *set) pod(uid string) *balsav1.Pod {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.pods[uid]
}

func (s *set) allPods() []*balsav1.Pod {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]*balsav1.Pod, 0, len(s.pods))
	for _, p := range s.pods {
		out = append(out, p)
	}
	return out
}

// news are the changes of what routes, proxy, resolver and announced addresses
// are made from, up to a revision.
type news struct {
	revision   int64
	fromServer bool
	// changed are objects as they are now, by key; nil: deleted.
	changed map[string]object.Message
	// told are the keys of those that a server has told, not the disk.
	told []string
}

// takeNews returns what has changed since it was last called. There is one
// caller, who keeps what it got.
func (s *set) takeNews() news {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := news{revision: s.revision, fromServer: s.fromServer, changed: make(map[string]object.Message, len(s.fresh))}
	for key, told := range s.fresh {
		n.changed[key] = s.objects[key]
		if told {
			n.told = append(n.told, key)
		}
	}
	clear(s.fresh)
	return n
}

// limits tells whether a NetworkPolicy selects the pod, or did when its slice was
// made.
func (s *set) limits(p *balsav1.Pod) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for key, policy := range s.policies {
		if _, namespace, _, _ := object.ParseKey(key); namespace != p.GetMetadata().GetNamespace() {
			continue
		}
		selects := policy.GetPodSelector()
		if selects == nil {
			selects = &balsav1.LabelSelector{} // every pod of the namespace
		}
		selector, err := object.SelectorFrom(selects)
		if err != nil || selector.Matches(p.GetMetadata().GetLabels()) {
			return true // one that cannot be read limits, to be safe
		}
	}
	return false
}

// position is how often services changed, without the lists.
func (s *set) position() (changes int64, synced bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.services, s.synced
}

// part lists objects for the disk: those whose key the filter takes.
func (s *set) part(take func(plural string) bool) (*balsav1.AssignmentsResponse, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := &balsav1.AssignmentsResponse{Full: true, Synced: true, Revision: s.revision}
	for _, key := range sortedKeys(s.objects) {
		if plural, _, _ := strings.Cut(key, "/"); take(plural) {
			out.Upserts = append(out.Upserts, object.Wrap(s.objects[key]))
		}
	}
	return out, s.synced
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
