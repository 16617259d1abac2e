package node

import (
	"errors"
	"strings"
	"testing"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

func configMap(name, revision string) *balsav1.Object {
	return object.Wrap(&balsav1.ConfigMap{Metadata: &balsav1.ObjectMeta{Namespace: "d", Name: name, Uid: name, ResourceVersion: revision}})
}

func podObject(name, revision string) *balsav1.Object {
	return object.Wrap(&balsav1.Pod{Metadata: &balsav1.ObjectMeta{Namespace: "d", Name: name, Uid: name, ResourceVersion: revision}})
}

func service(name, revision string) *balsav1.Object {
	return object.Wrap(&balsav1.Service{Metadata: &balsav1.ObjectMeta{Namespace: "d", Name: name, Uid: name, ResourceVersion: revision}})
}

// feed gives messages to a set as one stream would.
func feed(t *testing.T, s *set, messages ...*balsav1.AssignmentsResponse) (effect, error) {
	t.Helper()
	next := &step{}
	var last effect
	for _, m := range messages {
		complete, _ := next.add(m)
		if !complete {
			continue
		}
		e, err := s.commit(next, true, func(*set, effect) {})
		if err != nil {
			return e, err
		}
		last = e
	}
	return last, nil
}

func (s *set) dump() string {
	part, _ := s.part(func(string) bool { return true })
	var out []string
	for _, o := range part.Upserts {
		m, err := object.Unwrap(o)
		if err != nil {
			return err.Error()
		}
		out = append(out, object.KeyOf(m)+"@"+m.GetMetadata().GetResourceVersion())
	}
	return strings.Join(out, " ")
}

func TestSetFollowsAStream(t *testing.T) {
	s := newSet()
	full := &balsav1.AssignmentsResponse{Full: true, Upserts: []*balsav1.Object{podObject("p", "1"), configMap("m", "2")}}
	if _, err := feed(t, s, full); err != nil || s.synced {
		t.Fatalf("half a set is taken for a whole one: %v", err)
	}
	rest := &balsav1.AssignmentsResponse{Upserts: []*balsav1.Object{service("w", "3")}, Synced: true, Revision: 5}
	e, err := feed(t, s, full, rest)
	if err != nil || s.dump() != "configmaps/d/m@2 pods/d/p@1 services/d/w@3" || !e.pods || !e.services {
		t.Fatalf("set %q, effect %+v, %v", s.dump(), e, err)
	}
	e, err = feed(t, s, &balsav1.AssignmentsResponse{Upserts: []*balsav1.Object{podObject("p", "6")}, Synced: true, Revision: 6})
	if err != nil || e.pods || e.services || len(e.uids) != 1 {
		t.Errorf("a status that comes back has the effect %+v %v, want only a look at the pod", e, err)
	}
	e, err = feed(t, s, &balsav1.AssignmentsResponse{Deletes: []*balsav1.ObjectKey{{Kind: "ConfigMap", Namespace: "d", Name: "m"}, {Kind: "Service", Namespace: "d", Name: "w"}}},
		&balsav1.AssignmentsResponse{Synced: true, Revision: 7})
	if err != nil || s.dump() != "pods/d/p@6" || !e.services || len(e.uids) != 1 || e.uids[0] != "p" {
		t.Errorf("set %q, effect %+v, %v", s.dump(), e, err)
	}
	e, err = feed(t, s, &balsav1.AssignmentsResponse{Full: true, Upserts: []*balsav1.Object{podObject("q", "8")}, Synced: true, Revision: 8})
	if err != nil || s.dump() != "pods/d/q@8" || len(e.uids) != 2 || s.pod("p") != nil || s.pod("q") == nil {
		t.Errorf("after a full set: %q, effect %+v, %v", s.dump(), e, err)
	}
}

func TestSetRefusesNonsense(t *testing.T) {
	delta := &balsav1.AssignmentsResponse{Upserts: []*balsav1.Object{podObject("p", "1")}, Synced: true, Revision: 4}
	if _, err := feed(t, newSet(), delta); !errors.Is(err, errProtocol) {
		t.Errorf("changes before a full set: %v", err)
	}
	s := newSet()
	whole := &step{}
	whole.add(&balsav1.AssignmentsResponse{Full: true, Synced: true, Revision: 9})
	if _, err := s.commit(whole, false, func(*set, effect) {}); err != nil {
		t.Fatal(err)
	}
	if _, err := feed(t, s, delta); !errors.Is(err, errProtocol) {
		t.Errorf("changes to a set from disk: %v", err)
	}
	if _, err := feed(t, s, &balsav1.AssignmentsResponse{Full: true, Synced: true, Revision: 9}, delta); !errors.Is(err, errProtocol) {
		t.Errorf("changes that go back in time: %v", err)
	}
	next := &step{}
	_, unknown := next.add(&balsav1.AssignmentsResponse{Full: true, Upserts: []*balsav1.Object{{}, podObject("p", "1")}, Deletes: []*balsav1.ObjectKey{{Kind: "Flux"}}, Synced: true, Revision: 10})
	if _, err := s.commit(next, true, func(*set, effect) {}); err != nil || len(unknown) != 2 || s.dump() != "pods/d/p@1" {
		t.Errorf("what a newer server sends: set %q, unknown %q, %v", s.dump(), unknown, err)
	}
}

// TestSavedBeforeSeen: what pods have to do is on disk before anybody acts on it.
func TestSavedBeforeSeen(t *testing.T) {
	s, next, saved := newSet(), &step{}, ""
	next.add(&balsav1.AssignmentsResponse{Full: true, Upserts: []*balsav1.Object{podObject("p", "1"), service("w", "2")}, Synced: true, Revision: 2})
	if _, err := s.commit(next, true, func(draft *set, _ effect) {
		saved = draft.dump()
		if s.pod("p") != nil {
			t.Error("the pod is seen before it is saved")
		}
	}); err != nil || saved != "pods/d/p@1 services/d/w@2" || s.pod("p") == nil {
		t.Errorf("saved %q, %v", saved, err)
	}
}

func TestStepBeginsAnew(t *testing.T) {
	s := newSet()
	_, err := feed(t, s, &balsav1.AssignmentsResponse{Full: true, Upserts: []*balsav1.Object{podObject("stale", "1")}},
		&balsav1.AssignmentsResponse{Full: true, Upserts: []*balsav1.Object{podObject("p", "2")}, Synced: true, Revision: 2})
	if err != nil || s.dump() != "pods/d/p@2" {
		t.Errorf("a full set that begins anew gives %q, %v", s.dump(), err)
	}
}

func TestDir(t *testing.T) {
	d := Dir(t.TempDir())
	if err := d.Write("pods/a", []byte("x")); err != nil {
		t.Fatal(err)
	}
	names, err := d.List("pods")
	if data, readErr := d.Read("pods/a"); readErr != nil || string(data) != "x" || err != nil || len(names) != 1 {
		t.Errorf("read %q %v, list %v %v", data, readErr, names, err)
	}
	for range 2 {
		if err := d.Remove("pods/a"); err != nil {
			t.Error(err)
		}
	}
	if names, err := d.List("none"); err != nil || len(names) != 0 {
		t.Errorf("a folder that is not there lists %v, %v", names, err)
	}
}
