package rollout_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/internal/revisions"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/reconciler/control"
	"github.com/balsa-run/balsa/reconciler/gc"
	rt "github.com/balsa-run/balsa/reconciler/reconcilertest"
	"github.com/balsa-run/balsa/reconciler/rollout"
	"github.com/balsa-run/balsa/store"
)

const nowhere = "(not there)"

// refs are the objects that templates may refer to.
func refs() []revisions.Ref {
	return []revisions.Ref{{Kind: "ConfigMap", Name: "app"}, {Kind: "ConfigMap", Name: "extra"}, {Kind: "Secret", Name: "key"}, {Kind: "Secret", Name: "cert"}}
}

// configSim is a sim whose user edits configs and undoes rollouts. It remembers
// what every revision's pods saw.
type configSim struct {
	*sim
	gc control.Concern
	// user is the version of each object as the user left it, by key.
	user map[string]string
	// saw is what the template of each ReplicaSet, by uid, resolves to.
	saw map[string]map[revisions.Ref]string
}

func newConfigSim(tb rt.TB) *configSim {
	s := &configSim{sim: newSim(tb, deployment(2, "web:1")), user: map[string]string{}, saw: map[string]map[revisions.Ref]string{}}
	s.gc = gc.New(s.Kit())
	return s
}

func (s *configSim) key(ref revisions.Ref, name string) string {
	kind, _ := object.KindByName(ref.Kind)
	return object.Key(kind, "default", name)
}

// write sets an object's content as the API does, or deletes it for nowhere.
func (s *configSim) write(ref revisions.Ref, value string) {
	key := s.key(ref, ref.Name)
	old, exists := control.Get[object.Message](s.View(), key)
	if value == nowhere {
		if exists {
			s.Delete(old)
		}
		delete(s.user, key)
		return
	}
	meta := &balsav1.ObjectMeta{Name: ref.Name, Namespace: "default"}
	var m object.Message = &balsav1.ConfigMap{Metadata: meta, Data: map[string]string{"value": value}, BinaryData: map[string][]byte{"raw": {0, 1}}}
	if ref.Kind == "Secret" {
		sealed, err := rt.Secrets{}.Seal(key, "value", []byte(value))
		if err != nil {
			s.tb.Fatalf("%v", err)
		}
		m = &balsav1.Secret{Metadata: meta, Data: map[string][]byte{"value": sealed}}
	}
	s.Put(m)
	kv, _ := s.View().Get(key)
	s.user[key] = control.Object(kv).GetMetadata().GetResourceVersion()
}

// read is the content of an object in the clear.
func (s *configSim) read(ref revisions.Ref, name string) string {
	key := s.key(ref, name)
	m, ok := control.Get[object.Message](s.View(), key)
	if !ok {
		return nowhere
	}
	if secret, ok := m.(*balsav1.Secret); ok {
		plain, err := rt.Secrets{}.Open(key, "value", secret.GetData()["value"])
		if err != nil {
			s.tb.Fatalf("%v", err)
		}
		return string(plain)
	}
	return m.(*balsav1.ConfigMap).GetData()["value"]
}

func pinsOf(tb rt.TB, rs *balsav1.ReplicaSet) map[revisions.Ref]string {
	pins, err := revisions.ParsePins(rs.GetMetadata().GetAnnotations()[revisions.AnnotationPins])
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return pins
}

// resolved is what a ReplicaSet's pods see.
func (s *configSim) resolved(rs *balsav1.ReplicaSet) map[revisions.Ref]string {
	out := map[revisions.Ref]string{}
	uses := revisions.Uses(rs.GetSpec().GetTemplate())
	for ref, name := range pinsOf(s.tb, rs) {
		if name == "" {
			continue // required and not there: a pod waits
		}
		if !slices.ContainsFunc(uses, func(u revisions.Use) bool { return u.Ref == revisions.Ref{Kind: ref.Kind, Name: name} }) {
			s.tb.Fatalf("%s: %s is pinned as %q, which the template does not refer to", rs.GetMetadata().GetName(), ref, name)
		}
		out[ref] = s.read(ref, name)
	}
	return out
}

