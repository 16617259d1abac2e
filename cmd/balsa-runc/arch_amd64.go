package main

import "github.com/opencontainers/runtime-spec/specs-go"

// nativeArchitectures keeps the system call tables that this processor has.
func nativeArchitectures() []specs.Arch {
	return []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
}
