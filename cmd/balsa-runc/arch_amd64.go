package main

import "github.com/opencontainers/runtime-spec/specs-go"

// nativeArchitectures keeps the system call tables that programs use on this
// processor. Each costs some 6 ms of every start, in libseccomp, which is why
// x32 is left out: kernels of today have it switched off.
func nativeArchitectures() []specs.Arch {
	return []specs.Arch{specs.ArchX86_64, specs.ArchX86}
}
