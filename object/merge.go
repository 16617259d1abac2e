package object

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Limits of metadata.managedFields.
const (
	maxManagers      = 64
	maxManagerLength = 128
)

// ErrOtherKind is Merge's answer to an object of another kind than the live one.
var ErrOtherKind = errors.New("the object is of another kind")

// Merge gives live the fields that applied mentions, on behalf of manager, and
// fills in defaults. live is nil when the object does not exist yet. Fields that
// the same manager's last Apply mentioned and applied does not are removed,
// unless another manager mentions them as well; everything else stays. Where
// two managers want different values the later one wins, and the field is its
// own from then on.
//
// changed tells whether merged differs from live; without it merged has live's
// resourceVersion and needs no write. Neither live nor applied is changed. The
// error is an *InvalidError when applied claims fields of the server or has an
// item twice in a list.
//
// metadata.uid and metadata.resourceVersion of applied are preconditions for the
// caller to check. A Secret must be given opened: Merge compares plain values.
func Merge(live, applied Message, manager string, now time.Time) (merged Message, changed bool, err error) {
	if err := checkManager(manager); err != nil {
		return nil, false, err
	}
	if violations := append(ValidateInput(applied), duplicateItems(applied)...); len(violations) > 0 {
		return nil, false, violations.Err(applied)
	}
	applied = Clone(applied)
	if s, ok := applied.(*balsav1.Secret); ok {
		foldStringData(s)
	}
	if live == nil {
		return mergeNew(applied, manager, now)
	}
	if kindIndex(live) != kindIndex(applied) {
		return nil, false, fmt.Errorf("apply %s to %s: %w", Describe(applied), Describe(live), ErrOtherKind)
	}
	return mergeInto(live, applied, manager, now)
}

func checkManager(manager string) error {
	if manager == "" || len(manager) > maxManagerLength || strings.ContainsFunc(manager, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("apply: manager: found %s, allowed: 1 to %d printable characters without spaces, for example balsa-cli", quoted(manager), maxManagerLength)
	}
	return nil
}

func mergeNew(applied Message, manager string, now time.Time) (Message, bool, error) {
	meta := EnsureMetadata(applied)
	meta.Uid, meta.ResourceVersion = "", ""
	merged := Clone(applied)
	Default(merged)
	paths := owned(claim{merged: merged, applied: applied, alone: merged})
	setManaged(merged, []*balsav1.ManagedFields{{Manager: manager, Time: timestamppb.New(now), Paths: paths}})
	return merged, true, nil
}

func mergeInto(live, applied Message, manager string, now time.Time) (Message, bool, error) {
	mine, others := splitManaged(live.GetMetadata().GetManagedFields(), manager)
	if len(others) >= maxManagers {
		return nil, false, fmt.Errorf("apply %s: more than %d managers: use one of the names in metadata.managedFields", Describe(live), maxManagers)
	}
	merged := Clone(live)
	p := merger{mentioned: mentioned(applied), foreign: allPaths(others)}
	p.gone = newPathSet(mine.GetPaths()...).without(p.mentioned.has)
	p.remove(merged.ProtoReflect(), "")
	alone := Clone(applied)
	Default(alone)
	p.set(merged.ProtoReflect(), applied.ProtoReflect(), Clone(alone).ProtoReflect(), "")
	dropStaleDefaults(live, merged, p)
	Default(merged)
	paths := owned(claim{merged: merged, applied: applied, alone: alone, live: live, before: newPathSet(mine.GetPaths()...)})
	entry := &balsav1.ManagedFields{Manager: manager, Time: mine.GetTime(), Paths: paths}
	setManaged(merged, append(release(others, newPathSet(p.taken...)), entry))
	if Same(live, merged) {
		return merged, false, nil
	}
	entry.Time = timestamppb.New(now)
	return merged, true, nil
}

// merger carries one Apply through a message.
type merger struct {
	// mentioned is every path of the manifest, gone what the last one mentioned
	// and this one does not, foreign what other managers mention.
	mentioned, gone, foreign pathSet
	// taken collects other managers' fields that got another value.
	taken []string
}

