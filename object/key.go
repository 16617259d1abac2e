package object

import (
	"strings"
)

// Key is the store's key of an object: "pods/default/hello-x1", "nodes/n1".
func Key(kind Kind, namespace, name string) string {
	if !kind.Namespaced {
		return kind.Plural + "/" + name
	}
	return kind.Plural + "/" + namespace + "/" + name
}

// KeyOf is the key of a message, from its metadata.
func KeyOf(m Message) string {
	return Key(kinds[kindIndex(m)], m.GetMetadata().GetNamespace(), m.GetMetadata().GetName())
}

// ParseKey takes a key apart. ok is false for keys that hold no object, such as
// claims and system records, and for malformed ones.
func ParseKey(key string) (kind Kind, namespace, name string, ok bool) {
	plural, rest, found := strings.Cut(key, "/")
	if !found {
		return Kind{}, "", "", false
	}
	kind, ok = KindByPlural(plural)
	if !ok {
		return Kind{}, "", "", false
	}
	if kind.Namespaced {
		namespace, rest, found = strings.Cut(rest, "/")
		if !found || namespace == "" {
			return Kind{}, "", "", false
		}
	}
	if rest == "" || strings.Contains(rest, "/") {
		return Kind{}, "", "", false
	}
	return kind, namespace, rest, true
}

// Prefix is the beginning of the keys of a kind, in one namespace or, when
// namespace is empty, in all.
func Prefix(kind Kind, namespace string) string {
	if namespace == "" || !kind.Namespaced {
		return kind.Plural + "/"
	}
	return kind.Plural + "/" + namespace + "/"
}

// Describe names an object in a sentence: `pod "default/hello"`.
func Describe(m Message) string {
	name := m.GetMetadata().GetName()
	if name == "" && m.GetMetadata().GetGenerateName() != "" {
		name = m.GetMetadata().GetGenerateName() + "*"
	}
	return DescribeKey(kinds[kindIndex(m)], m.GetMetadata().GetNamespace(), name)
}

// withArticle is a kind's name in a sentence: "a Pod", "an AddressPool".
func withArticle(name string) string {
	if strings.Contains("AEIO", name[:1]) {
		return "an " + name
	}
	return "a " + name
}

// DescribeKey is Describe for an object of which only the key is known.
func DescribeKey(kind Kind, namespace, name string) string {
	if kind.Namespaced && namespace != "" {
		name = namespace + "/" + name
	}
	return kind.Singular + ` "` + name + `"`
}
