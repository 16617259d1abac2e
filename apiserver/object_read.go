package apiserver

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/store"
)

// defaultPage is how many objects a page has unless the caller says.
const defaultPage = 500

// view is the state that a read asks for: the newest, whatever is here, or that
// of a revision.
func (s *Server) view(ctx context.Context, space string, read *balsav1.ReadOptions) (store.View, error) {
	at := s.store.Space(space)
	if text := read.GetResourceVersion(); text != "" {
		rev, err := parseRevision("read.resourceVersion", text)
		if err != nil {
			return store.View{}, err
		}
		return s.viewAt(ctx, at, rev)
	}
	if !read.GetStale() {
		if err := s.barrier(ctx); err != nil {
			return store.View{}, err
		}
	}
	return at.View(), nil
}

// viewAt reads a revision. One that this server has not reached may be one that
// another server has given out: then it is worth catching up.
func (s *Server) viewAt(ctx context.Context, at *store.Space, rev store.Revision) (store.View, error) {
	v, err := at.ViewAt(rev)
	if !errors.Is(err, store.ErrFutureRevision) {
		return v, err
	}
	if err := s.barrier(ctx); err != nil {
		return store.View{}, err
	}
	return at.ViewAt(rev)
}

// barrier makes the local views at least as new as every write acknowledged
// before.
func (s *Server) barrier(ctx context.Context) error {
	if err := s.backend.ReadBarrier(ctx); err != nil {
		p := toProposalProblem(err)
		p.applied = balsav1.ErrorDetail_APPLIED_UNSPECIFIED // nothing was proposed
		return p
	}
	return nil
}

// Get reads one object.
func (o objectService) Get(ctx context.Context, req *balsav1.GetRequest) (*balsav1.GetResponse, error) {
	kind, namespace, err := target(req.GetKind(), req.GetNamespace(), req.GetName())
	if err != nil {
		return nil, err
	}
	about(ctx, keyOf(kind, namespace, req.GetName()))
	view, err := o.view(ctx, kind.Space, req.GetRead())
	if err != nil {
		return nil, err
	}
	m, _, err := lookup(view, kind, namespace, req.GetName())
	if err != nil {
		return nil, err
	}
	shown, err := o.shown(ctx, m)
	if err != nil {
		return nil, err
	}
	return &balsav1.GetResponse{Object: shown}, nil
}

// lookup finds an object in a view; it is shared and frozen.
func lookup(view store.View, kind object.Kind, namespace, name string) (object.Message, store.KV, error) {
	kv, ok := view.Get(object.Key(kind, namespace, name))
	if !ok {
		return nil, kv, notFound(kind, namespace, name)
	}
	m, err := messageOf(kv)
	return m, kv, err
}

// messageOf is the decoded object of a key.
func messageOf(kv store.KV) (object.Message, error) {
	m, ok := kv.Object.(object.Message)
	if !ok {
		return nil, fmt.Errorf("the value of %q cannot be decoded", kv.Key)
	}
	return m, nil
}

// query is what a List or Watch selects.
type query struct {
	kind      object.Kind
	namespace string
	labels    object.Selector
	fields    object.FieldSelector
	// print ties a continue token to the query it belongs to.
	print [8]byte
}

