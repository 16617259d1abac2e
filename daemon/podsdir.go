package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/balsa-run/balsa/internal/hostmount"
)

// What containers write into their own file systems, and their logs, belong on a
// disk: on a tmpfs they take the machine's memory, charged to the container that
// writes, and a container that writes much is killed for it. So the pods' folder
// follows --run-dir only when that is on a disk.

// podsFolder is where the runtime keeps pods:
//
//	RUN-DIR/pods       if RUN-DIR is on a disk
//	DATA-DIR/run/pods  if it is a tmpfs, and DATA-DIR is not
//	RUN-DIR/pods       with a warning: if both are, or while pods of an earlier
//	                   version still live there
func podsFolder(dataDir, runDir string, onTmpfs func(string) (hostmount.Room, bool, error), logger *slog.Logger) (string, error) {
	usual := filepath.Join(runDir, "pods")
	memory, is, err := onTmpfs(runDir)
	if err != nil || !is {
		return usual, err
	}
	living, err := podsIn(usual)
	if err != nil {
		return "", err
	}
	_, alsoData, err := onTmpfs(dataDir)
	if err != nil {
		return "", err
	}
	why := "pods of an earlier version live there; the folder moves to --data-dir when the agent starts without any"
	switch {
	case living == 0 && !alsoData:
		return filepath.Join(dataDir, "run", "pods"), nil
	case alsoData:
		why = "--data-dir is on a tmpfs as well; put it on a disk"
	}
	logger.Warn("what containers write and log takes the machine's memory, up to the size of the tmpfs that --run-dir is on",
		"folder", usual, "why", why, "pods", living, "tmpfsBytes", memory.Bytes, "freeBytes", memory.Free)
	return usual, nil
}

// podsIn counts the pods of a folder of the runtime.
func podsIn(dir string) (int, error) {
	entries, err := os.ReadDir(filepath.Join(dir, "pods"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("look for pods: %w", err)
	}
	return len(entries), nil
}
