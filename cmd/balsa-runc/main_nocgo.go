//go:build !linux || !cgo

// Command balsa-runc starts containers with libcontainer, which needs Linux
// and cgo. This twin only says how to build the real one.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "balsa-runc was built without cgo and cannot start containers; build it on Linux with\n"+
		"  CGO_ENABLED=1 go build -tags 'seccomp netgo osusergo' -ldflags '-s -w -linkmode external -extldflags \"-static\"' ./cmd/balsa-runc\n"+
		"(needs gcc, libc6-dev, libseccomp-dev and pkg-config)")
	os.Exit(1)
}
