package daemon

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/balsa-run/balsa/internal/atomicfile"
)

// The layout of a data directory:
//
//	DIR/admin.yaml          client configuration of the first user (--init, dev)
//	DIR/server/lock         held while a server runs
//	DIR/server/member.json  the server's id in the raft group
//	DIR/server/identity/    keys and certificates
//	DIR/server/raft/        log and snapshots
//	DIR/server/blobs/       images
//	DIR/agent/…             the same of an agent
const (
	adminFile  = "admin.yaml"
	lockFile   = "lock"
	memberFile = "member.json"
)

// lockDir makes sure that one process at a time works in a folder.
func lockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make %s: %w", dir, err)
	}
	path := filepath.Join(dir, lockFile)
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is in use by another balsa process; end it first, or choose another --data-dir", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { _ = file.Close() }, nil
}

// member is the server's part in the raft group. The id belongs to the disk: a
// server whose disk was lost is another one.
type member struct {
	ID string `json:"id"`
}

// readMember returns the id of the disk, or "" if it has none yet.
func readMember(dir string) (string, error) {
	path := filepath.Join(dir, memberFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the server's id: %w", err)
	}
	var found member
	if err := json.Unmarshal(text, &found); err != nil || found.ID == "" {
		return "", fmt.Errorf("%s holds no id of a server: %w; it is never edited: restore it, or empty %s and join under a new name", path, err, dir)
	}
	return found.ID, nil
}

// newMember gives the disk an id that no server had before.
func newMember(dir, name string) (string, error) {
	var drawn [4]byte
	if _, err := rand.Read(drawn[:]); err != nil {
		return "", fmt.Errorf("draw an id: %w", err)
	}
	id := name + "-" + hex.EncodeToString(drawn[:])
	text, err := json.Marshal(member{ID: id})
	if err != nil {
		return "", fmt.Errorf("encode the server's id: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(dir, memberFile), append(text, '\n'), 0o600); err != nil {
		return "", fmt.Errorf("keep the server's id: %w", err)
	}
	return id, nil
}

// emptyDir makes a folder with nothing in it.
func emptyDir(dir string) (string, error) {
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o700)
}
