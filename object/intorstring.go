package object

import (
	"fmt"
	"strconv"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// IntValue makes an IntOrString of a number.
func IntValue(n int32) *balsav1.IntOrString {
	return &balsav1.IntOrString{Value: &balsav1.IntOrString_Int{Int: n}}
}

// StringValue makes an IntOrString of a text.
func StringValue(s string) *balsav1.IntOrString {
	return &balsav1.IntOrString{Value: &balsav1.IntOrString_String_{String_: s}}
}

// ResolveIntOrPercent is a number as it is, or a percentage of total, rounded up
// or down to a whole number. Absent is 0.
func ResolveIntOrPercent(v *balsav1.IntOrString, total int32, roundUp bool) (int32, error) {
	text, isString := v.GetValue().(*balsav1.IntOrString_String_)
	if !isString {
		return v.GetInt(), nil
	}
	percent, err := parsePercent(text.String_)
	if err != nil {
		return 0, err
	}
	product := int64(percent) * int64(total)
	if roundUp {
		product += 99
	}
	return int32(min(product/100, maxInt32)), nil
}

const maxInt32 = 1<<31 - 1

// parsePercent reads "25%"; the number has at most five digits.
func parsePercent(s string) (int32, error) {
	digits, found := strings.CutSuffix(s, "%")
	n, err := strconv.ParseUint(digits, 10, 31)
	if !found || err != nil || len(digits) > 5 {
		return 0, fmt.Errorf("found %s, allowed: a percentage such as \"25%%\"", quoted(s))
	}
	return int32(n), nil
}

// RolloutBounds is how many pods beyond its replicas, and how many fewer, a
// Deployment's rolling update may have. They are never both 0, which would let
// it do nothing: then one may be missing.
func RolloutBounds(d *balsav1.Deployment) (surge, unavailable int32, err error) {
	replicas := d.GetSpec().GetReplicas()
	update := d.GetSpec().GetStrategy().GetRollingUpdate()
	if surge, err = ResolveIntOrPercent(update.GetMaxSurge(), replicas, true); err != nil {
		return 0, 0, fmt.Errorf("spec.strategy.rollingUpdate.maxSurge: %w", err)
	}
	if unavailable, err = ResolveIntOrPercent(update.GetMaxUnavailable(), replicas, false); err != nil {
		return 0, 0, fmt.Errorf("spec.strategy.rollingUpdate.maxUnavailable: %w", err)
	}
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, min(unavailable, replicas), nil
}
