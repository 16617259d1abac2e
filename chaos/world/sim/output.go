package sim

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/tetratelabs/wazero/sys"
)

// output is what the program prints.
type output struct {
	limit int
	over  bool

	mu   sync.Mutex   // a run that is stuck is looked at while it goes on
	text bytes.Buffer // guarded by mu
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.text.Len()+len(p) > o.limit {
		o.over = true
		panic(sys.NewExitError(exitStopped))
	}
	return o.text.Write(p)
}

func (o *output) lines() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.text.Len() == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(o.text.String(), "\n"), "\n")
}

func (o *output) digest(code int, elapsed time.Duration) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	h := sha256.New()
	h.Write(o.text.Bytes())
	_, _ = fmt.Fprintf(h, "\nexit %d at %d", code, elapsed)
	return hex.EncodeToString(h.Sum(nil))
}

// head keeps the beginning of what is written to it: of a program that dies the
// reason, before the stacks of its thousand goroutines.
type head struct{ kept []byte }

func (h *head) Write(p []byte) (int, error) {
	h.kept = append(h.kept, p[:min(len(p), stderrBytes-len(h.kept))]...)
	return len(p), nil
}
