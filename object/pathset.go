package object

import (
	"slices"
	"strings"
)

// pathSet is a sorted list of paths without duplicates.
type pathSet []string

func newPathSet(paths ...string) pathSet {
	return slices.Compact(slices.Sorted(slices.Values(paths)))
}

func (s pathSet) has(path string) bool {
	_, found := slices.BinarySearch(s, path)
	return found
}

// touches tells whether the set has a path or something below it.
func (s pathSet) touches(path string) bool { return s.has(path) || s.below(path) }

// below tells whether the set has something below a path.
func (s pathSet) below(path string) bool { return s.begins(path+".") || s.begins(path+"[") }

func (s pathSet) begins(prefix string) bool {
	i, _ := slices.BinarySearch(s, prefix)
	return i < len(s) && strings.HasPrefix(s[i], prefix)
}

// without returns the paths for which drop is false.
func (s pathSet) without(drop func(string) bool) pathSet {
	return slices.DeleteFunc(slices.Clone(s), drop)
}
