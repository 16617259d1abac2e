package object

import (
	"crypto/sha256"
	"fmt"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// LabelTemplateHash is the label that tells the pods of a Deployment's
// ReplicaSets apart.
const LabelTemplateHash = "pod-template-hash"

// hashLength is how many letters a template's hash has: 27^10 is 2^47.
const hashLength = 10

// TemplateHash names a pod template, without its label pod-template-hash.
// collisions is the Deployment's status.collisionCount: another one gives
// another name. Compare templates with TemplateEqual, not by name.
func TemplateHash(t *balsav1.PodTemplateSpec, collisions int32) string {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(withoutHashLabel(t))
	if err != nil {
		panic(fmt.Sprintf("object: hash template: %v", err)) // only invalid UTF-8, which no decoder lets in
	}
	h := sha256.New()
	h.Write(value)
	fmt.Fprintf(h, "/%d", collisions)
	sum := h.Sum(nil)
	out := make([]byte, hashLength)
	for i := range out {
		out[i] = suffixAlphabet[int(sum[i])%len(suffixAlphabet)]
	}
	return string(out)
}

// TemplateEqual tells whether two templates make the same pods, whatever their
// label pod-template-hash.
func TemplateEqual(a, b *balsav1.PodTemplateSpec) bool {
	return proto.Equal(withoutHashLabel(a), withoutHashLabel(b))
}

func withoutHashLabel(t *balsav1.PodTemplateSpec) *balsav1.PodTemplateSpec {
	if _, ok := t.GetMetadata().GetLabels()[LabelTemplateHash]; !ok {
		return t
	}
	dup := proto.CloneOf(t)
	delete(dup.Metadata.Labels, LabelTemplateHash)
	return dup
}