// check holds after every step.
func (s *configSim) check() {
	s.checkTotal()
	for _, rs := range s.sets() {
		uid := rs.GetMetadata().GetUid()
		now := s.resolved(rs)
		if _, known := s.saw[uid]; !known && rs.GetSpec().GetReplicas() == 0 && s.lacksCopies(rs) {
			continue // they come in several transactions, and no pod before the last
		}
		if was, known := s.saw[uid]; known && !maps.Equal(was, now) {
			s.tb.Fatalf("%s (revision %d): its pods saw %v and now see %v", rs.GetMetadata().GetName(), revisions.Of(rs), was, now)
		}
		s.saw[uid] = now
	}
	for key, version := range s.user {
		if m, ok := control.Get[object.Message](s.View(), key); !ok || m.GetMetadata().GetResourceVersion() != version {
			s.tb.Fatalf("%s was written by somebody else than the user", key)
		}
	}
}

func (s *configSim) lacksCopies(rs *balsav1.ReplicaSet) bool {
	for ref, name := range pinsOf(s.tb, rs) {
		if name != "" && name != revisions.AbsentName(ref.Name) && s.read(ref, name) == nowhere {
			return true
		}
	}
	return false
}

// fresh is the ReplicaSet of the Deployment's revision.
func (s *configSim) fresh() *balsav1.ReplicaSet {
	s.tb.Helper()
	want := revisions.Of(s.deployment())
	for _, rs := range s.sets() {
		if revisions.Of(rs) == want {
			return rs
		}
	}
	s.tb.Fatalf("no replicaset of revision %d:\n%s", want, s.dump())
	return nil
}

// rest lets everything come about, and checks what holds then.
func (s *configSim) rest() {
	s.tb.Helper()
	quiet := 0
	for range 100 {
		before := s.View().Revision()
		for _, c := range []control.Concern{s.rollout, s.workload, s.gc} {
			s.Step(c)
			s.check()
		}
		s.heal()
		s.Clock.Advance(time.Second)
		if quiet++; s.View().Revision() != before {
			quiet = 0
		}
		if quiet == 3 { // longer than contents settle
			s.checkRest()
			return
		}
	}
	s.tb.Fatalf("does not come to rest:\n%s\n%v\n%v", s.dump(), s.deployment().GetStatus(), s.deployment().GetMetadata())
}

func (s *configSim) checkRest() {
	s.tb.Helper()
	owners := map[string]bool{}
	for _, rs := range s.sets() {
		owners[rs.GetMetadata().GetUid()] = true
	}
	for _, m := range append(copies[*balsav1.ConfigMap](s.World, "ConfigMap"), copies[*balsav1.Secret](s.World, "Secret")...) {
		refs := m.GetMetadata().GetOwnerReferences()
		if len(refs) == 0 || slices.ContainsFunc(refs, func(r *balsav1.OwnerReference) bool { return !owners[r.GetUid()] }) {
			s.tb.Fatalf("%s leaks: its owners are %v", object.Describe(m), refs)
		}
	}
	now := s.resolved(s.fresh())
	overrides, err := revisions.ParsePinned(s.deployment().GetMetadata().GetAnnotations()[revisions.AnnotationPinned])
	if err != nil {
		s.tb.Fatalf("%v", err)
	}
	for _, use := range revisions.Uses(s.deployment().GetSpec().GetTemplate()) {
		if _, ok := overrides[use.Ref]; ok {
			continue
		}
		live := s.read(use.Ref, use.Name)
		if got, ok := now[use.Ref]; ok && got != live || !ok && (live != nowhere || use.Optional) {
			s.tb.Fatalf("%s is %q, and the newest revision sees %q", use.Ref, live, got)
		}
	}
}

func copies[M object.Message](w *rt.World, kind string) (out []object.Message) {
	for _, m := range rt.All[M](w, kind) {
		if m.GetMetadata().GetLabels()[revisions.LabelPinnedFrom] != "" {
			out = append(out, m)
		}
	}
	return out
}

// undo does what balsa rollout undo does, and checks that the revision's bytes
// are back.
func (s *configSim) undo(to *balsav1.ReplicaSet) {
	s.tb.Helper()
	want := maps.Clone(s.saw[to.GetMetadata().GetUid()])
	live := map[revisions.Ref]revisions.Live{}
	for ref, name := range pinsOf(s.tb, to) {
		l := revisions.Live{Lost: s.read(ref, name) == nowhere, Same: s.read(ref, name) == s.read(ref, ref.Name)}
		if m, ok := control.Get[object.Message](s.View(), s.key(ref, ref.Name)); ok {
			l.Version = m.GetMetadata().GetResourceVersion()
		} else {
			l.Same = false
		}
		live[ref] = l
	}
	undone, err := revisions.Undo(s.deployment(), to, live)
	if err != nil {
		s.tb.Fatalf("undo to %d: %v", revisions.Of(to), err)
	}
	if undone.Changed {
		s.Put(undone.Deployment)
	}
	s.rest()
	got := s.resolved(s.fresh())
	for _, ref := range undone.Missing { // what was not there then may be there now
		delete(got, ref)
	}
	if !maps.Equal(want, got) {
		s.tb.Fatalf("undo to revision %d: its pods saw %v, and now see %v", revisions.Of(to), want, got)
	}
}

