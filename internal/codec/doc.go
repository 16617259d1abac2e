// Package codec turns protobuf messages into JSON and YAML in Kubernetes'
// conventions and back, and holds connect's codecs.
//
//	text --parse--> Tree (values with positions) --decode--> message
//	message --append--> JSON --parse--> Tree --> YAML
//
// It refuses what it does not understand: unknown fields (by name, with the
// nearest one), duplicate keys, values of another type, numbers that do not fit,
// text that two YAML versions read differently. It collects all of a text's
// faults, each with path, line and column. It never repeats a value of the wrong
// type or a broken base64 text in an error, since that may be a Secret's.
//
// It knows no kinds and no rules about values: those are in package object. It
// has no rules for floating-point fields and map keys other than strings, which
// no message of ours has (a test says so): meeting one is a panic.
package codec
