package apiserver

import (
	"context"
	"fmt"
	"strconv"

	"connectrpc.com/connect"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
	"github.com/balsa-run/balsa/pki"
	"github.com/balsa-run/balsa/store"
)

// objectService is balsa.v1.ObjectService. One file a verb: object_read.go,
// object_watch.go, object_create.go, object_update.go, object_apply.go and
// object_delete.go; object_write.go is what the writing ones share.
type objectService struct{ *Server }

// kindNamed finds a kind by any of its names.
func kindNamed(name string) (object.Kind, error) {
	if kind, ok := object.KindByName(name); ok {
		return kind, nil
	}
	p := invalid("kind", "balsa get --help lists the kinds", "found %q, which is no kind", clip(name))
	p.violations[0].Allowed = fmt.Sprint(object.KindNames())
	return object.Kind{}, p
}

// target is the object that a Get or Delete names; an empty namespace is the
// default one.
func target(kindName, namespace, name string) (object.Kind, string, error) {
	kind, err := kindNamed(kindName)
	if err != nil {
		return object.Kind{}, "", err
	}
	switch {
	case name == "":
		return object.Kind{}, "", invalid("name", "give the name of one "+kind.Singular, "it is empty")
	case !kind.Namespaced && namespace != "":
		return object.Kind{}, "", invalid("namespace", "leave it out: a "+kind.Singular+" belongs to the cluster", "found %q for a %s", clip(namespace), kind.Singular)
	case kind.Namespaced && namespace == "":
		namespace = object.DefaultNamespace
	}
	return kind, namespace, nil
}

// writerOf says on whose behalf a caller writes.
func writerOf(id pki.Identity) object.Writer {
	if id.Role == pki.RoleServer {
		return object.System
	}
	return object.User
}

// mayWrite refuses kinds that others derive: law 2, each field has one writer.
func mayWrite(id pki.Identity, kind object.Kind) error {
	if id.Role == pki.RoleServer {
		return nil
	}
	var from, hint string
	switch kind.Name {
	case "EndpointSlice":
		from, hint = "services and pods", "change the Service or its pods instead"
	case "NetworkPolicySlice":
		from, hint = "networkpolicies, pods and namespaces", "change the NetworkPolicy, or the labels of the pods or namespaces, instead"
	default:
		return nil
	}
	return &problem{
		code: connect.CodePermissionDenied, reason: "Derived", applied: notApplied, hint: hint,
		err: fmt.Errorf("%s may not write %s: the servers derive them from %s", id, kind.Plural, from),
	}
}

// mayReport refuses statuses that the servers derive and that claims hang on. That of
// a load balancer belongs to whoever its class names.
func mayReport(id pki.Identity, m object.Message) error {
	if id.Role == pki.RoleServer {
		return nil
	}
	var hint string
	switch m := m.(type) {
	case *balsav1.AddressPool, *balsav1.PodDisruptionBudget:
		hint = "change the spec: the status follows"
	case *balsav1.Service:
		if m.GetSpec().GetLoadBalancerClass() != "" {
			return nil
		}
		hint = "give the Service a spec.loadBalancerClass, and the controller of that class writes its status"
	default:
		return nil
	}
	return &problem{
		code: connect.CodePermissionDenied, reason: "Derived", applied: notApplied, hint: hint, object: keyOfMessage(m),
		err: fmt.Errorf("%s may not write the status of %s: the servers derive it", id, object.Describe(m)),
	}
}

// mayMake refuses kinds that come into being in another way.
func mayMake(id pki.Identity, kind object.Kind) error {
	if kind.Name != "Node" || id.Role == pki.RoleServer {
		return nil
	}
	return &problem{
		code: connect.CodePermissionDenied, reason: "Derived", applied: notApplied,
		hint: "start an agent with a join token: balsa token create --role agent",
		err:  fmt.Errorf("%s may not create nodes: an agent registers its own", id),
	}
}

// parseRevision reads a resourceVersion.
func parseRevision(field, text string) (store.Revision, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 {
		return 0, invalid(field, "use a resource version that a server has given out", "found %q, which is no resource version", clip(text))
	}
	return store.Revision(n), nil
}

// clip keeps a caller's text in messages short.
func clip(s string) string {
	const longest = 80
	if len(s) <= longest {
		return s
	}
	return s[:longest] + "…"
}

// shown is a message as the caller may see it: Secrets opened, or without their
// values. What is not a Secret is shared, not copied.
func (s *Server) shown(ctx context.Context, m object.Message) (*balsav1.Object, error) {
	secret, ok := m.(*balsav1.Secret)
	if !ok {
		return object.Wrap(m), nil
	}
	id, _ := pki.IdentityFrom(ctx)
	if id.Role != pki.RoleAdmin && id.Role != pki.RoleServer {
		return object.Wrap(withheld(secret)), nil
	}
	opened, err := s.openSecret(secret)
	if err != nil {
		return nil, err
	}
	return object.Wrap(opened), nil
}
