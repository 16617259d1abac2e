package pod

import (
	"fmt"
	"slices"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

// Environment is a container's, resolved.
type Environment struct {
	// Vars are in the order of first mention; the last value of a name wins.
	Vars []runtime.EnvVar
	// Skipped are keys of ConfigMaps and Secrets that are no variable's name.
	Skipped []string
}

// environment resolves a container's variables: envFrom first, then env, which
// may refer to what stands before it. An error names what is missing.
func environment(podWithStatus *balsav1.Pod, c *balsav1.Container, sources Sources, node Node) (Environment, error) {
	e := envBuilder{at: map[string]int{}, own: c, node: node}
	for _, from := range c.GetEnvFrom() {
		if err := e.from(podWithStatus.GetMetadata().GetNamespace(), from, sources); err != nil {
			return Environment{}, err
		}
	}
	for _, v := range c.GetEnv() {
		if err := e.variable(podWithStatus, v, sources); err != nil {
			return Environment{}, err
		}
	}
	return e.Environment, nil
}

type envBuilder struct {
	Environment
	at   map[string]int
	own  *balsav1.Container
	node Node
}

// lookup finds a variable's value.
func (e Environment) lookup() func(string) (string, bool) {
	values := make(map[string]string, len(e.Vars))
	for _, v := range e.Vars {
		values[v.Name] = v.Value
	}
	return func(name string) (string, bool) { value, ok := values[name]; return value, ok }
}

func (e *envBuilder) set(name, value string) {
	if i, ok := e.at[name]; ok {
		e.Vars[i].Value = value
		return
	}
	e.at[name] = len(e.Vars)
	e.Vars = append(e.Vars, runtime.EnvVar{Name: name, Value: value})
}

func (e *envBuilder) lookup(name string) (string, bool) {
	i, ok := e.at[name]
	if !ok {
		return "", false
	}
	return e.Vars[i].Value, true
}

func (e *envBuilder) from(namespace string, from *balsav1.EnvFromSource, sources Sources) error {
	if ref := from.GetConfigMapRef(); ref != nil {
		m, ok := sources.ConfigMaps[ref.GetName()]
		if !ok && !ref.GetOptional() {
			return fmt.Errorf("configmap %q not found", namespace+"/"+ref.GetName())
		}
		e.all("ConfigMap "+ref.GetName(), from.GetPrefix(), m.GetData())
		return nil
	}
	ref := from.GetSecretRef()
	s, ok := sources.Secrets[ref.GetName()]
	if !ok && !ref.GetOptional() {
		return fmt.Errorf("secret %q not found", namespace+"/"+ref.GetName())
	}
	data := make(map[string]string, len(s.GetData()))
	for key, value := range s.GetData() {
		data[key] = string(value)
	}
	e.all("Secret "+ref.GetName(), from.GetPrefix(), data)
	return nil
}

// all takes every key of a source, sorted, so that the outcome is always the
// same.
func (e *envBuilder) all(source, prefix string, data map[string]string) {
	for _, key := range sortedKeys(data) {
		name := prefix + key
		if !isVariableName(name) {
			e.Skipped = append(e.Skipped, source+" key "+key)
			continue
		}
		e.set(name, data[key])
	}
}

func (e *envBuilder) variable(pod *balsav1.Pod, v *balsav1.EnvVar, sources Sources) error {
	from := v.GetValueFrom()
	switch {
	case from == nil:
		e.set(v.GetName(), Expand(v.GetValue(), e.lookup))
	case from.GetFieldRef() != nil:
		ref, ok := object.ParseFieldRef(from.GetFieldRef().GetFieldPath())
		if !ok {
			return fmt.Errorf("env %s: field %q is not known", v.GetName(), from.GetFieldRef().GetFieldPath())
		}
		e.set(v.GetName(), ref.Value(pod))
	case from.GetResourceFieldRef() != nil:
		value, err := resourceField(pod.GetSpec(), from.GetResourceFieldRef(), e.own, e.node)
		if err != nil {
			return fmt.Errorf("env %s: %w", v.GetName(), err)
		}
		e.set(v.GetName(), value)
	case from.GetConfigMapKeyRef() != nil:
		ref := from.GetConfigMapKeyRef()
		m, ok := sources.ConfigMaps[ref.GetName()]
		value, has := m.GetData()[ref.GetKey()]
		return e.key(pod, v.GetName(), "configmap", ref, ok, has, value)
	case from.GetSecretKeyRef() != nil:
		ref := from.GetSecretKeyRef()
		s, ok := sources.Secrets[ref.GetName()]
		value, has := s.GetData()[ref.GetKey()]
		return e.key(pod, v.GetName(), "secret", ref, ok, has, string(value))
	}
	return nil
}

// key sets a variable from a key that is there, or says what is missing.
func (e *envBuilder) key(pod *balsav1.Pod, name, kind string, ref *balsav1.KeySelector, there, has bool, value string) error {
	object := fmt.Sprintf("%s %q", kind, pod.GetMetadata().GetNamespace()+"/"+ref.GetName())
	switch {
	case has && strings.ContainsRune(value, 0):
		return fmt.Errorf("env %s: key %q of %s holds a NUL byte, which no variable can", name, ref.GetKey(), object)
	case has:
		e.set(name, value)
		return nil
	case ref.GetOptional():
		return nil
	case there:
		return fmt.Errorf("env %s: key %q not found in %s", name, ref.GetKey(), object)
	default:
		return fmt.Errorf("env %s: %s not found (key %q of it is wanted)", name, object, ref.GetKey())
	}
}

// Expand replaces $(NAME) by the value of a variable that is known; one that is
// not stays as it is, and $$ stands for $, as in Kubernetes.
func Expand(s string, lookup func(string) (string, bool)) string {
	var out strings.Builder
	for i := 0; i < len(s); {
		j := strings.IndexByte(s[i:], '$')
		if j < 0 || i+j+1 == len(s) {
			out.WriteString(s[i:])
			break
		}
		out.WriteString(s[i : i+j])
		text, used := reference(s[i+j:], lookup)
		out.WriteString(text)
		i += j + used
	}
	return out.String()
}

// reference reads what begins with $ and has at least one more byte.
func reference(s string, lookup func(string) (string, bool)) (text string, used int) {
	switch s[1] {
	case '$':
		return "$", 2
	case '(':
		name, _, closed := strings.Cut(s[2:], ")")
		if !closed {
			return "$(", 2
		}
		if value, ok := lookup(name); ok {
			return value, len(name) + 3
		}
		return s[:len(name)+3], len(name) + 3
	default:
		return s[:2], 2
	}
}

func expandAll(list []string, lookup func(string) (string, bool)) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = Expand(s, lookup)
	}
	return out
}

// isVariableName is Kubernetes' rule for names that come from keys: printable
// ASCII without "=".
func isVariableName(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' || s[i] == '=' {
			return false
		}
	}
	return s != ""
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
