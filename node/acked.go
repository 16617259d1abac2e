package node

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"
)

// fileApplied, on RunDisk, is the revision of the newest services that proxy and
// resolver have applied, and that servers were told of.
const fileApplied = "applied"

// appliedMode: nobody but the agent needs it.
const appliedMode fs.FileMode = 0o600

// heldBack is how long an agent that starts with older services than it has
// acknowledged waits for a server before it uses them nevertheless.
const heldBack = 3 * time.Second

// saveApplied is called before anybody is told. It need only survive the agent:
// the kernel's rules do not survive the machine either.
func (j journal) saveApplied(revision int64) error {
	if err := j.run.Show(fileApplied, strconv.AppendInt(nil, revision, 10), appliedMode); err != nil {
		return fmt.Errorf("save %s: %w", fileApplied, err)
	}
	return nil
}

// outdated tells whether the services on disk are older than what this node has
// acknowledged. They are saved at leisure, so an agent that was killed may find
// some that lead to a pod which was stopped since, because it had said that its own
// did not.
func (j journal) outdated() (bool, error) {
	data, err := j.run.Read(fileApplied)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return true, fmt.Errorf("read %s: %w", fileApplied, err)
	}
	revision, err := strconv.ParseInt(string(data), 10, 64)
	if err != nil {
		return true, fmt.Errorf("read %s: %w", fileApplied, err) // cut off in the middle
	}
	services, err := readPart(j.disk, fileServices)
	return err != nil || services.GetRevision() < revision, err
}

// held tells whether the kernel's rules have to stay as they are: until a server
// has told what there is, or for so long. Only the loop that applies may ask.
func (a *Agent) held() bool {
	if !a.behind {
		return false
	}
	_, fromServer, _ := a.set.known()
	if late := a.cfg.Clock.Now().Sub(a.began) >= heldBack; !fromServer && !late {
		return true
	} else if late {
		a.log.Warn("no server tells what there is; going on with services that are older than those before this agent was killed", "waited", heldBack)
	}
	a.behind = false
	return false
}
