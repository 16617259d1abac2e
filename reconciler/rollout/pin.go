package rollout

import (
	"fmt"
	"maps"
	"slices"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/revisions"
	"github.com/balsa-run/balsa/object"
)

const (
	// maxPins bounds the ConfigMaps and Secrets of one template.
	maxPins = 64
	// maxCopyOwners bounds the ReplicaSets that share a copy: each stands in its
	// metadata. The next one has a copy of its own made.
	maxCopyOwners = 256
	// maxCopyNames bounds the names that are tried for a copy.
	maxCopyNames = 16
)

// Content is a ConfigMap or Secret as it is stored, and what stands for its bytes.
type Content struct {
	Object object.Message
	// Fingerprint is hex; equal ones are equal contents.
	Fingerprint string
}

func (c Content) name() string { return c.Object.GetMetadata().GetName() }

// Contents is what there is of what a template refers to.
type Contents struct {
	// Live holds the objects that are there.
	Live map[revisions.Ref]Content
	// Copies holds the immutable copies of each, in the order of their names.
	Copies map[revisions.Ref][]Content
	// Preferred holds names of copies of each that the Deployment's ReplicaSets
	// refer to, the newest revision first.
	Preferred map[revisions.Ref][]string
	// Taken tells whether there is an object of a name.
	Taken func(revisions.Ref) bool
}

// Pinned is a template that refers to copies.
type Pinned struct {
	Template *balsav1.PodTemplateSpec
	// Pins tells which name stands for which object; "": the object is required and
	// not there, and keeps its own.
	Pins map[revisions.Ref]string
	// Copies are those that the template refers to, in order.
	Copies []Copy
	// Overrides are those that still hold. Ended are those that do not, with why.
	Overrides map[revisions.Ref]revisions.Override
	Ended     []string
}

// Copy is one that a template refers to.
type Copy struct {
	Ref  revisions.Ref
	Name string
	// Have is the copy that there is; nil: it is to be made of From.
	Have, From object.Message
}

// Pin makes a template refer to copies of what is there now, or of what an
// override says. It is a function of its arguments alone.
func Pin(t *balsav1.PodTemplateSpec, c Contents, overrides map[revisions.Ref]revisions.Override) (Pinned, error) {
	uses := revisions.Uses(t)
	if len(uses) > maxPins {
		return Pinned{}, fmt.Errorf("the template refers to %d ConfigMaps and Secrets, at most %d can be pinned to a revision; put several into one", len(uses), maxPins)
	}
	p := &pinning{Contents: c, Pinned: Pinned{Pins: map[revisions.Ref]string{}, Overrides: map[revisions.Ref]revisions.Override{}}}
	for _, use := range uses {
		if override, ok := overrides[use.Ref]; ok && p.override(use, override) {
			continue
		}
		if err := p.live(use); err != nil {
			return Pinned{}, err
		}
	}
	for _, ref := range slices.SortedFunc(maps.Keys(overrides), revisions.Compare) {
		if !slices.ContainsFunc(uses, func(u revisions.Use) bool { return u.Ref == ref }) {
			p.Ended = append(p.Ended, fmt.Sprintf("%s: the template no longer refers to it", ref))
		}
	}
	p.Template = revisions.Renamed(t, p.Pins)
	return p.Pinned, nil
}

type pinning struct {
	Contents
	Pinned
}

// override uses what a person chose, unless that is over.
func (p *pinning) override(use revisions.Use, o revisions.Override) bool {
	now := revisions.Absent
	live, has := p.Live[use.Ref]
	if has {
		now = live.Fingerprint
	}
	if version, ok := o.Version(); ok {
		if version != versionOf(live.Object) {
			return p.end(use.Ref, "the live object was changed")
		}
		o.InsteadOf = now
	}
	switch {
	case o.InsteadOf != now:
		return p.end(use.Ref, "the live object was changed")
	case o.Use == "" && !use.Optional:
		return p.end(use.Ref, "it is required now")
	case o.Use == "":
		p.Pins[use.Ref] = revisions.AbsentName(use.Name)
	default:
		i := slices.IndexFunc(p.Contents.Copies[use.Ref], func(c Content) bool { return c.name() == o.Use })
		if i < 0 {
			return p.end(use.Ref, fmt.Sprintf("its copy %q is gone", o.Use))
		}
		p.use(use.Ref, p.Contents.Copies[use.Ref][i])
	}
	p.Overrides[use.Ref] = o
	return true
}

// versionOf is the resourceVersion of an object, "" of none.
func versionOf(m object.Message) string {
	if m == nil {
		return ""
	}
	return m.GetMetadata().GetResourceVersion()
}

func (p *pinning) end(ref revisions.Ref, why string) bool {
	p.Ended = append(p.Ended, fmt.Sprintf("%s: %s", ref, why))
	return false
}

func (p *pinning) use(ref revisions.Ref, c Content) {
	p.Pins[ref] = c.name()
	p.Pinned.Copies = append(p.Pinned.Copies, Copy{Ref: ref, Name: c.name(), Have: c.Object})
}

// live pins what is there now.
func (p *pinning) live(use revisions.Use) error {
	live, has := p.Live[use.Ref]
	switch {
	case !has && use.Optional:
		p.Pins[use.Ref] = revisions.AbsentName(use.Name)
		return nil
	case !has:
		p.Pins[use.Ref] = ""
		return nil
	}
	if have, ok := p.equal(use.Ref, live.Fingerprint); ok {
		p.use(use.Ref, have)
		return nil
	}
	for attempt := range maxCopyNames {
		name := revisions.CopyName(use.Name, live.Fingerprint, attempt)
		if !p.Taken(revisions.Ref{Kind: use.Kind, Name: name}) {
			p.Pins[use.Ref] = name
			p.Pinned.Copies = append(p.Pinned.Copies, Copy{Ref: use.Ref, Name: name, From: live.Object})
			return nil
		}
	}
	return fmt.Errorf("%s cannot be copied: %d names such as %q are taken by other objects; delete those",
		use.Ref, maxCopyNames, revisions.CopyName(use.Name, live.Fingerprint, 0))
}

// equal finds a copy with a content: one that the Deployment refers to already,
// so that its template stays as it is, or any that can take an owner more.
func (p *pinning) equal(ref revisions.Ref, fingerprint string) (found Content, ok bool) {
	best := -1
	for _, c := range p.Contents.Copies[ref] {
		if c.Fingerprint != fingerprint {
			continue
		}
		rank := slices.Index(p.Preferred[ref], c.name())
		switch {
		case rank >= 0 && (best < 0 || rank < best):
			found, ok, best = c, true, rank
		case rank < 0 && !ok && len(c.Object.GetMetadata().GetOwnerReferences()) < maxCopyOwners:
			found, ok = c, true
		}
	}
	return found, ok
}
