//go:build !linux

package main

import (
	"errors"

	"github.com/balsa-run/balsa/node/runtime/simprog"
)

// stream is for real containers, and those are Linux's.
func stream(simprog.Step) error { return errors.New("there are no containers here") }
