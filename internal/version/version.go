// Package version tells which Balsa this is. The linker sets both strings; a
// plain `go build` leaves what stands here.
package version

import "runtime"

var (
	version = "0.1.0-dev" // set by the linker
	commit  = "unknown"   // set by the linker
)

// Version is the release, for example "0.1.0".
func Version() string { return version }

// Commit is the source the program was built from.
func Commit() string { return commit }

// Go is the toolchain that built it.
func Go() string { return runtime.Version() }
