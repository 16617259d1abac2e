package main

import (
	"fmt"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/object"
)

// target is what a command line names: a kind, and objects of it unless it names
// none.
type target struct {
	kind  object.Kind
	names []string
}

// targets reads kubectl's ways to name things: "pods", "pods,services",
// "pod NAME NAME", "pod/NAME deployment/NAME".
func targets(args []string) ([]target, error) {
	if len(args) == 0 {
		return nil, &usageError{fmt.Errorf("name a kind, for example pods, or an object, for example pod/NAME; kinds are %s", strings.Join(object.KindNames(), ", "))}
	}
	if strings.Contains(args[0], "/") {
		return slashed(args)
	}
	var found []target
	for _, name := range strings.Split(args[0], ",") {
		kind, err := kindNamed(name)
		if err != nil {
			return nil, err
		}
		found = append(found, target{kind: kind, names: args[1:]})
	}
	return found, nil
}

func slashed(args []string) ([]target, error) {
	var found []target
	for _, arg := range args {
		name, object, ok := strings.Cut(arg, "/")
		if !ok || object == "" {
			return nil, &usageError{fmt.Errorf("%q is not KIND/NAME; do not mix the ways to name things", arg)}
		}
		kind, err := kindNamed(name)
		if err != nil {
			return nil, err
		}
		found = append(found, target{kind: kind, names: []string{object}})
	}
	return found, nil
}

func kindNamed(name string) (object.Kind, error) {
	kind, ok := object.KindByName(name)
	if !ok {
		return kind, &usageError{fmt.Errorf("%q is no kind; kinds are %s", name, strings.Join(object.KindNames(), ", "))}
	}
	return kind, nil
}

// one reads a command line that names exactly one object.
func one(args []string) (object.Kind, string, error) {
	found, err := targets(args)
	if err != nil {
		return object.Kind{}, "", err
	}
	if len(found) != 1 || len(found[0].names) != 1 {
		return object.Kind{}, "", &usageError{fmt.Errorf("name one object, for example deployment/hello")}
	}
	return found[0].kind, found[0].names[0], nil
}

// namespaceOf is where to look for objects of a kind.
func (a *app) namespaceOf(kind object.Kind) string {
	if kind.Namespaced {
		return a.namespace
	}
	return ""
}

func unwrapAll(items []*balsav1.Object) ([]object.Message, error) {
	messages := make([]object.Message, 0, len(items))
	for _, item := range items {
		message, err := object.Unwrap(item)
		if err != nil {
			return nil, err
		}
		messages = append(messages, message)
	}
	return messages, nil
}

// short names an object as every command prints it: "deployment/hello".
func short(m object.Message) string {
	return object.KindOf(m).Singular + "/" + m.GetMetadata().GetName()
}
