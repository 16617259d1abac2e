package revisions

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

const labelTemplateHash = "pod-template-hash" // object.LabelTemplateHash

// Live is what is there now of an object that a revision has pinned.
type Live struct {
	// Version is its resourceVersion; empty: it is not there.
	Version string
	// Same: its content is that of the revision's copy.
	Same bool
	// Lost: the revision's copy is not there any more.
	Lost bool
}

// Undone is a Deployment as it shall be.
type Undone struct {
	Deployment *balsav1.Deployment
	// Pinned are the objects of which the revision's content is used and not the
	// live one.
	Pinned []Ref
	// Missing are objects that were not there when the revision was made, though it
	// needs them: what is there now is used.
	Missing []Ref
	// Changed tells whether there is anything to write. Already: the Deployment was
	// at that revision before.
	Changed, Already bool
}

// Undo gives a Deployment the template of a revision, with the names that the
// user wrote, and has the contents used that it had, until the live ones change
// again. live tells of every object in the revision's pins.
func Undo(d *balsav1.Deployment, rs *balsav1.ReplicaSet, live map[Ref]Live) (Undone, error) {
	pins, err := ParsePins(rs.GetMetadata().GetAnnotations()[AnnotationPins])
	if err != nil {
		return Undone{}, fmt.Errorf("replicaset %q: %w", rs.GetMetadata().GetName(), err)
	}
	u := Undone{Deployment: proto.CloneOf(d)}
	overrides := map[Ref]Override{}
	for _, ref := range slices.SortedFunc(maps.Keys(pins), Compare) {
		now, name := live[ref], pins[ref]
		switch {
		case name == "":
			u.Missing = append(u.Missing, ref)
		case name == AbsentName(ref.Name):
			if now.Version != "" {
				overrides[ref] = Override{InsteadOf: AtVersion(now.Version)}
				u.Pinned = append(u.Pinned, ref)
			}
		case now.Lost && !now.Same:
			return Undone{}, fmt.Errorf("%s of revision %d is lost: its copy %q was deleted", ref, Of(rs), name)
		case !now.Same:
			overrides[ref] = Override{Use: name, InsteadOf: AtVersion(now.Version)}
			u.Pinned = append(u.Pinned, ref)
		}
	}
	u.Deployment.Spec.Template = UserTemplate(rs, pins)
	annotate(u.Deployment, AnnotationPinned, FormatPinned(overrides))
	annotate(u.Deployment, AnnotationChangeCause, rs.GetMetadata().GetAnnotations()[AnnotationChangeCause])
	u.Changed = !proto.Equal(d, u.Deployment)
	u.Already = Of(rs) == Of(d) && proto.Equal(d.GetSpec(), u.Deployment.GetSpec()) && sameUse(d, overrides)
	return u, nil
}

// sameUse tells whether a Deployment uses these copies already. A live object may
// have been changed a moment ago all the same, which the undo passes over.
func sameUse(d *balsav1.Deployment, overrides map[Ref]Override) bool {
	before, err := ParsePinned(d.GetMetadata().GetAnnotations()[AnnotationPinned])
	return err == nil && maps.EqualFunc(before, overrides, func(x, y Override) bool { return x.Use == y.Use })
}

// UserTemplate is a ReplicaSet's template as the Deployment had it.
func UserTemplate(rs *balsav1.ReplicaSet, pins map[Ref]string) *balsav1.PodTemplateSpec {
	t := Original(rs.GetSpec().GetTemplate(), pins)
	delete(t.GetMetadata().GetLabels(), labelTemplateHash)
	return t
}

// annotate sets one, or removes it for "".
func annotate(d *balsav1.Deployment, key, value string) {
	if value == "" {
		delete(d.GetMetadata().GetAnnotations(), key)
		return
	}
	if d.Metadata.Annotations == nil {
		d.Metadata.Annotations = map[string]string{}
	}
	d.Metadata.Annotations[key] = value
}