// drawTemplate refers to some of the objects, in all the ways there are.
func drawTemplate(t *rapid.T, spec *balsav1.DeploymentSpec) {
	c := &balsav1.Container{Name: "web", Image: rapid.SampledFrom([]string{"web:1", "web:2"}).Draw(t, "image")}
	spec.Template.Spec = &balsav1.PodSpec{Containers: []*balsav1.Container{c}}
	for i, ref := range refs() {
		optional := proto.Bool(rapid.Bool().Draw(t, "optional"))
		selector := &balsav1.KeySelector{Name: ref.Name, Key: "value", Optional: optional}
		from := &balsav1.ObjectNameSelector{Name: ref.Name, Optional: optional}
		volume := &balsav1.Volume{Name: fmt.Sprintf("v%d", i)}
		switch way := rapid.SampledFrom([]string{"not", "env", "envFrom", "init", "volume", "projected"}).Draw(t, ref.String()); {
		case way == "env" && ref.Kind == "ConfigMap":
			c.Env = append(c.Env, &balsav1.EnvVar{Name: "A", ValueFrom: &balsav1.EnvVarSource{ConfigMapKeyRef: selector}})
		case way == "env":
			c.Env = append(c.Env, &balsav1.EnvVar{Name: "B", ValueFrom: &balsav1.EnvVarSource{SecretKeyRef: selector}})
		case way == "envFrom" && ref.Kind == "ConfigMap":
			c.EnvFrom = append(c.EnvFrom, &balsav1.EnvFromSource{ConfigMapRef: from})
		case way == "envFrom" || way == "init" && ref.Kind == "Secret":
			init := &balsav1.Container{Name: fmt.Sprintf("i%d", i), Image: "init:1", EnvFrom: []*balsav1.EnvFromSource{{SecretRef: from}}}
			spec.Template.Spec.InitContainers = append(spec.Template.Spec.InitContainers, init)
		case way == "volume" && ref.Kind == "ConfigMap":
			volume.ConfigMap = &balsav1.ConfigMapVolumeSource{Name: ref.Name, Optional: optional}
		case way == "volume":
			volume.Secret = &balsav1.SecretVolumeSource{SecretName: ref.Name, Optional: optional}
		case way == "projected" && ref.Kind == "ConfigMap":
			volume.Projected = &balsav1.ProjectedVolumeSource{Sources: []*balsav1.VolumeProjection{{ConfigMap: &balsav1.ConfigMapProjection{Name: ref.Name, Optional: optional}}}}
		case way == "projected":
			volume.Projected = &balsav1.ProjectedVolumeSource{Sources: []*balsav1.VolumeProjection{{Secret: &balsav1.SecretProjection{Name: ref.Name, Optional: optional}}}}
		}
		if volume.ConfigMap != nil || volume.Secret != nil || volume.Projected != nil {
			spec.Template.Spec.Volumes = append(spec.Template.Spec.Volumes, volume)
		}
	}
}