// remove takes out what is gone, and tells whether it took out anything.
func (p *merger) remove(m protoreflect.Message, path string) (removed bool) {
	for _, e := range elements(m, path) {
		if !p.gone.touches(e.path) {
			continue
		}
		if p.gone.has(e.path) && !p.foreign.touches(e.path) && !p.mentioned.touches(e.path) {
			clearElement(m, e)
			removed = true
			continue
		}
		if e.shape != node {
			continue
		}
		child := e.value.Message()
		if p.remove(child, e.path) {
			removed = true
			if isEmpty(child) && !p.mentioned.touches(e.path) && !p.foreign.touches(e.path) {
				clearElement(m, e)
			}
		}
	}
	return removed
}

func isEmpty(m protoreflect.Message) bool { return proto.Size(m.Interface()) == 0 }

// set gives m what from mentions. The values are those of full, which is from
// with its defaults: some leaves are messages that have defaults inside.
func (p *merger) set(m, from, full protoreflect.Message, path string) {
	there, wanted := byPath(m, path), byPath(full, path)
	for _, e := range elements(from, path) {
		have, found := there[e.path]
		want := wanted[e.path]
		switch {
		case e.shape == leaf && found && have.Equal(want):
		case e.shape == leaf:
			if p.foreign.has(e.path) {
				p.taken = append(p.taken, e.path)
			}
			setLeaf(m, e, want)
		case found:
			p.set(have.Message(), e.value.Message(), want.Message(), e.path)
		case e.isItem():
			m.Mutable(e.field).List().Append(cloneValue(e.value))
		default:
			m.Set(e.field, cloneValue(e.value))
		}
	}
	arrange(m, from)
}

func setLeaf(m protoreflect.Message, e element, v protoreflect.Value) {
	if e.key.IsValid() {
		m.Mutable(e.field).Map().Set(e.key, v)
		return
	}
	m.Set(e.field, v)
}

func cloneValue(v protoreflect.Value) protoreflect.Value {
	return protoreflect.ValueOfMessage(proto.Clone(v.Message().Interface()).ProtoReflect())
}

// arrange brings m's keyed lists into the order of from.
func arrange(m, from protoreflect.Message) {
	fields := from.Descriptor().Fields()
	for i := range fields.Len() {
		if fd := fields.Get(i); from.Has(fd) && shapeOf(fd) == keyed {
			arrangeList(m.Mutable(fd).List(), from.Get(fd).List(), fd)
		}
	}
}

func arrangeList(list, order protoreflect.List, fd protoreflect.FieldDescriptor) {
	items := map[string]protoreflect.Value{}
	before := make([]string, list.Len())
	for i := range list.Len() {
		before[i] = itemPath("", fd, list.Get(i).Message())
		items[before[i]] = list.Get(i)
	}
	wanted := make([]string, order.Len())
	for i := range order.Len() {
		wanted[i] = itemPath("", fd, order.Get(i).Message())
	}
	for i, path := range arranged(before, wanted) {
		list.Set(i, items[path])
	}
}

// arranged orders a list's paths: the places of wanted ones, new ones at the end,
// are filled in the order of wanted; the others stay where they are. So a second
// Apply of the same manifest moves nothing, and one that mentions a single
// container does not move it.
func arranged(before, wanted []string) []string {
	isWanted := make(map[string]bool, len(wanted))
	for _, path := range wanted {
		isWanted[path] = true
	}
	out := slices.Clone(before)
	next := 0
	for i, path := range out {
		if isWanted[path] {
			out[i] = wanted[next]
			next++
		}
	}
	return out
}

// mentioned lists the paths of everything in a manifest.
func mentioned(applied Message) pathSet {
	var paths []string
	var walk func(protoreflect.Message, string)
	walk = func(m protoreflect.Message, path string) {
		for _, e := range elements(m, path) {
			paths = append(paths, e.path)
			if e.shape == node {
				walk(e.value.Message(), e.path)
			}
		}
	}
	walk(applied.ProtoReflect(), "")
	return newPathSet(paths...)
}

// duplicateItems finds items of keyed lists that a manifest has twice, which
// could not be told apart.
func duplicateItems(applied Message) Violations {
	c := &check{}
	var walk func(protoreflect.Message, string)
	walk = func(m protoreflect.Message, path string) {
		seen := map[string]bool{}
		for _, e := range elements(m, path) {
			if e.isItem() && seen[e.path] {
				c.add(Violation{Field: e.path, Message: "is there twice", Allowed: "every item once"})
			}
			seen[e.path] = true
			if e.shape == node {
				walk(e.value.Message(), e.path)
			}
		}
	}
	walk(applied.ProtoReflect(), "")
	return c.found
}
