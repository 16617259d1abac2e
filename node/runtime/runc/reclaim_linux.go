package runc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/balsa-run/balsa/node/runtime"
)

// ReclaimLogs removes logs of a pod to free the node's disk: all of them if it has
// ended, else those that were rotated. Whoever reads a log has its files open.
// The shim may rotate meanwhile: a file that it expects and that is gone is no
// failure to it.
func (r *Runtime) ReclaimLogs(ctx context.Context, uid runtime.PodUID, ended bool) (freed int64, err error) {
	p, ok := r.find(uid)
	if !ok {
		return 0, fmt.Errorf("pod %s: %w", uid, runtime.ErrPodNotFound)
	}
	dir := filepath.Join(p.dir, logsDir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("logs of pod %s: %w", uid, err)
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return freed, context.Cause(ctx)
		}
		if !ended && strings.HasSuffix(e.Name(), ".log") {
			continue
		}
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue // it has gone meanwhile
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return freed, fmt.Errorf("logs of pod %s: %w", uid, err)
		}
		freed += blocksOf(info)
	}
	return freed, nil
}
