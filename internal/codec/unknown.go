package codec

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// RefuseUnknown returns an *Error with the path and number of every field, at
// any depth, that the program does not know; nil when there is none.
func RefuseUnknown(m proto.Message) error {
	var w unknownWalk
	w.message(m.ProtoReflect(), &step{})
	if len(w.issues) > 0 {
		// The walk's order is not defined.
		slices.SortStableFunc(w.issues, func(a, b Issue) int { return strings.Compare(a.Path, b.Path) })
		return &Error{Issues: w.issues}
	}
	return nil
}

type unknownWalk struct{ issues []Issue }

func (w *unknownWalk) message(m protoreflect.Message, at *step) {
	w.here(m.GetUnknown(), at)
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if fd.Message() == nil || fd.IsMap() && fd.MapValue().Message() == nil {
			return true
		}
		here := &step{parent: at, text: fd.JSONName()}
		switch {
		case fd.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				w.message(v.Message(), &step{parent: here, kind: keyStep, text: k.String()})
				return len(w.issues) < maxIssues
			})
		case fd.IsList():
			for i := range v.List().Len() {
				w.message(v.List().Get(i).Message(), &step{parent: here, kind: indexStep, index: i})
			}
		default:
			w.message(v.Message(), here)
		}
		return len(w.issues) < maxIssues
	})
}

func (w *unknownWalk) here(unknown protoreflect.RawFields, at *step) {
	seen := protowire.Number(0)
	for len(unknown) > 0 && len(w.issues) < maxIssues {
		number, _, n := protowire.ConsumeField(unknown)
		if n < 0 {
			return // protobuf has checked what it kept
		}
		unknown = unknown[n:]
		if number == seen {
			continue
		}
		seen = number
		w.issues = append(w.issues, Issue{
			Path:    at.String(),
			Message: fmt.Sprintf("unknown field number %d", number),
			Hint:    "use a client of this server's version, or an older one",
		})
	}
}
