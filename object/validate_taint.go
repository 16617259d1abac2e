package object

import (
	"strconv"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Limits of taints and tolerations.
const (
	maxTaints      = 128
	maxTolerations = 256
)

func (c *check) tolerations(path string, list []*balsav1.Toleration) {
	if !c.atMost(path, len(list), maxTolerations, "tolerations") {
		return
	}
	for i, t := range list {
		here := index(path, i)
		if op := t.GetOperator(); op != "" {
			c.oneOf(field(here, "operator"), op, []string{TolerateEqual, TolerateExists}, "Lt", "Gt")
		}
		switch {
		case t.GetKey() != "":
			c.text(field(here, "key"), t.GetKey(), labelKeyProblem(t.GetKey()))
		case t.GetOperator() != TolerateExists:
			c.required(field(here, "key"), "or say operator: Exists, which without a key tolerates every taint")
		}
		switch {
		case t.GetOperator() != TolerateExists:
			c.text(field(here, "value"), t.GetValue(), labelValueProblem(t.GetValue()))
		case t.GetValue() != "":
			c.add(Violation{Field: field(here, "value"), Message: "has no meaning with operator Exists", Hint: "remove the field"})
		}
		c.optional(field(here, "effect"), t.GetEffect(), TaintNoSchedule, TaintPreferNoSchedule, TaintNoExecute)
		if t.TolerationSeconds != nil && t.GetEffect() != TaintNoExecute {
			c.add(Violation{
				Field: field(here, "tolerationSeconds"), Message: "is for the effect NoExecute only", Found: strconv.FormatInt(t.GetTolerationSeconds(), 10),
				Hint: "set effect: NoExecute, or remove the field",
			})
		}
	}
}

func (c *check) taints(path string, list []*balsav1.Taint) {
	if !c.atMost(path, len(list), maxTaints, "taints") {
		return
	}
	seen := map[string]bool{}
	for i, t := range list {
		here := index(path, i)
		if t.GetKey() == "" {
			c.required(field(here, "key"), "")
		} else {
			c.text(field(here, "key"), t.GetKey(), labelKeyProblem(t.GetKey()))
		}
		c.text(field(here, "value"), t.GetValue(), labelValueProblem(t.GetValue()))
		c.oneOf(field(here, "effect"), t.GetEffect(), []string{TaintNoSchedule, TaintPreferNoSchedule, TaintNoExecute})
		pair := t.GetKey() + ":" + t.GetEffect()
		if seen[pair] {
			c.duplicate(here, quoted(pair))
		}
		seen[pair] = true
	}
}

// taintTimes: only the server says when a taint was added.
func (c *check) taintTimes(path string, old, next []*balsav1.Taint) {
	for i, t := range next {
		if t.GetTimeAdded() == nil {
			continue
		}
		known := false
		for _, o := range old {
			known = known || o.GetKey() == t.GetKey() && o.GetEffect() == t.GetEffect() && proto.Equal(o.GetTimeAdded(), t.GetTimeAdded())
		}
		if !known {
			c.add(Violation{Field: field(index(path, i), "timeAdded"), Message: "is written by the server only", Hint: "remove the field"})
		}
	}
}