func newQuery(kindName, namespace, labels, fields string) (query, error) {
	kind, err := kindNamed(kindName)
	if err != nil {
		return query{}, err
	}
	if !kind.Namespaced && namespace != "" {
		return query{}, invalid("namespace", "leave it out: "+kind.Plural+" belong to the cluster", "found %q for %s", clip(namespace), kind.Plural)
	}
	q := query{kind: kind, namespace: namespace}
	if q.labels, err = object.ParseSelector(labels); err != nil {
		return query{}, invalid("labelSelector", "for example app=hello,tier in (web,api),!old", "%w", err)
	}
	if q.fields, err = object.ParseFieldSelector(kind, fields); err != nil {
		return query{}, invalid("fieldSelector", "for example metadata.name=hello", "%w", err)
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q", kind.Name, namespace, labels, fields))
	q.print = [8]byte(sum[:8])
	return q, nil
}

func (q query) prefix() string { return object.Prefix(q.kind, q.namespace) }

// everything tells that the query selects all objects under its prefix.
func (q query) everything() bool { return q.labels.Empty() && q.fields.Empty() }

func (q query) matches(m object.Message) bool {
	return q.labels.Matches(m.GetMetadata().GetLabels()) && q.fields.Matches(m)
}

// single is the one key that can match, if there is only one.
func (q query) single() (string, bool) {
	name, ok := q.fields.Exact("metadata.name")
	if !ok || q.kind.Namespaced && q.namespace == "" {
		return "", false
	}
	return object.Key(q.kind, q.namespace, name), true
}

// selectFrom yields the matching objects of a view from a key on, in key order.
// indexed tells that the view is the newest: older ones have no indexes.
func (q query) selectFrom(view store.View, from string, indexed bool) iter.Seq2[store.KV, object.Message] {
	return func(yield func(store.KV, object.Message) bool) {
		for kv := range q.candidates(view, from, indexed) {
			m, ok := kv.Object.(object.Message)
			if !ok || kv.Key < from || !q.matches(m) || !q.within(m) {
				continue
			}
			if !yield(kv, m) {
				return
			}
		}
	}
}

func (q query) within(m object.Message) bool {
	return object.KindOf(m).Name == q.kind.Name && (q.namespace == "" || m.GetMetadata().GetNamespace() == q.namespace)
}

// candidates uses the narrowest access there is; selectFrom checks everything
// again.
func (q query) candidates(view store.View, from string, indexed bool) iter.Seq[store.KV] {
	if key, ok := q.single(); ok {
		return func(yield func(store.KV) bool) {
			if kv, found := view.Get(key); found {
				yield(kv)
			}
		}
	}
	if node, ok := q.fields.Exact("spec.nodeName"); ok && node != "" && indexed {
		return view.ByIndex(object.IndexNode, node)
	}
	if key, value, ok := q.labels.Exact(); ok && indexed && (q.namespace != "" || !q.kind.Namespaced) {
		e := object.LabelIndex(q.kind, q.namespace, key, value)
		return view.ByIndex(e.Index, e.Value)
	}
	return view.Range(from, prefixEnd(q.prefix()), 0)
}

// prefixEnd is the first key after all that begin with a prefix, which ends in
// a slash.
func prefixEnd(prefix string) string { return prefix[:len(prefix)-1] + string(prefix[len(prefix)-1]+1) }

// List reads a page.
func (o objectService) List(ctx context.Context, req *balsav1.ListRequest) (*balsav1.ListResponse, error) {
	q, err := newQuery(req.GetKind(), req.GetNamespace(), req.GetLabelSelector(), req.GetFieldSelector())
	if err != nil {
		return nil, err
	}
	about(ctx, keyOf(q.kind, q.namespace, "*"))
	limit, err := o.pageLimit(req.GetLimit())
	if err != nil {
		return nil, err
	}
	view, from, err := o.pageStart(ctx, q, req)
	if err != nil {
		return nil, err
	}
	return o.page(ctx, q, view, from, limit)
}

func (o objectService) pageLimit(asked int32) (int, error) {
	switch {
	case asked == 0:
		return min(defaultPage, o.limits.ListItems), nil
	case asked < 0:
		return 0, invalid("limit", "leave it out", "found %d, which is negative", asked)
	case int(asked) > o.limits.ListItems:
		return 0, overLimit("ListItems", o.limits.ListItems, "ask for smaller pages and go on with metadata.continue", "limit %d", asked)
	}
	return int(asked), nil
}

// pageStart is the view and the first key of a page.
func (o objectService) pageStart(ctx context.Context, q query, req *balsav1.ListRequest) (store.View, string, error) {
	if req.GetContinue() == "" {
		view, err := o.view(ctx, q.kind.Space, req.GetRead())
		return view, q.prefix(), err
	}
	if req.GetRead().GetResourceVersion() != "" {
		return store.View{}, "", invalid("read.resourceVersion", "leave it out: continue goes on at its own revision", "found with continue")
	}
	rev, from, err := q.parseContinue(req.GetContinue())
	if err != nil {
		return store.View{}, "", err
	}
	view, err := o.viewAt(ctx, o.store.Space(q.kind.Space), rev)
	return view, from, err
}

func (o objectService) page(ctx context.Context, q query, view store.View, from string, limit int) (*balsav1.ListResponse, error) {
	res := &balsav1.ListResponse{Metadata: &balsav1.ListMeta{ResourceVersion: revisionString(view.Revision())}}
	size := 0
	indexed := view.Revision() == o.store.Space(q.kind.Space).View().Revision()
	for kv, m := range q.selectFrom(view, from, indexed) {
		if len(res.Items) == limit || len(res.Items) > 0 && size+len(kv.Value) > o.limits.ListBytes {
			res.Metadata.Continue = q.continueAt(view.Revision(), kv.Key)
			if q.everything() {
				res.Metadata.RemainingItemCount = proto.Int64(int64(view.Count(kv.Key, prefixEnd(q.prefix()))))
			}
			break
		}
		shown, err := o.shown(ctx, m)
		if err != nil {
			return nil, err
		}
		size += len(kv.Value)
		res.Items = append(res.Items, shown)
	}
	return res, nil
}

// A continue token, in URL-safe base64:
//
//	1 byte version | 8 bytes check | 8 bytes query | 8 bytes revision | next key
//
// The check is the beginning of the SHA-256 of what follows it: it tells damage
// from a token of another query. It needs no key: a forged token reads nothing
// that the query itself would not.
const (
	continueVersion = 1
	continueHeader  = 1 + 8 + 8 + 8
)

func (q query) continueAt(rev store.Revision, key string) string {
	body := append([]byte{}, q.print[:]...)
	body = binary.BigEndian.AppendUint64(body, uint64(rev))
	body = append(body, key...)
	sum := sha256.Sum256(body)
	token := append([]byte{continueVersion}, sum[:8]...)
	return base64.RawURLEncoding.EncodeToString(append(token, body...))
}

func (q query) parseContinue(text string) (store.Revision, string, error) {
	refuse := func(why string) (store.Revision, string, error) {
		return 0, "", invalid("continue", "begin again without continue", "%s", why)
	}
	token, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(token) < continueHeader || token[0] != continueVersion {
		return refuse("it is not a token that a server gave out")
	}
	body := token[9:]
	if sum := sha256.Sum256(body); string(sum[:8]) != string(token[1:9]) {
		return refuse("it was damaged on its way")
	}
	if string(body[:8]) != string(q.print[:]) {
		return refuse("it belongs to another query: kind, namespace and selectors must stay the same")
	}
	rev, key := store.Revision(binary.BigEndian.Uint64(body[8:16])), string(body[16:])
	if rev < 1 || key < q.prefix() || key >= prefixEnd(q.prefix()) {
		return refuse("it points outside of its query")
	}
	return rev, key, nil
}
