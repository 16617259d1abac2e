package sim

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/tetratelabs/wazero/sys"
)

// output is what the program prints.
type output struct {
	limit int
	text  bytes.Buffer
	over  bool
}

func (o *output) Write(p []byte) (int, error) {
	if o.text.Len()+len(p) > o.limit {
		o.over = true
		panic(sys.NewExitError(exitStopped))
	}
	return o.text.Write(p)
}

func (o *output) lines() []string {
	if o.text.Len() == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(o.text.String(), "\n"), "\n")
}

func (o *output) digest(code int, elapsed time.Duration) string {
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
