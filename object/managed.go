package object

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// claim is what decides which paths a manager has after an Apply.
//
// A leaf is the manager's when its manifest mentions it. A message or a list's
// item is the manager's, so that it goes as a whole with what defaults have put
// in it, when the manifest mentions it and one of these holds:
//
//   - it was not there before (live),
//   - it was the manager's already (before),
//   - it holds nothing but what the manifest and its defaults say (alone), as
//     after a Create of the same manifest.
//
// The object's metadata is nobody's. Otherwise somebody else has brought it, and only the leaves are the manager's.
type claim struct {
	merged, applied, alone, live Message
	before                       pathSet
}

// owned lists a manager's paths, sorted.
func owned(c claim) []string {
	var live protoreflect.Message
	if c.live != nil {
		live = c.live.ProtoReflect()
	}
	var paths []string
	var walk func(applied, merged, alone, live protoreflect.Message, path string)
	walk = func(applied, merged, alone, live protoreflect.Message, path string) {
		inMerged, inAlone, inLive := byPath(merged, path), byPath(alone, path), byPath(live, path)
		for _, e := range elements(applied, path) {
			if e.shape == leaf {
				paths = append(paths, e.path)
				continue
			}
			now, only, before := message(inMerged[e.path]), message(inAlone[e.path]), message(inLive[e.path])
			if e.path != "metadata" && (before == nil || c.before.has(e.path) || same(now, only)) {
				paths = append(paths, e.path)
			}
			walk(e.value.Message(), now, only, before, e.path)
		}
	}
	walk(c.applied.ProtoReflect(), c.merged.ProtoReflect(), c.alone.ProtoReflect(), live, "")
	return newPathSet(paths...)
}

// message is a value's message, nil for a value that is not there.
func message(v protoreflect.Value) protoreflect.Message {
	if !v.IsValid() {
		return nil
	}
	return v.Message()
}

func same(a, b protoreflect.Message) bool {
	return a != nil && b != nil && proto.Equal(a.Interface(), b.Interface())
}

func splitManaged(all []*balsav1.ManagedFields, manager string) (mine *balsav1.ManagedFields, others []*balsav1.ManagedFields) {
	for _, entry := range all {
		if entry.GetManager() == manager {
			mine = entry
			continue
		}
		others = append(others, entry)
	}
	return mine, others
}

func allPaths(entries []*balsav1.ManagedFields) pathSet {
	var paths []string
	for _, entry := range entries {
		paths = append(paths, entry.GetPaths()...)
	}
	return newPathSet(paths...)
}

// release takes paths away from managers. Entries that change are copies.
func release(entries []*balsav1.ManagedFields, lost pathSet) []*balsav1.ManagedFields {
	out := make([]*balsav1.ManagedFields, len(entries))
	for i, entry := range entries {
		out[i] = entry
		if left := pathSet(entry.GetPaths()).without(lost.has); len(left) < len(entry.GetPaths()) {
			out[i] = &balsav1.ManagedFields{Manager: entry.GetManager(), Time: entry.GetTime(), Paths: left}
		}
	}
	return out
}

// setManaged writes the entries that are not empty, sorted by manager.
func setManaged(m Message, entries []*balsav1.ManagedFields) {
	entries = slices.DeleteFunc(entries, func(e *balsav1.ManagedFields) bool { return len(e.GetPaths()) == 0 })
	slices.SortFunc(entries, func(a, b *balsav1.ManagedFields) int { return strings.Compare(a.GetManager(), b.GetManager()) })
	if len(entries) == 0 {
		entries = nil
	}
	EnsureMetadata(m).ManagedFields = entries
}

// ReleaseChanged takes from every manager the leaves to which next, an Update of
// old, gives another value: who updates a field keeps it from being removed by
// an Apply that no longer mentions it. It writes next's managedFields; call it
// after CarryOver.
func ReleaseChanged(old, next Message) {
	var lost []string
	for _, entry := range old.GetMetadata().GetManagedFields() {
		lost = append(lost, entry.GetPaths()...)
	}
	unchanged := unchangedPaths(old, next)
	gone := newPathSet(lost...).without(unchanged.has)
	setManaged(next, release(slices.Clone(old.GetMetadata().GetManagedFields()), gone))
}

// unchangedPaths lists the leaves that are equal in both and the nodes that both
// have.
func unchangedPaths(old, next Message) pathSet {
	var paths []string
	var walk func(a, b protoreflect.Message, path string)
	walk = func(a, b protoreflect.Message, path string) {
		there := byPath(b, path)
		for _, e := range elements(a, path) {
			v, found := there[e.path]
			if !found || e.shape == leaf && !v.Equal(e.value) {
				continue
			}
			paths = append(paths, e.path)
			if e.shape == node {
				walk(e.value.Message(), v.Message(), e.path)
			}
		}
	}
	walk(old.ProtoReflect(), next.ProtoReflect(), "")
	return newPathSet(paths...)
}
