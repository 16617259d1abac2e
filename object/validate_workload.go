package object

import (
	"strconv"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Limits of workloads.
const (
	maxReplicas        = 100_000
	maxRevisionHistory = 1_000
)

func (c *check) replicaSet(spec *balsav1.ReplicaSetSpec) {
	if spec == nil {
		c.required("spec", "")
		return
	}
	c.between("spec.replicas", int64(spec.GetReplicas()), 0, maxReplicas)
	c.between("spec.minReadySeconds", int64(spec.GetMinReadySeconds()), 0, maxSeconds)
	c.template("spec.template", spec.GetTemplate(), spec.GetSelector())
}

func (c *check) deployment(spec *balsav1.DeploymentSpec) {
	if spec == nil {
		c.required("spec", "")
		return
	}
	c.between("spec.replicas", int64(spec.GetReplicas()), 0, maxReplicas)
	c.template("spec.template", spec.GetTemplate(), spec.GetSelector())
	c.strategy("spec.strategy", spec.GetStrategy())
	c.between("spec.minReadySeconds", int64(spec.GetMinReadySeconds()), 0, maxSeconds)
	c.between("spec.revisionHistoryLimit", int64(spec.GetRevisionHistoryLimit()), 0, maxRevisionHistory)
	c.between("spec.progressDeadlineSeconds", int64(spec.GetProgressDeadlineSeconds()), 1, maxSeconds)
	c.optional("spec.onFailure", spec.GetOnFailure(), OnFailureRollback, OnFailurePause)
	if deadline, ready := spec.GetProgressDeadlineSeconds(), spec.GetMinReadySeconds(); deadline <= ready {
		c.add(Violation{
			Field: "spec.progressDeadlineSeconds", Message: "is not longer than minReadySeconds, so that no update could make it",
			Found: strconv.Itoa(int(deadline)), Allowed: "more than " + strconv.Itoa(int(ready)),
		})
	}
}

// workloadSelector: a selector that did not match its own template would make
// pods for ever.
func (c *check) workloadSelector(ls *balsav1.LabelSelector, path string, labels map[string]string) {
	if len(ls.GetMatchLabels()) == 0 && len(ls.GetMatchExpressions()) == 0 {
		c.required("spec.selector", "repeat the template's labels in spec.selector.matchLabels")
		return
	}
	s, ok := c.selector("spec.selector", ls)
	if ok && !s.Matches(labels) {
		c.add(Violation{
			Field: path, Message: "does not match spec.selector", Found: quoted(SelectorFromLabels(labels).String()),
			Allowed: "labels that match " + quoted(s.String()), Hint: "give the template the labels of spec.selector.matchLabels",
		})
	}
}

func (c *check) strategy(path string, s *balsav1.DeploymentStrategy) {
	c.oneOf(field(path, "type"), s.GetType(), []string{StrategyRollingUpdate, StrategyRecreate})
	update := s.GetRollingUpdate()
	if s.GetType() != StrategyRollingUpdate {
		if update != nil {
			c.add(Violation{Field: field(path, "rollingUpdate"), Message: "has no meaning with type " + s.GetType(), Hint: "remove the field"})
		}
		return
	}
	unavailable, ok1 := c.intOrPercent(field(path, "rollingUpdate.maxUnavailable"), update.GetMaxUnavailable(), 100)
	surge, ok2 := c.intOrPercent(field(path, "rollingUpdate.maxSurge"), update.GetMaxSurge(), 10_000)
	if ok1 && ok2 && unavailable == 0 && surge == 0 {
		c.add(Violation{Field: field(path, "rollingUpdate.maxUnavailable"), Message: "is 0 as maxSurge is, so that no update could begin", Allowed: "at least one of the two above 0"})
	}
}

// intOrPercent checks a number or a percentage and returns it without its sign.
func (c *check) intOrPercent(path string, v *balsav1.IntOrString, highestPercent int64) (int64, bool) {
	before := len(c.found)
	text, isText := v.GetValue().(*balsav1.IntOrString_String_)
	if !isText {
		c.between(path, int64(v.GetInt()), 0, maxReplicas)
		return int64(v.GetInt()), len(c.found) == before
	}
	percent, err := parsePercent(text.String_)
	if err != nil {
		c.text(path, text.String_, `a number, or a percentage such as "25%"`)
		return 0, false
	}
	if int64(percent) > highestPercent {
		c.add(Violation{Field: path, Message: "is out of range", Found: quoted(text.String_), Allowed: `"0%" to "` + strconv.FormatInt(highestPercent, 10) + `%"`})
	}
	return int64(percent), len(c.found) == before
}
