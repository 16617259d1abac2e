package object

import (
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

func (c *check) env(path string, env []*balsav1.EnvVar) {
	if !c.atMost(path, len(env), maxEnv, "variables") {
		return
	}
	names := map[string]bool{}
	for i, e := range env {
		here := index(path, i)
		if e.GetName() == "" {
			c.required(field(here, "name"), "")
		} else {
			c.text(field(here, "name"), e.GetName(), envNameProblem(e.GetName()))
			if names[e.GetName()] {
				c.duplicate(field(here, "name"), quoted(e.GetName()))
			}
		}
		names[e.GetName()] = true
		c.noNUL(field(here, "value"), e.GetValue())
		if e.GetValueFrom() == nil {
			continue
		}
		if e.GetValue() != "" {
			c.add(Violation{Field: field(here, "valueFrom"), Message: "excludes value, which is also set", Allowed: "one of the two"})
		}
		c.valueFrom(field(here, "valueFrom"), e.GetValueFrom())
	}
}

func (c *check) valueFrom(path string, from *balsav1.EnvVarSource) {
	c.exactlyOne(path, []string{"fieldRef", "configMapKeyRef", "secretKeyRef"},
		from.GetFieldRef() != nil, from.GetConfigMapKeyRef() != nil, from.GetSecretKeyRef() != nil)
	if ref := from.GetFieldRef(); ref != nil {
		c.oneOf(field(path, "fieldRef.apiVersion"), ref.GetApiVersion(), []string{defaultFieldRefAPIVersion})
		c.fieldPath(field(path, "fieldRef.fieldPath"), ref.GetFieldPath())
	}
	c.keySelector(field(path, "configMapKeyRef"), from.GetConfigMapKeyRef())
	c.keySelector(field(path, "secretKeyRef"), from.GetSecretKeyRef())
}

// exactlyOne checks that one of several alternatives is given.
func (c *check) exactlyOne(path string, names []string, given ...bool) {
	var set []string
	for i, g := range given {
		if g {
			set = append(set, names[i])
		}
	}
	switch len(set) {
	case 1:
	case 0:
		c.add(Violation{Field: path, Message: "is empty", Allowed: "exactly one of " + strings.Join(names, ", ")})
	default:
		c.add(Violation{Field: path, Message: "has more than one source", Found: strings.Join(set, ", "), Allowed: "exactly one of " + strings.Join(names, ", ")})
	}
}

const allowedFieldPath = "metadata.name, metadata.namespace, metadata.uid, metadata.labels['<key>'], metadata.annotations['<key>'], spec.nodeName, status.hostIP, status.podIP"

func (c *check) fieldPath(path, value string) {
	if _, ok := ParseFieldRef(value); !ok {
		c.text(path, value, allowedFieldPath)
	}
}

func (c *check) keySelector(path string, ref *balsav1.KeySelector) {
	if ref == nil {
		return
	}
	c.refName(field(path, "name"), ref.GetName())
	if ref.GetKey() == "" {
		c.required(field(path, "key"), "")
		return
	}
	c.text(field(path, "key"), ref.GetKey(), dataKeyProblem(ref.GetKey()))
}

func (c *check) refName(path, name string) {
	if name == "" {
		c.required(path, "")
		return
	}
	c.text(path, name, dnsSubdomainProblem(name))
}

func (c *check) envFrom(path string, sources []*balsav1.EnvFromSource) {
	if !c.atMost(path, len(sources), maxEnv, "sources") {
		return
	}
	for i, s := range sources {
		here := index(path, i)
		if s.GetPrefix() != "" {
			c.text(field(here, "prefix"), s.GetPrefix(), envNameProblem(s.GetPrefix()))
		}
		c.exactlyOne(here, []string{"configMapRef", "secretRef"}, s.GetConfigMapRef() != nil, s.GetSecretRef() != nil)
		if ref := s.GetConfigMapRef(); ref != nil {
			c.refName(field(here, "configMapRef.name"), ref.GetName())
		}
		if ref := s.GetSecretRef(); ref != nil {
			c.refName(field(here, "secretRef.name"), ref.GetName())
		}
	}
}

func (c *check) probe(path string, p *balsav1.Probe, ports []*balsav1.ContainerPort) {
	if p == nil {
		return
	}
	if p.GetHttpGet() == nil {
		c.required(field(path, "httpGet"), "a probe asks by HTTP; other ways are not supported yet")
	} else {
		c.httpGet(field(path, "httpGet"), p.GetHttpGet(), ports)
	}
	c.between(field(path, "initialDelaySeconds"), int64(p.GetInitialDelaySeconds()), 0, maxSeconds)
	c.between(field(path, "timeoutSeconds"), int64(p.GetTimeoutSeconds()), 1, maxSeconds)
	c.between(field(path, "periodSeconds"), int64(p.GetPeriodSeconds()), 1, maxSeconds)
	c.between(field(path, "successThreshold"), int64(p.GetSuccessThreshold()), 1, maxInt32)
	c.between(field(path, "failureThreshold"), int64(p.GetFailureThreshold()), 1, maxInt32)
}

func (c *check) httpGet(path string, get *balsav1.HTTPGetAction, ports []*balsav1.ContainerPort) {
	if !strings.HasPrefix(get.GetPath(), "/") || strings.ContainsAny(get.GetPath(), " \r\n\x00") {
		c.text(field(path, "path"), get.GetPath(), "a path that begins with / and has no spaces")
	}
	c.oneOf(field(path, "scheme"), get.GetScheme(), []string{SchemeHTTP}, "HTTPS")
	c.probePort(field(path, "port"), get.GetPort(), ports)
	if !c.atMost(field(path, "httpHeaders"), len(get.GetHttpHeaders()), maxHTTPHeaders, "headers") {
		return
	}
	for i, h := range get.GetHttpHeaders() {
		here := index(field(path, "httpHeaders"), i)
		if !isHeaderName(h.GetName()) {
			c.text(field(here, "name"), h.GetName(), "letters, digits and -")
		}
		if strings.ContainsAny(h.GetValue(), "\r\n\x00") {
			c.add(Violation{Field: field(here, "value"), Message: "contains a line break", Allowed: "one line"})
		}
	}
}

func isHeaderName(s string) bool {
	for i := range len(s) {
		if !isAlphanumeric(s[i]) && !strings.Contains("!#$%&'*+-.^_`|~", s[i:i+1]) {
			return false
		}
	}
	return s != ""
}

func (c *check) probePort(path string, port *balsav1.IntOrString, ports []*balsav1.ContainerPort) {
	name, isName := port.GetValue().(*balsav1.IntOrString_String_)
	switch {
	case port.GetValue() == nil:
		c.required(path, "")
	case !isName:
		c.port(path, port.GetInt())
	default:
		for _, p := range ports {
			if p.GetName() == name.String_ {
				return
			}
		}
		c.add(Violation{Field: path, Message: "names no port of the container", Found: quoted(name.String_), Allowed: "a number, or one of the container's port names" + portNames(ports)})
	}
}

func portNames(ports []*balsav1.ContainerPort) string {
	var names []string
	for _, p := range ports {
		if p.GetName() != "" {
			names = append(names, p.GetName())
		}
	}
	if len(names) == 0 {
		return " (it has none)"
	}
	return ": " + strings.Join(names, ", ")
}

// FieldRef is a field of a pod that a variable takes its value from.
type FieldRef struct {
	// Field is for example "status.podIP" or "metadata.labels".
	Field string
	// Key is the label or annotation, else empty.
	Key string
}

// ParseFieldRef reads a fieldPath such as "metadata.labels['app']".
func ParseFieldRef(path string) (FieldRef, bool) {
	switch path {
	case "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "status.hostIP", "status.podIP":
		return FieldRef{Field: path}, true
	}
	for _, name := range []string{"metadata.labels", "metadata.annotations"} {
		inside, ok := strings.CutPrefix(path, name+"['")
		if !ok {
			continue
		}
		key, ok := strings.CutSuffix(inside, "']")
		if ok && labelKeyProblem(key) == "" {
			return FieldRef{Field: name, Key: key}, true
		}
	}
	return FieldRef{}, false
}

// Value reads the field from a pod; "" when it is not known yet.
func (r FieldRef) Value(pod *balsav1.Pod) string {
	switch r.Field {
	case "metadata.name":
		return pod.GetMetadata().GetName()
	case "metadata.namespace":
		return pod.GetMetadata().GetNamespace()
	case "metadata.uid":
		return pod.GetMetadata().GetUid()
	case "metadata.labels":
		return pod.GetMetadata().GetLabels()[r.Key]
	case "metadata.annotations":
		return pod.GetMetadata().GetAnnotations()[r.Key]
	case "spec.nodeName":
		return pod.GetSpec().GetNodeName()
	case "status.hostIP":
		return pod.GetStatus().GetHostIp()
	case "status.podIP":
		return pod.GetStatus().GetPodIp()
	}
	return ""
}
