package revisions

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

// Ref names a ConfigMap or a Secret in the namespace of what refers to it.
type Ref struct{ Kind, Name string }

// String is "ConfigMap/web".
func (r Ref) String() string { return r.Kind + "/" + r.Name }

// ParseRef is the reverse of Ref.String.
func ParseRef(text string) (Ref, error) {
	kind, name, ok := strings.Cut(text, "/")
	if !ok || name == "" || kind != ConfigMap && kind != Secret {
		return Ref{}, fmt.Errorf("found %q, allowed: ConfigMap/NAME and Secret/NAME", text)
	}
	return Ref{kind, name}, nil
}

// Compare orders by kind and name.
func Compare(a, b Ref) int {
	return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Name, b.Name))
}

// Use is an object that a template refers to. Optional: nothing needs it to be
// there.
type Use struct {
	Ref
	Optional bool
}

// Uses lists what a template refers to by volumes, variables and imported
// environments of its containers, init containers and sidecars, each once and in
// order. Pull secrets are not among them.
func Uses(t *balsav1.PodTemplateSpec) []Use {
	optional := map[Ref]bool{}
	walk(t.GetSpec(), func(kind string, name *string, isOptional bool) {
		ref := Ref{kind, *name}
		was, known := optional[ref]
		optional[ref] = isOptional && (was || !known)
	})
	var uses []Use
	for ref, isOptional := range optional {
		uses = append(uses, Use{ref, isOptional})
	}
	slices.SortFunc(uses, func(a, b Use) int { return Compare(a.Ref, b.Ref) })
	return uses
}

// Renamed is a copy of a template in which the objects have other names. What
// names does not hold, or holds as "", stays as it is.
func Renamed(t *balsav1.PodTemplateSpec, names map[Ref]string) *balsav1.PodTemplateSpec {
	dup := proto.CloneOf(t)
	walk(dup.GetSpec(), func(kind string, name *string, _ bool) {
		if to := names[Ref{kind, *name}]; to != "" {
			*name = to
		}
	})
	return dup
}

// Original is the reverse of Renamed: a ReplicaSet's template with the names that
// the user wrote. pins is that of its annotation.
func Original(t *balsav1.PodTemplateSpec, pins map[Ref]string) *balsav1.PodTemplateSpec {
	back := map[Ref]string{}
	for ref, name := range pins {
		if name != "" {
			back[Ref{ref.Kind, name}] = ref.Name
		}
	}
	return Renamed(t, back)
}

// visit is called for every reference; name may be written.
type visit func(kind string, name *string, optional bool)

func (f visit) do(kind string, name *string, optional bool) {
	if *name != "" {
		f(kind, name, optional)
	}
}

func walk(spec *balsav1.PodSpec, f visit) {
	for _, v := range spec.GetVolumes() {
		walkVolume(v, f)
	}
	for _, c := range spec.GetInitContainers() {
		walkContainer(c, f)
	}
	for _, c := range spec.GetContainers() {
		walkContainer(c, f)
	}
}

func walkVolume(v *balsav1.Volume, f visit) {
	if m := v.GetConfigMap(); m != nil {
		f.do(ConfigMap, &m.Name, m.GetOptional())
	}
	if s := v.GetSecret(); s != nil {
		f.do(Secret, &s.SecretName, s.GetOptional())
	}
	for _, source := range v.GetProjected().GetSources() {
		if m := source.GetConfigMap(); m != nil {
			f.do(ConfigMap, &m.Name, m.GetOptional())
		}
		if s := source.GetSecret(); s != nil {
			f.do(Secret, &s.Name, s.GetOptional())
		}
	}
}

func walkContainer(c *balsav1.Container, f visit) {
	for _, from := range c.GetEnvFrom() {
		if m := from.GetConfigMapRef(); m != nil {
			f.do(ConfigMap, &m.Name, m.GetOptional())
		}
		if s := from.GetSecretRef(); s != nil {
			f.do(Secret, &s.Name, s.GetOptional())
		}
	}
	for _, e := range c.GetEnv() {
		if m := e.GetValueFrom().GetConfigMapKeyRef(); m != nil {
			f.do(ConfigMap, &m.Name, m.GetOptional())
		}
		if s := e.GetValueFrom().GetSecretKeyRef(); s != nil {
			f.do(Secret, &s.Name, s.GetOptional())
		}
	}
}
