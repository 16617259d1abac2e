package store

import "unsafe"

// borrowed is the key of a command as the string that trees and spans know,
// without a copy. It is for looking up while the command is applied. What stays
// in a space is a string of its own, so that nothing that happens to a command
// afterwards can put a tree out of order.
func borrowed(key []byte) string { return unsafe.String(unsafe.SliceData(key), len(key)) }

// keyed is a command that names a key, or a range of them.
type keyed interface {
	GetKey() []byte
	GetRangeEnd() []byte
}

// spanIn is the span that a command names.
func spanIn(k keyed) span { return spanOf(borrowed(k.GetKey()), borrowed(k.GetRangeEnd())) }
