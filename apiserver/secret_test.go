package apiserver

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	internalv1 "github.com/balsa-run/balsa/gen/balsainternal/v1"
	"github.com/balsa-run/balsa/object"
)

const (
	hidden      = "correct-horse-battery"
	hiddenLater = "staple-staple-staple"
)

// A Secret's values are in the clear only in answers to admins: not in commands,
// not in the store or its snapshots, not in the log, not in errors.
func TestSecretsAreSealed(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		var proposed bytes.Buffer
		w.backend.before = func(c *internalv1.Command) error {
			value, err := proto.Marshal(c)
			proposed.Write(value)
			return err
		}
		c := w.admin()
		s := newSecret("s", map[string][]byte{"password": []byte(hidden)})
		s.StringData = map[string]string{"token": hidden}
		made := create(t, c, s)
		if string(made.GetData()["token"]) != hidden || len(made.GetStringData()) != 0 {
			t.Fatalf("created: %d values, stringData %d", len(made.GetData()), len(made.GetStringData()))
		}
		if got := get[*balsav1.Secret](t, c, "", "s"); string(got.GetData()["password"]) != hidden {
			t.Fatal("an admin does not read the value")
		}
		made.Data["password"] = []byte(hiddenLater)
		_, err := c.objects.Update(t.Context(), &balsav1.UpdateRequest{Object: object.Wrap(made)})
		must(t, err)
		manifest := newSecret("s", map[string][]byte{"extra": []byte(hidden)})
		apply(t, c, manifest, "cli")
		at := w.revision()
		if res := apply(t, c, manifest, "cli"); res.GetResult() != "unchanged" || w.revision() != at {
			t.Fatalf("the same secret applied again: %s", res.GetResult())
		}
		bad := newSecret("Bad_Name", map[string][]byte{"k": []byte(hidden)})
		bad.StringData = map[string]string{"bad key!": hidden}
		_, badErr := c.objects.Create(t.Context(), &balsav1.CreateRequest{Object: object.Wrap(bad)})
		d := refused(t, badErr, connect.CodeInvalidArgument, "Invalid")
		_, missing := c.objects.Update(t.Context(), &balsav1.UpdateRequest{Object: object.Wrap(newSecret("absent", map[string][]byte{"k": []byte(hidden)}))})
		refused(t, missing, connect.CodeNotFound, "NotFound")
		_, err = c.objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "Secret", Name: "s", DryRun: true})
		must(t, err)
		var snapshot bytes.Buffer
		_, err = w.store.Snapshot().WriteTo(&snapshot)
		must(t, err)
		synctest.Wait()
		for where, text := range map[string]string{
			"commands": proposed.String(), "snapshot": snapshot.String(), "log": w.logs.String(),
			"errors": fmt.Sprint(badErr, missing, d),
		} {
			for _, value := range []string{hidden, hiddenLater} {
				if strings.Contains(text, value) || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte(value))) {
					t.Errorf("the %s hold a value", where)
				}
			}
		}
	})
}

func TestReaderSeesNoValues(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		create(t, w.admin(), newSecret("s", map[string][]byte{"password": []byte(hidden)}))
		r := w.reader()
		check := func(how string, s *balsav1.Secret) {
			t.Helper()
			value, named := s.GetData()["password"]
			if !named || len(value) != 0 || s.GetMetadata().GetAnnotations()[annotationWithheld] == "" {
				t.Errorf("%s: %d bytes, named %v, annotations %v", how, len(value), named, s.GetMetadata().GetAnnotations())
			}
		}
		check("get", get[*balsav1.Secret](t, r, "", "s"))
		list, err := r.objects.List(t.Context(), &balsav1.ListRequest{Kind: "Secret"})
		must(t, err)
		check("list", list.GetItems()[0].GetSecret())
		wa := startWatch(t, r, &balsav1.WatchRequest{Kind: "Secret"})
		check("watch", wa.next(t).GetObject().GetSecret())
		wa.expect(t, "BOOKMARK")
		_, err = w.admin().objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "Secret", Name: "s"})
		must(t, err)
		check("deleted", wa.next(t).GetObject().GetSecret())
		kv, ok := w.objects().Get("secrets/default/s")
		if ok || len(kv.Value) != 0 {
			t.Error("still there")
		}
	})
}

// A sealed value that is moved to another object does not open there, and says
// so without saying what it is.
func TestMovedSecretDoesNotOpen(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		create(t, w.admin(), newSecret("s", map[string][]byte{"password": []byte(hidden)}))
		kv, _ := w.objects().Get("secrets/default/s")
		thief := proto.CloneOf(kv.Object.(*balsav1.Secret))
		thief.Metadata.Name = "mine"
		w.direct(thief)
		_, err := w.admin().objects.Get(t.Context(), &balsav1.GetRequest{Kind: "Secret", Name: "mine"})
		refused(t, err, connect.CodeFailedPrecondition, "Sealed")
		del, err := w.admin().objects.Delete(t.Context(), &balsav1.DeleteRequest{Kind: "Secret", Name: "mine"})
		must(t, err)
		if !del.GetDeleted() || len(del.GetObject().GetSecret().GetData()["password"]) != 0 {
			t.Fatal("it cannot be deleted, or its sealed value is shown")
		}
	})
}
