//go:build unix

package node

import (
	"errors"
	"syscall"
)

// fileErrno tells errors of files, which a container's own file system makes.
func fileErrno(err error) bool {
	for _, errno := range []syscall.Errno{syscall.EROFS, syscall.ENOSPC, syscall.EDQUOT, syscall.ENOTDIR, syscall.EISDIR, syscall.ELOOP, syscall.EBUSY, syscall.ENOTEMPTY, syscall.ENAMETOOLONG, syscall.ECONNREFUSED} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
