//go:build helpers

package helpers

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// giveBack takes the whole pages of a constant that is part of the program's
// file out of this process's memory; whoever reads it again has them read again.
// Never hand it anything else: memory that is not a file's becomes zero.
func giveBack(constant string) {
	page := uintptr(os.Getpagesize())
	begin := uintptr(unsafe.Pointer(unsafe.StringData(constant)))
	skip := -begin & (page - 1)
	if uintptr(len(constant)) < skip+page {
		return
	}
	whole := (uintptr(len(constant)) - skip) &^ (page - 1)
	// A kernel that refuses leaves the pages where they are, which is no fault.
	_ = unix.Madvise(unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(unsafe.StringData(constant)), skip)), whole), unix.MADV_DONTNEED)
}
