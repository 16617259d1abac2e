package object

import (
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
)

func (c *check) env(path string, env []*balsav1.EnvVar, pod *podParts) {
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
		c.valueFrom(field(here, "valueFrom"), e.GetValueFrom(), pod)
	}
}

func (c *check) valueFrom(path string, from *balsav1.EnvVarSource, pod *podParts) {
	c.exactlyOne(path, []string{"fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef"},
		from.GetFieldRef() != nil, from.GetResourceFieldRef() != nil, from.GetConfigMapKeyRef() != nil, from.GetSecretKeyRef() != nil)
	if ref := from.GetFieldRef(); ref != nil {
		c.oneOf(field(path, "fieldRef.apiVersion"), ref.GetApiVersion(), []string{defaultFieldRefAPIVersion})
		c.fieldPath(field(path, "fieldRef.fieldPath"), ref.GetFieldPath())
	}
	c.resourceFieldRef(field(path, "resourceFieldRef"), from.GetResourceFieldRef(), pod, false)
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

const allowedFieldPath = "metadata.name, metadata.namespace, metadata.uid, metadata.labels['<key>'], metadata.annotations['<key>'], spec.nodeName, status.hostIP, status.hostIPs, status.podIP, status.podIPs"

func (c *check) fieldPath(path, value string) {
	if value == "spec.serviceAccountName" {
		c.add(Violation{Field: path, Message: "is not supported yet", Found: quoted(value), Allowed: allowedFieldPath})
		return
	}
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