// TestUndoBringsBackTheBytes plays random edits of templates, ConfigMaps and
// Secrets. Whatever is edited when: the pods of one revision always see the same
// bytes, an undo brings back those of its revision, the newest sees what is there
// now, no copy outlives its ReplicaSets, and no object of the user is written.
func TestUndoBringsBackTheBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newConfigSim(t)
		history := rapid.Int32Range(0, 3).Draw(t, "history")
		rt.Edit(s.World, webKey, func(d *balsav1.Deployment) { d.Spec.RevisionHistoryLimit = proto.Int32(history) })
		edit := func(t *rapid.T) {
			rt.Edit(s.World, webKey, func(d *balsav1.Deployment) { drawTemplate(t, d.Spec); object.Default(d) })
			s.excuse = max(s.excuse, s.total())
		}
		write := func(t *rapid.T) {
			s.write(rapid.SampledFrom(refs()).Draw(t, "ref"), rapid.SampledFrom([]string{"one", "two", "three", nowhere}).Draw(t, "value"))
		}
		t.Repeat(map[string]func(*rapid.T){
			"template": edit, "write": write, "write2": write,
			"undo": func(t *rapid.T) {
				if sets := s.sets(); len(sets) > 0 {
					s.undo(sets[rapid.IntRange(0, len(sets)-1).Draw(t, "to")])
				}
			},
			"rest":     func(*rapid.T) { s.rest() },
			"rollout":  func(*rapid.T) { s.Step(s.rollout) },
			"workload": func(*rapid.T) { s.stepWorkload() },
			"gc":       func(*rapid.T) { s.Step(s.gc) },
			"heal":     func(*rapid.T) { s.heal() },
			"leader": func(*rapid.T) {
				s.rollout = rollout.New(s.Kit(), rt.Secrets{}, s.Store.Space(store.SpaceEvents))
			},
			"": func(*rapid.T) { s.check() },
		})
		s.rest()
		s.Delete(s.deployment())
		s.drain()
		if left := append(copies[*balsav1.ConfigMap](s.World, "ConfigMap"), copies[*balsav1.Secret](s.World, "Secret")...); len(left) > 0 {
			t.Fatalf("the deployment is gone, and %d copies are left: %v", len(left), left)
		}
	})
}

// drain lets what the Deployment owned go.
func (s *configSim) drain() {
	for range 20 {
		s.Step(s.gc)
		s.heal()
	}
	if n := len(s.sets()); n > 0 {
		s.tb.Fatalf("%d replicasets are left", n)
	}
}

// TestSecretsAreNeverCopiedInTheClear: values are bound to the copy's own key, and
// neither names nor annotations hold them.
func TestSecretsAreNeverCopiedInTheClear(t *testing.T) {
	s := newConfigSim(t)
	s.write(revisions.Ref{Kind: "Secret", Name: "key"}, "sesame")
	rt.Edit(s.World, webKey, func(d *balsav1.Deployment) {
		d.Spec.Template.Spec.Containers[0].EnvFrom = []*balsav1.EnvFromSource{{SecretRef: &balsav1.ObjectNameSelector{Name: "key"}}}
		object.Default(d)
	})
	s.rest()
	found := copies[*balsav1.Secret](s.World, "Secret")
	if len(found) != 1 || !found[0].(*balsav1.Secret).GetImmutable() {
		t.Fatalf("copies %v", found)
	}
	c := found[0].(*balsav1.Secret)
	if want := "sealed " + object.KeyOf(c) + " value: sesame"; string(c.GetData()["value"]) != want {
		t.Errorf("the copy holds %q", c.GetData()["value"])
	}
	for _, m := range []object.Message{s.deployment(), s.fresh()} {
		if text := fmt.Sprint(m); strings.Contains(text, "sesame") {
			t.Errorf("%s", text)
		}
	}
}

// TestWhatIsAppliedTogetherIsOneRevision: two objects are changed, and then the
// template, one after the other; the first alone would be a revision in a second.
func TestWhatIsAppliedTogetherIsOneRevision(t *testing.T) {
	s := newConfigSim(t)
	app, key := refs()[0], refs()[2]
	s.write(app, "one")
	s.write(key, "one")
	template := func(image string) {
		rt.Edit(s.World, webKey, func(d *balsav1.Deployment) {
			d.Spec.Template.Spec.Containers[0].Image = image
			d.Spec.Template.Spec.Containers[0].EnvFrom = []*balsav1.EnvFromSource{
				{ConfigMapRef: &balsav1.ObjectNameSelector{Name: app.Name}}, {SecretRef: &balsav1.ObjectNameSelector{Name: key.Name}},
			}
			object.Default(d)
		})
	}
	template("web:1")
	s.rest()
	before := revisions.Of(s.deployment())
	s.write(app, "two")
	s.Step(s.rollout)
	s.write(key, "two")
	s.Clock.Advance(900 * time.Millisecond)
	s.Step(s.rollout)
	template("web:2")
	s.rest()
	if now := revisions.Of(s.deployment()); now != before+1 {
		t.Errorf("%d revisions were made of it", now-before)
	}
	s.write(app, "three")
	s.rest()
	if now := revisions.Of(s.deployment()); now != before+2 || !contains(s.Events, "other contents of ConfigMap/app") {
		t.Errorf("an edit alone made %d revisions; events %q", now-before-1, s.Events)
	}
}
