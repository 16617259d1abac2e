package runc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/balsa-run/balsa/node/runtime"
)

// maxPasswdBytes bounds /etc/passwd and /etc/group of an image.
const maxPasswdBytes = 1 << 20

// resolveUser turns the process's user into numbers, by the image's own
// /etc/passwd and /etc/group. They are opened inside the image: a symbolic
// link cannot lead to the node's.
func resolveUser(rootFS string, p runtime.Process, sec runtime.Security) (specs.User, error) {
	root, err := os.OpenRoot(rootFS)
	if err != nil {
		return specs.User{}, fmt.Errorf("resolve user %q: %w", p.User, err)
	}
	defer func() { _ = root.Close() }()
	passwd, err := readConfined(root, "etc/passwd")
	if err != nil {
		return specs.User{}, fmt.Errorf("resolve user %q: %w", p.User, err)
	}
	group, err := readConfined(root, "etc/group")
	if err != nil {
		return specs.User{}, fmt.Errorf("resolve user %q: %w", p.User, err)
	}
	lookup := func(name string) (*user.ExecUser, error) {
		return user.GetExecUser(name, &user.ExecUser{Home: "/"}, bytes.NewReader(passwd), bytes.NewReader(group))
	}
	found, err := lookup(p.User)
	if err != nil {
		return specs.User{}, fmt.Errorf("resolve user %q in the image: %w: %w", p.User, err, runtime.ErrInvalid)
	}
	if sec.RunAsNonRoot && found.Uid == 0 {
		return specs.User{}, fmt.Errorf("runAsNonRoot is set, but user %q is uid 0: set runAsUser to another: %w", p.User, runtime.ErrInvalid)
	}
	out := specs.User{UID: uint32(found.Uid), GID: uint32(found.Gid)}
	add := func(gid int64) {
		if !slices.Contains(out.AdditionalGids, uint32(gid)) {
			out.AdditionalGids = append(out.AdditionalGids, uint32(gid))
		}
	}
	if sec.ImageGroups {
		// By the user alone: a group of its own choice does not end its membership in others.
		name, _, _ := strings.Cut(p.User, ":")
		member, err := lookup(name)
		if err != nil {
			return specs.User{}, fmt.Errorf("resolve the groups of user %q in the image: %w: %w", name, err, runtime.ErrInvalid)
		}
		for _, gid := range member.Sgids {
			add(int64(gid))
		}
	}
	for _, gid := range sec.SupplementalGroups {
		add(gid)
	}
	return out, nil
}

// readConfined returns nothing for a file that an image does not have.
func readConfined(root *os.Root, name string) ([]byte, error) {
	// Without O_NONBLOCK a FIFO of that name would hold up the start.
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxPasswdBytes {
		return nil, fmt.Errorf("%s: want a file of at most %d bytes", name, maxPasswdBytes)
	}
	return io.ReadAll(io.LimitReader(f, maxPasswdBytes))
}
